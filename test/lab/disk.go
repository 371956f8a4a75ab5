package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a file system of the machine's own, in a file; its folder is the daemon's root.
type disk struct{ at string }

// addDisk gives a machine that is off a disk of that size, as in "600M". The file is sparse.
func (n *Node) addDisk(t testing.TB, size string) {
	t.Helper()
	file := filepath.Join(n.dir, "disk")
	run(t, time.Minute, "truncate", "-s", size, file)
	run(t, time.Minute, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", file)
	run(t, time.Minute, "mount", "-o", "loop", file, n.root)
	n.disk = &disk{at: n.root}
	must(t, os.RemoveAll(filepath.Join(n.root, "lost+found")))
}

func (n *Node) ownDisk(t testing.TB) *disk {
	t.Helper()
	if n.disk == nil {
		t.Fatalf("lab: %s has no disk of its own: make it with Shape.Disk", n.name)
	}
	return n.disk
}

// remove frees the disk; its file goes with the machine's folder.
func (d *disk) remove() {
	unmountBelow(d.at)
}

// thawBelow lets frozen disks in a folder go on, as a lab that died leaves them.
func thawBelow(dir string) {
	for _, at := range mountsBelow(dir) {
		_ = exec.Command("fsfreeze", "--unfreeze", at).Run()
	}
}

// unmountBelow unmounts everything in a folder and the folder itself.
func unmountBelow(dir string) {
	for _, at := range mountsBelow(dir) {
		_ = syscall.Unmount(at, syscall.MNT_DETACH)
	}
}

// mountsBelow lists what is mounted at a folder and in it, the last mounted first.
func mountsBelow(dir string) []string {
	text, _ := os.ReadFile("/proc/self/mounts")
	var out []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && (fields[1] == dir || strings.HasPrefix(fields[1], dir+"/")) {
			out = append(out, fields[1])
		}
	}
	slices.Reverse(out)
	return out
}

// StallDisk lets every write to the machine's disk wait from now on, until the disk is let go on: fsync hangs, nothing fails.
// Processes that wait for the disk cannot be killed, so power cuts wait too.
func (n *Node) StallDisk(t testing.TB) {
	t.Helper()
	d := n.ownDisk(t)
	run(t, time.Minute, "fsfreeze", "--freeze", d.at)
	n.ill.Or(stalled)
}

// ResumeDisk ends StallDisk.
func (n *Node) ResumeDisk(t testing.TB) {
	t.Helper()
	d := n.ownDisk(t)
	run(t, time.Minute, "fsfreeze", "--unfreeze", d.at)
	n.ill.And(^stalled)
}

// FillDisk leaves no free byte on the machine's disk.
func (n *Node) FillDisk(t testing.TB) {
	t.Helper()
	f, err := os.Create(filepath.Join(n.ownDisk(t).at, "ballast"))
	must(t, err)
	defer f.Close()
	for size := 1 << 20; size >= 1; size /= 16 {
		for block := make([]byte, size); err == nil || errors.Is(err, syscall.EINTR); {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("lab: filling the disk of %s: %v", n.name, err)
		}
		err = nil
	}
	_ = f.Sync() // a full disk may say so here again
}

// FreeDisk removes what FillDisk wrote.
func (n *Node) FreeDisk(t testing.TB) {
	t.Helper()
	must(t, os.Remove(filepath.Join(n.ownDisk(t).at, "ballast")))
}

// SlowDisk lets the daemon's own writes to the machine's disk begin at most that often a second; 0 for as often as they come. It
// needs the blkio controller of cgroups v1, or v2's io.
func (n *Node) SlowDisk(t testing.TB, writes int) {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Stat(n.ownDisk(t).at, &st))
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	v1, v2 := fmt.Sprintf("%s %d", device, writes), fmt.Sprintf("%s wiops=%d", device, writes)
	if writes == 0 {
		v2 = device + " wiops=max"
	}
	for file, line := range map[string]string{
		filepath.Join("/sys/fs/cgroup/blkio", n.cgroup(), "blkio.throttle.write_iops_device"): v1,
		filepath.Join("/sys/fs/cgroup", n.cgroup(), "io.max"):                                 v2,
	} {
		if _, err := os.Stat(file); err == nil {
			must(t, os.WriteFile(file, []byte(line), 0o644))
			return
		}
	}
	t.Fatal("lab: the host's cgroups slow no disk down: neither blkio nor io is there")
}
