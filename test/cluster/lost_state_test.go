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

// awaitGone waits until a server says that its state is not there, and what to do.
func awaitGone(t *testing.T, n *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "it says that its state is gone", func() error {
		r := n.Try("ps")
		if r.Code == 0 || !strings.Contains(r.Stderr, "is gone") || !strings.Contains(r.Stderr, "gantry cluster restore") {
			return fmt.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
		}
		return nil
	})
}

// TestStateIsGone has the only server start without its state, as when the disk that it is on was not mounted. No new cluster is
// founded: what runs there and on the node goes on, and with the state put back, or restored, all is as it was.
func TestStateIsGone(t *testing.T) {
	tr := begin(t, lab.Shape{Servers: 1, Nodes: 1})
	tr.up(t, "web", 4)
	n, node := tr.Node(0), tr.Node(1)
	file := filepath.Join(t.TempDir(), "backup")
	n.Gantry(t, "cluster", "backup", file)
	before := starts(t, n)
	state := filepath.Join(n.Root(), "etcd")
	lose := func(to string) {
		t.Helper()
		n.KillDaemon(t)
		if err := os.Rename(state, to); err != nil {
			t.Fatal(err)
		}
		n.StartDaemon(t)
		awaitGone(t, n)
		node.KillDaemon(t) // it asks anew who leads
		node.StartDaemon(t)
		lab.Eventually(t, time.Minute, "the node says that nobody leads", func() error {
			if r := node.Try("ps"); r.Code == 0 || !strings.Contains(r.Stderr, "reaches no server that leads") {
				return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
			}
			return nil
		})
		if here, there := ids(n), ids(node); len(here)+len(there) < 4 {
			t.Fatalf("of 4 instances %d run on the server and %d on the node", len(here), len(there))
		}
	}
	lose(state + ".away")
	n.KillDaemon(t)
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(state+".away", state); err != nil {
		t.Fatal(err)
	}
	n.StartDaemon(t)
	sameStarts(t, n, before)
	lose(state + ".lost")
	n.Gantry(t, "cluster", "restore", file, "--force")
	sameStarts(t, n, before)
	tr.slots.check(t)
}

// TestServerLosesItsState has one of three servers start without its state: the others give it another member, since the one
// that it was has said what this one does not know of.
func TestServerLosesItsState(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 3)
	n := tr.follower(t)
	n.KillDaemon(t)
	if err := os.RemoveAll(filepath.Join(n.Root(), "etcd")); err != nil {
		t.Fatal(err)
	}
	n.StartDaemon(t)
	tr.awaitWell(t)
	tr.settle(t)
}
