package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/gantryd/gantry/fault"
)

func openStore(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(Options{Root: root})
	must(t, err)
	return s
}

func TestStoreLife(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	path, created, err := s.Ensure(t.Context(), "production/voting/db", "", nil)
	if err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	must(t, os.WriteFile(filepath.Join(path, "f"), []byte("kept"), 0o600))

	s = openStore(t, root) // as after a kill
	again, created, err := s.Ensure(t.Context(), "production/voting/db", Directory, nil)
	if err != nil || created || again != path {
		t.Fatalf("second time: %q, created %v, %v", again, created, err)
	}
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 || infos[0].Key != "production/voting/db" || infos[0].Created.IsZero() {
		t.Fatalf("list: %+v, %v", infos, err)
	}
	used := fault.New(fault.Conflict, "used")
	if err := s.RemoveUnless(t.Context(), "production/voting/db", func() error { return used }); !fault.Is(err, fault.Conflict) {
		t.Fatalf("removal of a volume in use: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(b) != "kept" {
		t.Fatalf("a volume in use lost its data: %q, %v", b, err)
	}
	must(t, s.Remove(t.Context(), "production/voting/db"))
	must(t, s.Remove(t.Context(), "production/voting/db"))
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Fatal("data still there")
	}
	if _, err := s.Path(t.Context(), "production/voting/db"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("path of a removed volume: %v", err)
	}
	if infos, _ := openStore(t, root).List(t.Context()); len(infos) != 0 {
		t.Fatalf("after reopening: %+v", infos)
	}
}

func TestEnsureConflicts(t *testing.T) {
	s := openStore(t, t.TempDir())
	_, _, err := s.Ensure(t.Context(), "v", Directory, nil)
	must(t, err)
	for name, call := range map[string]func() error{
		"driver":  func() error { _, _, err := s.Ensure(t.Context(), "v", Pool, nil); return err },
		"options": func() error { _, _, err := s.Ensure(t.Context(), "v", "", map[string]string{"a": "b"}); return err },
	} {
		if err := call(); !fault.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
			t.Errorf("another %s: %v", name, err)
		}
	}
	if _, _, err := s.Ensure(t.Context(), "w", "nfs", nil); !fault.Is(err, fault.Unsupported) {
		t.Errorf("unknown driver: %v", err)
	}
	if err := s.Clone(t.Context(), "v", "w"); !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.HintOf(err), "pool") {
		t.Errorf("clone on a directory: %v", err)
	}
}

func TestStoreCopiesOnPool(t *testing.T) {
	needPool(t)
	s, err := Open(Options{Root: t.TempDir()})
	must(t, err)
	t.Cleanup(func() { closePool(t, s.Close) })
	path, _, err := s.Ensure(t.Context(), "prod/a/db", Pool, nil)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(path, "f"), []byte("x"), 0o600))
	must(t, s.Clone(t.Context(), "prod/a/db", "staging/a/db"))
	must(t, s.Snapshot(t.Context(), "prod/a/db", "prod/a/db@1"))
	if err := s.Clone(t.Context(), "prod/a/db", "staging/a/db"); !fault.Is(err, fault.Exists) {
		t.Errorf("cloning over a volume: %v", err)
	}
	for key, readOnly := range map[string]bool{"staging/a/db": false, "prod/a/db@1": true} {
		i, err := s.Get(t.Context(), key)
		if err != nil || i.ReadOnly != readOnly || i.Driver != Pool {
			t.Errorf("%s: %+v, %v", key, i, err)
		}
		if b, _ := os.ReadFile(filepath.Join(i.Path, "f")); string(b) != "x" {
			t.Errorf("%s holds %q", key, b)
		}
		must(t, s.Remove(t.Context(), key))
	}
}

// A crash can end an operation between any two steps on disk; these are the states in between.
func TestCrashLeavesNothingHalf(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	for _, key := range []string{"removing", "gone", "kept"} {
		_, _, err := s.Ensure(t.Context(), key, "", nil)
		must(t, err)
	}
	// Removal decided, data half deleted.
	r, _ := s.record("removing")
	r.Removing = true
	must(t, s.save(r))
	// Record deleted, crash before the next; and a data folder without a record, from a creation.
	must(t, os.Mkdir(filepath.Join(root, "data", "orphan"), 0o755))
	// A record half written under its temporary name, and one damaged by the disk.
	must(t, os.WriteFile(filepath.Join(root, "meta", ".new-123"), []byte("{"), 0o600))
	must(t, os.WriteFile(filepath.Join(root, "meta", "gone.json"), nil, 0o600))

	s = openStore(t, root)
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 || infos[0].Key != "kept" {
		t.Fatalf("after the crash: %+v, %v", infos, err)
	}
	if _, err := os.Stat(filepath.Join(root, "data", "removing")); !os.IsNotExist(err) {
		t.Error("the removal was not finished")
	}
	if _, err := os.Stat(filepath.Join(root, "data", "gone")); err != nil {
		t.Error("data of a damaged record was deleted")
	}
	if _, created, err := s.Ensure(t.Context(), "orphan", "", nil); err != nil || !created {
		t.Errorf("a folder without a record is in the way: %v, %v", created, err)
	}
}

