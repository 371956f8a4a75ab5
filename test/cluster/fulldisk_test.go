package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// heals is the time in which a server takes changes again after its disk has space.
const heals = 30 * time.Second

// awaitFull waits until the status that a machine gives names the server whose disk is full.
func awaitFull(t *testing.T, by, of *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "the status names the full disk", func() error {
		st, err := by.Status()
		if err != nil {
			return err
		}
		for _, f := range st.Findings {
			if f.Subject == of.Name() && strings.Contains(f.Message, "is full") {
				return nil
			}
		}
		return fmt.Errorf("findings %v", st.Findings)
	})
}

// awaitChange waits until a change is accepted.
func (tr *trial) awaitChange(t *testing.T, by *lab.Node, name string) {
	t.Helper()
	began := time.Now()
	lab.Eventually(t, heals, "a change is accepted", func() error {
		if r := by.TryWithin(10*time.Second, tr.dir, "config", "create", name, "compose.yaml"); r.Code != 0 {
			return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
		return nil
	})
	t.Logf("%s accepted after %s", name, time.Since(began).Round(100*time.Millisecond))
}

// refused fails unless a change is refused for the reason, with what to do.
func (tr *trial) refused(t *testing.T, by *lab.Node) {
	t.Helper()
	r := by.TryWithin(30*time.Second, tr.dir, "scale", "--detach", "web=5")
	if r.Code == 0 || !strings.Contains(r.Stderr, " full") || !strings.Contains(r.Stderr, "hint: make room") {
		t.Errorf("on a full disk: exit %d: %s", r.Code, r.Stderr)
	}
}

// TestOneServerFullDisk fills the disk of the only server: it stays up, refuses changes, lets things be removed, and goes on
// when there is space.
func TestOneServerFullDisk(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1, Disk: "600M"})
	tr.up(t, "web", 3)
	n := tr.Node(0)
	n.GantryIn(t, tr.dir, "config", "create", "before", "compose.yaml")
	pid, before := n.DaemonPID(t), starts(t, n)
	for round := range 2 {
		n.FillDisk(t)
		tr.refused(t, n)
		awaitFull(t, n, n)
		time.Sleep(20 * time.Second)
		tr.refused(t, n)
		if round == 0 {
			n.Gantry(t, "config", "rm", "before")
			n.Gantry(t, "system", "prune", "--force")
		}
		n.FreeDisk(t)
		tr.awaitChange(t, n, fmt.Sprintf("after-%d", round))
		sameStarts(t, n, before)
	}
	if n.DaemonPID(t) != pid {
		t.Error("the daemon has ended")
	}
	tr.settle(t)
}

// TestOneServerRestartedOnFullDisk kills the only server while its disk is full.
func TestOneServerRestartedOnFullDisk(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1, Disk: "600M"})
	tr.up(t, "web", 3)
	n := tr.Node(0)
	before := starts(t, n)
	n.FillDisk(t)
	tr.refused(t, n)
	n.KillDaemon(t)
	n.StartDaemon(t)
	tr.refused(t, n)
	n.FreeDisk(t)
	tr.awaitChange(t, n, "after")
	sameStarts(t, n, before)
	tr.settle(t)
}

// TestFullDisk fills the disk of a follower, then of the leader, then of two servers, while changes are made.
func TestFullDisk(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Disk: "600M"})
	tr.up(t, "web", 6)
	pids := map[*lab.Node]int{}
	for _, n := range tr.Nodes() {
		pids[n] = n.DaemonPID(t)
	}
	for i, n := range []*lab.Node{tr.follower(t), tr.Leader(t)} {
		n.FillDisk(t)
		tr.awaitChange(t, n, fmt.Sprintf("meanwhile-%d", i))
		awaitFull(t, n, n)
		lab.Eventually(t, heals, "a server with space leads", func() error {
			if tr.Leader(t) == n {
				return fmt.Errorf("%s leads", n.Name())
			}
			return nil
		})
		time.Sleep(10 * time.Second)
		n.FreeDisk(t)
		tr.awaitChange(t, n, fmt.Sprintf("after-%d", i))
		tr.converge(t)
	}
	two := tr.Nodes()[:2]
	for _, n := range two {
		n.FillDisk(t)
	}
	for _, n := range two {
		awaitFull(t, tr.Node(2), n)
	}
	tr.refused(t, tr.Node(0))
	for _, n := range two {
		n.FreeDisk(t)
	}
	tr.awaitChange(t, tr.Node(0), "at-last")
	for n, pid := range pids {
		if n.DaemonPID(t) != pid {
			t.Errorf("the daemon of %s has ended", n.Name())
		}
	}
	tr.settle(t)
}

// TestOneMachineFullDisk is a machine that stands alone.
func TestOneMachineFullDisk(t *testing.T) {
	heavy(t)
	root := t.TempDir()
	if err := syscall.Mount("none", root, "tmpfs", 0, "size=700m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(root, syscall.MNT_DETACH) })
	n := lab.Network(t).AddNode(t, root)
	n.StartDaemon(t)
	dir := lab.Project(t, "")
	n.GantryIn(t, dir, "config", "create", "first", "compose.yaml")
	pid := n.DaemonPID(t)
	ballast := filepath.Join(root, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	_ = f.Close()
	if r := n.TryIn(dir, "config", "create", "second", "compose.yaml"); r.Code == 0 || !strings.Contains(r.Stderr, "is full") {
		t.Errorf("on a full disk: exit %d: %s", r.Code, r.Stderr)
	}
	n.Gantry(t, "config", "rm", "first")
	awaitFull(t, n, n)
	if r := n.Try("cluster", "status"); r.Code != 2 || !strings.Contains(r.Stdout, "is full") {
		t.Errorf("status: exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	(&trial{dir: dir}).awaitChange(t, n, "second")
	if n.DaemonPID(t) != pid {
		t.Error("the daemon has ended")
	}
}
