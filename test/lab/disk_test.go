package lab

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// machineWithDisk makes a machine without a daemon that has a disk of its own.
func machineWithDisk(t *testing.T, size string) *Node {
	t.Helper()
	t.Setenv("GANTRY_BIN", t.TempDir())
	n := Network(t).newNode(t)
	n.addDisk(t, size)
	n.powerOn(t)
	return n
}

func TestFullDisk(t *testing.T) {
	n := machineWithDisk(t, "64M")
	file := filepath.Join(n.Root(), "file")
	n.FillDisk(t)
	if n.TryExec("dd", "if=/dev/zero", "of="+file, "bs=4k", "count=1", "conv=fsync").Code == 0 {
		t.Error("a full disk takes more")
	}
	n.FreeDisk(t)
	n.Exec(t, "dd", "if=/dev/zero", "of="+file, "bs=4k", "count=1", "conv=fsync")
}

func TestStalledDisk(t *testing.T) {
	n := machineWithDisk(t, "64M")
	n.StallDisk(t)
	written := make(chan Result)
	write := func() {
		written <- n.TryExec("dd", "if=/dev/zero", "of="+filepath.Join(n.Root(), "file"), "bs=4k", "count=1", "conv=fsync")
	}
	go write()
	select {
	case result := <-written:
		t.Errorf("a write did not wait: %+v", result)
	case <-time.After(500 * time.Millisecond):
	}
	n.ResumeDisk(t)
	if result := <-written; result.Code != 0 {
		t.Errorf("a write that waited failed: %s", result.Stderr)
	}
	n.StallDisk(t)
	go write()
	n.PowerOff(t)
	if result := <-written; result.Code == 0 {
		t.Error("a write outlived the power cut")
	}
	n.Wipe(t)
	if left, err := os.ReadDir(n.Root()); err != nil || len(left) > 0 {
		t.Errorf("a wiped disk holds %v, %v", left, err)
	}
	n.powerOn(t)
	n.Exec(t, "touch", filepath.Join(n.Root(), "file"))
}

// TestSlowDisk wants ten writes to take as long as they must at four a second, and to be made at once when the disk is let go.
func TestSlowDisk(t *testing.T) {
	n := machineWithDisk(t, "64M")
	write := func() time.Duration {
		began := time.Now()
		n.Exec(t, "dd", "if=/dev/zero", "of="+filepath.Join(n.Root(), "file"), "bs=4k", "count=10", "oflag=dsync")
		return time.Since(began)
	}
	fast := write()
	n.SlowDisk(t, 4)
	slow := write()
	n.SlowDisk(t, 0)
	again := write()
	if slow < 1500*time.Millisecond || again > slow/2 {
		t.Errorf("10 writes took %s, slowed %s, and then %s", fast, slow, again)
	}
}
