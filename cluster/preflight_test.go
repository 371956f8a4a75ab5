package cluster_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

// TestDamagedState damages what a member has on disk: it is refused with what to do, and nothing is begun anew. Put back, it
// is what it was.
func TestDamagedState(t *testing.T) {
	r := newRig(t)
	o := r.options("a", identity.Server)
	m := r.start(o)
	for range 50 {
		check(t, put(t.Context(), m, "k", strings.Repeat("kept", 100)))
	}
	m.Stop()
	for name, c := range map[string]struct {
		file string
		harm func([]byte) []byte
	}{
		"the end of the log is gone": {"wal/*.wal", func(b []byte) []byte {
			held := len(bytes.TrimRight(b, "\x00"))
			clear(b[held/2:])
			return b
		}},
		"a bit of the log":          {"wal/*.wal", func(b []byte) []byte { b[len(bytes.TrimRight(b, "\x00"))/2] ^= 1; return b }},
		"half of the table is gone": {"snap/db", func(b []byte) []byte { return b[:len(bytes.TrimRight(b, "\x00"))/2] }},
		"a page of the table":       {"snap/db", func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b }},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := filepath.Glob(filepath.Join(o.Root, "member", c.file))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			whole, err := os.ReadFile(files[0])
			check(t, err)
			check(t, os.WriteFile(files[0], c.harm(bytes.Clone(whole)), 0o600))
			m, err := cluster.Open(o)
			if err == nil {
				m.Stop()
			}
			if !fault.Is(err, fault.Corrupt) || fault.HintOf(err) == "" {
				t.Errorf("opened: %v, hint %q", err, fault.HintOf(err))
			}
			check(t, os.WriteFile(files[0], whole, 0o600))
		})
	}
	again := r.start(o)
	if got := read(t, again, "k"); got != strings.Repeat("kept", 100) {
		t.Errorf("put back, the state has %q", got)
	}
}

// TestNothingIsBegunInPlaceOfWhatIsLost has a member that has begun before start without its state, as when the disk that it is
// on is not mounted: it is refused, and nothing is made that would be in the way when the state comes back.
func TestNothingIsBegunInPlaceOfWhatIsLost(t *testing.T) {
	o := alone(t)
	m := startAlone(t, o)
	check(t, put(t.Context(), m, "k", "kept"))
	m.Stop()
	o.Existing = true
	away := o.Root + ".away"
	refused := func(how string) {
		t.Helper()
		m, err := cluster.Open(o)
		if err == nil {
			m.Stop()
		}
		if !fault.Is(err, fault.Corrupt) || !strings.Contains(fault.HintOf(err), "gantry cluster restore") {
			t.Errorf("%s: %v", how, err)
		}
	}
	check(t, os.Rename(o.Root, away))
	refused("without its directory")
	if _, err := os.Stat(o.Root); err == nil {
		t.Error("what is refused has made a directory")
	}
	check(t, os.Mkdir(o.Root, 0o700))
	refused("with an empty one")
	check(t, os.Remove(o.Root))
	check(t, os.Rename(away, o.Root))
	again := startAlone(t, o)
	if got := read(t, again, "k"); got != "kept" {
		t.Errorf("put back, the state has %q", got)
	}
}

// TestLogIsGone has a table without its log: it is said before etcd begins another log.
func TestLogIsGone(t *testing.T) {
	o := stopped(t)
	logs, err := filepath.Glob(filepath.Join(o.Root, "member", "wal", "*.wal"))
	check(t, err)
	for _, f := range logs {
		check(t, os.Remove(f))
	}
	m, err := cluster.Open(o)
	if err == nil {
		m.Stop()
	}
	if !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "the log in ") {
		t.Errorf("opened: %v", err)
	}
	if again, _ := filepath.Glob(filepath.Join(o.Root, "member", "wal", "*.wal")); len(again) > 0 {
		t.Error("another log was begun")
	}
}