func TestFileNamesStayInside(t *testing.T) {
	fixed := []string{"..", ".", "../../etc", "/etc/passwd", "a/../../b", "a\x00b", ".hidden", strings.Repeat("x", 5000), "%2E%2E", "~"}
	for _, key := range fixed {
		checkFileName(t, key)
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := rapid.String().Draw(rt, "a"), rapid.String().Draw(rt, "b")
		if a == "" || b == "" {
			return
		}
		checkFileName(rt, a)
		if a != b && fileName(a) == fileName(b) {
			rt.Fatalf("%q and %q share the name %q", a, b, fileName(a))
		}
	})
}

func checkFileName(t interface{ Fatalf(string, ...any) }, key string) {
	n := fileName(key)
	if n == "" || n[0] == '.' || len(n) > maxName || strings.ContainsAny(n, "/\x00") {
		t.Fatalf("key %q gives the file name %q", key, n)
	}
}

func TestHostileKeysAreRefused(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, key := range []string{"", "a\nb", "a\x1b[31m", "\xff", strings.Repeat("k", maxKey+1)} {
		if _, _, err := s.Ensure(t.Context(), key, "", nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.20q: %v", key, err)
		}
	}
}

// subpath opens a path in the volume "v" and says where it leads.
func subpath(t *testing.T, s *Store, sub string) (string, error) {
	t.Helper()
	f, err := s.OpenSubpath(t.Context(), "v", sub)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

func TestSubpathStaysInside(t *testing.T) {
	s := openStore(t, t.TempDir())
	path, _, err := s.Ensure(t.Context(), "v", "", nil)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(path, "a/b"), 0o755))
	for link, to := range map[string]string{"in": "a/b", "out": "../../..", "abs": "/etc", "loop": "loop", "a/up": "../../x"} {
		must(t, os.Symlink(to, filepath.Join(path, link)))
	}
	for sub, want := range map[string]string{"a/b": "a/b", "a/../a": "a", "in": "a/b", ".": "", "": ""} {
		got, err := subpath(t, s, sub)
		if err != nil || got != filepath.Join(path, want) {
			t.Errorf("%q: %q, %v", sub, got, err)
		}
	}
	for sub, kind := range map[string]fault.Kind{
		"..": fault.Invalid, "../x": fault.Invalid, "/etc": fault.Invalid, "a/../../x": fault.Invalid,
		"out": fault.Denied, "abs": fault.Denied, "abs/passwd": fault.Denied, "loop": fault.Denied, "a/up": fault.Denied,
		"missing": fault.NotFound,
	} {
		if got, err := subpath(t, s, sub); !fault.Is(err, kind) {
			t.Errorf("%q: %q, %v; want %v", sub, got, err, kind)
		}
	}
}

func TestParallel(t *testing.T) {
	s := openStore(t, t.TempDir())
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := map[string]int{}
	for i := range 64 {
		wg.Go(func() {
			key := fmt.Sprint("k", i%4)
			_, created, err := s.Ensure(t.Context(), key, "", nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("%s: %v", key, err)
			}
			if created {
				made[key]++
			}
		})
	}
	wg.Wait()
	for key, n := range made {
		if n != 1 {
			t.Errorf("%s was made %d times", key, n)
		}
	}
	if len(s.keys.locks) != 0 {
		t.Errorf("%d locks are left", len(s.keys.locks))
	}
}

func TestFullAndReadOnlyDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := t.TempDir()
	mountTmpfs(t, root, "size=64k")
	s := openStore(t, root)
	_, _, err := s.Ensure(t.Context(), "before", "", nil)
	must(t, err)
	fill, _ := os.Create(filepath.Join(root, "fill"))
	for err == nil {
		_, err = fill.Write(make([]byte, 1024))
	}
	must(t, fill.Close())
	if _, _, err := s.Ensure(t.Context(), "full", "", nil); !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Errorf("on a full disk: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(root, "data", "full")); !os.IsNotExist(err) {
		t.Error("half a volume is left")
	}
	remountReadOnly(t, root)
	if _, _, err := s.Ensure(t.Context(), "ro", "", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("on a read-only disk: %v", err)
	}
	if _, _, err := s.Ensure(t.Context(), "before", "", nil); err != nil {
		t.Errorf("an existing volume on a read-only disk: %v", err)
	}
	if err := s.Remove(t.Context(), "before"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("removal on a read-only disk: %v", err)
	}
}
