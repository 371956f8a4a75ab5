package lab_test

import (
	"os"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

// TestVolatileDisk cuts the power of a machine that has written and not synced: content and names are lost, what was synced is
// not.
func TestVolatileDisk(t *testing.T) {
	t.Setenv("GANTRY_BIN", t.TempDir()) // no daemon is started here
	n := lab.Network(t).AddMachine(t, lab.Shape{Volatile: lab.Ext4})
	n.Exec(t, "bash", "-c", "cd "+n.Root()+" && echo old >replaced && echo kept >kept && sync && mkdir new && echo lost >new/lost && echo new >tmp && mv tmp replaced")
	n.PowerOff(t)
	n.PowerOnly(t)
	if got, err := os.ReadFile(n.Path("kept")); err != nil || string(got) != "kept\n" {
		t.Errorf("what was synced is %q, %v", got, err)
	}
	if got, err := os.ReadFile(n.Path("replaced")); err != nil || string(got) != "old\n" {
		t.Errorf("what was replaced without a sync is %q, %v", got, err)
	}
	if _, err := os.Stat(n.Path("new")); !os.IsNotExist(err) {
		t.Errorf("a folder that was not synced is there: %v", err)
	}
	n.Exec(t, "bash", "-c", "cd "+n.Root()+" && echo again >kept && sync kept")
	n.PowerOff(t)
	n.PowerOnly(t)
	if got, err := os.ReadFile(n.Path("kept")); err != nil || string(got) != "again\n" {
		t.Errorf("what was synced after a cut is %q, %v", got, err)
	}
}

// TestLazyFS does the same where every byte counts, and none of the names.
func TestLazyFS(t *testing.T) {
	if os.Getenv("LAZYFS") == "" {
		t.Skip("LAZYFS names no program of LazyFS: make power")
	}
	t.Setenv("GANTRY_BIN", t.TempDir())
	n := lab.Network(t).AddMachine(t, lab.Shape{Volatile: lab.LazyFS})
	n.Exec(t, "bash", "-c", "cd "+n.Root()+"/agent && echo kept >kept && sync kept && echo lost >lost")
	n.PowerOff(t)
	n.PowerOnly(t)
	if got, err := os.ReadFile(n.Path("agent/kept")); err != nil || string(got) != "kept\n" {
		t.Errorf("what was synced is %q, %v", got, err)
	}
	if got, err := os.ReadFile(n.Path("agent/lost")); err != nil || len(got) > 0 {
		t.Errorf("what was not synced is %q, %v", got, err)
	}
}
