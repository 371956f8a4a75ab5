package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/volume/directory"
	"github.com/gantryd/gantry/volume/pool"
)

// driverCase is one driver under the contract.
type driverCase struct {
	name    string
	open    func(t *testing.T) Driver
	needs   func(t *testing.T)
	instant bool // has Snapshotter and Cloner
}

const testPoolSize = 256 << 20

func driverCases() []driverCase {
	return []driverCase{
		{name: Directory, needs: func(*testing.T) {}, open: func(t *testing.T) Driver {
			d, err := directory.Open(filepath.Join(t.TempDir(), "data"))
			if err != nil {
				t.Fatal(err)
			}
			return d
		}},
		{name: Pool, instant: true, needs: needPool, open: func(t *testing.T) Driver {
			d := pool.New(t.TempDir(), pool.Options{Size: testPoolSize})
			t.Cleanup(func() { closePool(t, d.Close) })
			return d
		}},
	}
}

func needPool(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a pool needs root")
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "mkfs.btrfs")); err == nil {
			return
		}
	}
	t.Fatal("no mkfs.btrfs on this machine: apt-get install btrfs-progs")
}

func closePool(t *testing.T, close func() error) {
	if err := close(); err != nil {
		t.Errorf("closing the pool: %v", err)
	}
}

func TestDriverContract(t *testing.T) {
	for _, c := range driverCases() {
		t.Run(c.name, func(t *testing.T) {
			c.needs(t)
			d := c.open(t)
			t.Run("create, write, create again, remove", func(t *testing.T) { contractLife(t, d) })
			t.Run("unknown option", func(t *testing.T) { contractOption(t, d) })
			t.Run("usage", func(t *testing.T) { contractUsage(t, d) })
			t.Run("links out of the volume survive its removal", func(t *testing.T) { contractLinks(t, d) })
			t.Run("copies", func(t *testing.T) { contractCopies(t, d, c.instant) })
		})
	}
}

func contractLife(t *testing.T, d Driver) {
	ctx := t.Context()
	must(t, d.Create(ctx, "life", nil))
	file := filepath.Join(d.Path("life"), "f")
	must(t, os.WriteFile(file, []byte("kept"), 0o600))
	must(t, d.Create(ctx, "life", nil))
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Fatalf("creating again lost the data: %q, %v", b, err)
	}
	must(t, os.MkdirAll(filepath.Join(d.Path("life"), "a/b"), 0o700))
	must(t, d.Remove(ctx, "life"))
	if _, err := os.Lstat(d.Path("life")); !os.IsNotExist(err) {
		t.Fatalf("still there: %v", err)
	}
	must(t, d.Remove(ctx, "life"))
}

func contractOption(t *testing.T, d Driver) {
	err := d.Create(t.Context(), "opt", map[string]string{"colour": "red"})
	if !fault.Is(err, fault.Unsupported) || fault.HintOf(err) == "" || !strings.Contains(err.Error(), `"colour"`) {
		t.Fatalf("want an unsupported option by name with a hint, got %v", err)
	}
	if _, err := os.Lstat(d.Path("opt")); !os.IsNotExist(err) {
		t.Fatal("a refused volume was made")
	}
}

func contractUsage(t *testing.T, d Driver) {
	ctx := t.Context()
	must(t, d.Create(ctx, "usage", nil))
	file := filepath.Join(d.Path("usage"), "f")
	must(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	must(t, os.Link(file, file+"2"))
	f, err := os.Open(file)
	must(t, err)
	must(t, errors.Join(f.Sync(), f.Close()))
	n, err := d.Usage(ctx, "usage")
	if err != nil || n < 1<<20 || n > 3<<19 {
		t.Fatalf("usage = %d, %v; want about 1 MiB, two names counted once", n, err)
	}
}

func contractLinks(t *testing.T, d Driver) {
	outside := filepath.Join(t.TempDir(), "precious")
	must(t, os.Mkdir(outside, 0o700))
	must(t, os.WriteFile(filepath.Join(outside, "f"), nil, 0o600))
	must(t, d.Create(t.Context(), "links", nil))
	must(t, os.Symlink(outside, filepath.Join(d.Path("links"), "out")))
	must(t, d.Remove(t.Context(), "links"))
	if _, err := os.Stat(filepath.Join(outside, "f")); err != nil {
		t.Fatalf("the removal followed a link: %v", err)
	}
}

func contractCopies(t *testing.T, d Driver, instant bool) {
	ctx := t.Context()
	snap, isSnap := d.(Snapshotter)
	clone, isClone := d.(Cloner)
	if isSnap != instant || isClone != instant {
		t.Fatalf("snapshotter %v, cloner %v; want %v", isSnap, isClone, instant)
	}
	if !instant {
		return
	}
	must(t, d.Create(ctx, "src", nil))
	file := func(name string) string { return filepath.Join(d.Path(name), "f") }
	must(t, os.WriteFile(file("src"), []byte("one"), 0o600))
	must(t, snap.Snapshot(ctx, "src", "snap"))
	must(t, clone.Clone(ctx, "src", "clone"))
	must(t, os.WriteFile(file("src"), []byte("two"), 0o600))
	must(t, os.WriteFile(file("clone"), []byte("three"), 0o600))
	for name, want := range map[string]string{"src": "two", "snap": "one", "clone": "three"} {
		if b, err := os.ReadFile(file(name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
		}
	}
	if err := os.WriteFile(file("snap"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a snapshot could be written: %v", err)
	}
	for _, name := range []string{"snap", "clone", "src"} {
		must(t, d.Remove(ctx, name))
	}
}

func TestPoolSize(t *testing.T) {
	needPool(t)
	d := pool.New(t.TempDir(), pool.Options{Size: testPoolSize})
	t.Cleanup(func() { closePool(t, d.Close) })
	must(t, d.Create(t.Context(), "small", map[string]string{"size": "4m"}))
	f, err := os.Create(filepath.Join(d.Path("small"), "f"))
	must(t, err)
	defer f.Close()
	_, err = f.Write(make([]byte, 16<<20))
	if err == nil {
		err = f.Sync()
	}
	if !errors.Is(err, unix.EDQUOT) {
		t.Fatalf("16 MiB fit into a volume of 4 MiB: %v", err)
	}
}

func TestPoolSurvivesClose(t *testing.T) {
	needPool(t)
	root := t.TempDir()
	for _, want := range []string{"", "kept"} {
		d := pool.New(root, pool.Options{Size: testPoolSize})
		must(t, d.Create(context.Background(), "v", nil))
		b, _ := os.ReadFile(filepath.Join(d.Path("v"), "f"))
		if string(b) != want {
			t.Errorf("found %q, want %q", b, want)
		}
		must(t, os.WriteFile(filepath.Join(d.Path("v"), "f"), []byte("kept"), 0o600))
		closePool(t, d.Close)
	}
}

func TestPoolNeedsBtrfs(t *testing.T) {
	d := pool.New(t.TempDir(), pool.Options{Path: t.TempDir()})
	if err := d.Create(t.Context(), "v", nil); !fault.Is(err, fault.Unsupported) || fault.HintOf(err) == "" {
		t.Skipf("the temporary directory is on btrfs, or: %v", err)
	}
	t.Setenv("PATH", "")
	d = pool.New(t.TempDir(), pool.Options{Size: testPoolSize})
	err := d.Create(t.Context(), "v", nil)
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.HintOf(err), "btrfs-progs") {
		t.Fatalf("want a hint at btrfs-progs, got %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
