package cluster_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
)

// backedUp is a stopped member whose state is not that of its backup any more.
func backedUp(t *testing.T) (o cluster.Options, file string) {
	t.Helper()
	o, file = alone(t), filepath.Join(t.TempDir(), "snapshot")
	m := startAlone(t, o)
	check(t, put(t.Context(), m, "k", "backed up"))
	rc, err := m.Snapshot(t.Context())
	check(t, err)
	f, err := os.Create(file)
	check(t, err)
	_, err = f.ReadFrom(rc)
	check(t, err)
	check(t, f.Close())
	check(t, put(t.Context(), m, "k", "later"))
	m.Stop()
	o.Existing = true
	return o, file
}

// finished ends a restore and reads what the state has then.
func finished(t *testing.T, o cluster.Options) (value, note string, err error) {
	t.Helper()
	_, err = cluster.Finish(o, func(n []byte) error { note = string(n); return nil })
	m := startAlone(t, o)
	defer m.Stop()
	return read(t, m, "k"), note, err
}

// TestRestoreIsCutShort ends a restore at each of its steps, as a crash does: the next start has the state before or the restored
// one, and never none.
func TestRestoreIsCutShort(t *testing.T) {
	crash := errors.New("crash")
	for name, c := range map[string]struct {
		until func(t *testing.T, o cluster.Options, file string)
		want  string
	}{
		"while it is made": {func(t *testing.T, o cluster.Options, file string) {
			check(t, cluster.Restore(o, file, []byte("key")))
			check(t, os.Rename(o.Root+".restored", o.Root+".restoring"))
		}, "later"},
		"when it is made": {func(t *testing.T, o cluster.Options, file string) {
			check(t, cluster.Restore(o, file, []byte("key")))
		}, "backed up"},
		"between the two": {func(t *testing.T, o cluster.Options, file string) {
			check(t, cluster.Restore(o, file, []byte("key")))
			if _, err := cluster.Finish(o, func([]byte) error { return crash }); !errors.Is(err, crash) {
				t.Fatal(err)
			}
			if _, err := cluster.Open(o); !fault.Is(err, fault.Corrupt) {
				t.Errorf("a start that does not finish it: %v", err)
			}
		}, "backed up"},
		"when it is given up": {func(t *testing.T, o cluster.Options, file string) {
			check(t, cluster.Restore(o, file, []byte("key")))
			check(t, cluster.GiveUp(o))
		}, "later"},
	} {
		t.Run(name, func(t *testing.T) {
			o, file := backedUp(t)
			c.until(t, o, file)
			value, note, err := finished(t, o)
			check(t, err)
			if value != c.want || (note == "key") != (c.want == "backed up") {
				t.Errorf("the state has %q, the note is %q", value, note)
			}
			if _, err := os.Stat(filepath.Join(o.Root, "restore-note")); err == nil {
				t.Error("the note is left in the state")
			}
			if _, note, err := finished(t, o); err != nil || note != "" {
				t.Errorf("it is finished again: %q, %v", note, err)
			}
		})
	}
}

// TestRestoreOverAMount has a state that cannot be put aside: it stays as it is.
func TestRestoreOverAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	o, file := backedUp(t)
	check(t, syscall.Mount(o.Root, o.Root, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { _ = syscall.Unmount(o.Root, syscall.MNT_DETACH) })
	check(t, cluster.Restore(o, file, []byte("key")))
	if value, note, err := finished(t, o); !fault.Is(err, fault.Unavailable) || value != "later" || note != "" {
		t.Errorf("the state has %q, the note is %q, %v", value, note, err)
	}
	if _, note, err := finished(t, o); err != nil || note != "" {
		t.Errorf("it is tried again: %q, %v", note, err)
	}
}
