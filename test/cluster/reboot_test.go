package cluster_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/test/lab"
)

// TestNodeRebootsAlone reboots a node that reaches no server: it starts what it ran from its own records, and says that nobody
// decides about it.
func TestNodeRebootsAlone(t *testing.T) {
	t.Run("it is cut off", func(t *testing.T) {
		tr := begin(t, lab.Shape{Servers: 1, Nodes: 1})
		tr.up(t, "web", 4)
		tr.Node(1).Isolate(t)
		tr.rebootAlone(t, tr.Node(1))
		tr.settle(t)
	})
	t.Run("the servers are off", func(t *testing.T) {
		heavy(t)
		tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
		tr.up(t, "web", 8)
		node := tr.Node(3)
		for _, n := range tr.Except(node) {
			n.PowerOff(t)
		}
		before := tr.rebootAlone(t, node)
		tr.PowerOn(t)
		tr.settle(t)
		if after := ids(node); !maps.Equal(before, after) {
			t.Errorf("before the servers came back the node ran %v, after it %v", before, after)
		}
	})
}

// rebootAlone reboots a node that reaches no server, and returns what runs on it.
func (tr *trial) rebootAlone(t *testing.T, node *lab.Node) map[string]bool {
	t.Helper()
	before := ids(node)
	if len(before) == 0 {
		t.Fatalf("nothing runs on %s", node.Name())
	}
	atMost := time.Minute
	if !short() {
		atMost = 20 * time.Second
	}
	node.PowerOff(t)
	if left := ids(node); len(left) > 0 {
		t.Fatalf("%v outlived the power cut", left)
	}
	began := time.Now()
	node.PowerOn(t)
	lab.Eventually(t, atMost, "what it ran runs again", func() error {
		if now := ids(node); !maps.Equal(now, before) {
			return fmt.Errorf("%d of %d", len(now), len(before))
		}
		return nil
	})
	// Its name server and its networks go on with what the machine knew.
	for id := range before {
		lab.Eventually(t, atMost, "names on a machine without a server", func() error {
			if out, err := node.Inside(id, "/bin/busybox", "nslookup", "web"); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	t.Logf("%d instances run again, by the node's own records, %s after the power came back", len(before), time.Since(began).Round(100*time.Millisecond))
	if _, err := node.TryInstances(); err == nil || !strings.Contains(err.Error(), "reaches no server that leads") || fault.HintOf(err) == "" {
		t.Errorf("it says %v (hint: %s)", err, fault.HintOf(err))
	}
	return before
}

// TestNodeRebootsBesideFrozenLeader has a node come back from a power cut when what it ran has been made again elsewhere, and the
// server that it asks first takes connections and never answers. It learns from another that its instances are replaced before
// it starts them by its own records.
func TestNodeRebootsBesideFrozenLeader(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
	tr.up(t, "web", 8)
	node, leader := tr.Node(3), tr.Leader(t)
	before := ids(node)
	if len(before) == 0 {
		t.Fatalf("nothing runs on %s", node.Name())
	}
	leader.PauseDaemon(t)
	node.PowerOff(t)
	tr.awaitRunning(t, tr.want["web"], tr.Except(leader, node)...)
	node.PowerOnly(t)
	began := time.Now()
	node.StartDaemon(t)
	lab.Eventually(t, time.Minute, "a session of the node", func() error {
		if _, err := node.TryInstances(); err == nil || !strings.Contains(err.Error(), "servers answer at") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	within(t, "the node has a session: after its daemon was started", time.Since(began), 0, 6*time.Second)
	for id := range ids(node) {
		if before[id] {
			t.Errorf("%s runs %s again, which was replaced", node.Name(), id)
		}
	}
	leader.ResumeDaemon(t)
	tr.settle(t)
}
