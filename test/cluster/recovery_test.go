package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// loseMajority turns two of three servers off and waits until the first one says that nobody leads. It returns when each
// instance on the first one was started.
func (tr *trial) loseMajority(t *testing.T) map[string]time.Time {
	t.Helper()
	left, before := tr.Node(0), map[string]time.Time{}
	here := ids(left)
	for id, at := range starts(t, left) {
		if here[id] {
			before[id] = at
		}
	}
	tr.Node(2).PowerOff(t)
	tr.Node(1).PowerOff(t)
	tr.awaitLeaderless(t)
	if got := ids(left); len(got) < len(before) {
		t.Errorf("%d of %d instances run on without a majority", len(got), len(before))
	}
	return before
}

// awaitLeaderless waits until the first machine's status names the three servers and says that nobody leads.
func (tr *trial) awaitLeaderless(t *testing.T) {
	t.Helper()
	lab.Eventually(t, time.Minute, "it says that nobody leads", func() error {
		st, err := tr.Node(0).Status()
		if err != nil {
			return err
		}
		if st.Leader != "" || len(st.Findings) == 0 || !strings.Contains(st.Findings[0].Message, "no server leads") {
			return fmt.Errorf("leader %q, findings %v", st.Leader, st.Findings)
		}
		if len(st.Members) != 3 || st.Members[0].Name == "" {
			return fmt.Errorf("members %v", st.Members)
		}
		return nil
	})
}

// restart kills the daemon of the only server that is left, and starts it again.
func (tr *trial) restart(t *testing.T) {
	t.Helper()
	tr.Node(0).KillDaemon(t)
	tr.Node(0).StartDaemon(t)
	tr.awaitLeaderless(t)
}

// awaitNode waits until a machine that was a server is a node and ready, as the first machine sees it.
func (tr *trial) awaitNode(t *testing.T, back *lab.Node) {
	t.Helper()
	lab.Eventually(t, 2*time.Minute, "the server that came back is a node", func() error {
		nodes, err := tr.Node(0).Machines()
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Node.Name == back.Name() && (n.Node.Role != "node" || n.Status.GetState() != "ready") {
				return fmt.Errorf("it is a %s and %s", n.Node.Role, n.Status.GetState())
			}
		}
		return nil
	})
}

// TestLostMajority loses two of three servers for good. The third says so, goes on running what it runs, and becomes a
// cluster of one; a lost server that comes back after all begins again as a node.
func TestLostMajority(t *testing.T) {
	heavy(t)
	for name, restarted := range map[string]bool{"running": false, "restarted": true} {
		t.Run(name, func(t *testing.T) {
			tr := begin(t, lab.Shape{Servers: 3})
			tr.up(t, "web", 6)
			left, back := tr.Node(0), tr.Node(1)
			before := tr.loseMajority(t)
			if restarted {
				tr.restart(t)
			}
			left.Gantry(t, "cluster", "recover", "--force")
			sameStarts(t, left, before)
			left.Gantry(t, "node", "rm", "--force", tr.Node(2).Name())
			back.PowerOn(t)
			tr.awaitNode(t, back)
			left.Gantry(t, "node", "promote", back.Name())
			tr.slots.check(t)
		})
	}
}

// TestRestoreWithoutMajority restores a backup on the one of three servers that is left and was restarted.
func TestRestoreWithoutMajority(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3})
	tr.up(t, "web", 3)
	left := tr.Node(0)
	file := filepath.Join(t.TempDir(), "backup")
	left.Gantry(t, "cluster", "backup", file)
	before := tr.loseMajority(t)
	tr.restart(t)
	// It ends in time, too: systemd would kill it otherwise.
	left.StopDaemon(t)
	left.StartDaemon(t)
	left.Gantry(t, "cluster", "restore", file, "--force")
	sameStarts(t, left, before)
	tr.Node(1).PowerOn(t)
	tr.awaitNode(t, tr.Node(1))
	tr.slots.check(t)
}

// TestMajorityComesBack restarts a server that is left alone, and lets the others come back.
func TestMajorityComesBack(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 3)
	tr.loseMajority(t)
	tr.restart(t)
	tr.Node(1).PowerOn(t)
	tr.Node(2).PowerOn(t)
	tr.settle(t)
}

// flip changes a bit in the middle of the log of a server whose daemon does not run.
func flip(t *testing.T, n *lab.Node) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(n.Root(), "etcd", "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	text, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	text[len(strings.TrimRight(string(text), "\x00"))/2] ^= 4
	if err := os.WriteFile(logs[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// awaitDamaged waits until a machine says that its state is damaged, and what to do.
func awaitDamaged(t *testing.T, n *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "it says that the state is damaged", func() error {
		r := n.Try("ps")
		if r.Code == 0 || !strings.Contains(r.Stderr, "is damaged") || !strings.Contains(r.Stderr, "hint: ") {
			return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
		return nil
	})
}

// TestDamagedState flips a bit in the state of the only server: it stays up, refuses, says what to do, and that works.
func TestDamagedState(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1})
	tr.up(t, "web", 3)
	n := tr.Node(0)
	file := filepath.Join(t.TempDir(), "backup")
	n.Gantry(t, "cluster", "backup", file)
	before := starts(t, n)
	n.KillDaemon(t)
	flip(t, n)
	n.StartDaemon(t)
	awaitDamaged(t, n)
	n.Gantry(t, "cluster", "restore", file, "--force")
	sameStarts(t, n, before)
	tr.slots.check(t)
}

// TestDamagedServer flips a bit in the state of one of three servers: the others go on, and it fetches the state from them.
func TestDamagedServer(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 3)
	n := tr.follower(t)
	n.KillDaemon(t)
	flip(t, n)
	n.StartDaemon(t)
	awaitDamaged(t, n)
	by := tr.Except(n)[0]
	awaitFinding(t, by, n, "is no member that answers: it says that the state in ", "is damaged", "2 of 3")
	by.Gantry(t, "node", "demote", n.Name())
	by.Gantry(t, "node", "promote", n.Name())
	tr.awaitWell(t)
	tr.settle(t)
}
