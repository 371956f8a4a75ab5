package cluster_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/test/lab"
)

// starts is when each instance's process was started, by instance.
func starts(t *testing.T, by *lab.Node) map[string]time.Time {
	t.Helper()
	out := map[string]time.Time{}
	for _, view := range by.Instances(t) {
		out[view.Instance.Meta.Key] = view.Status.GetStartedAt().AsTime()
	}
	return out
}

// sameStarts fails if an instance has been started again or is gone. A server that has just begun to lead knows of no instance
// until its node has said how it is.
func sameStarts(t *testing.T, by *lab.Node, before map[string]time.Time) {
	t.Helper()
	lab.Eventually(t, time.Minute, "all instances run as they were started", func() error {
		views, err := by.TryInstances()
		if err != nil {
			return err
		}
		after := map[string]time.Time{}
		for _, view := range views {
			after[view.Instance.Meta.Key] = view.Status.GetStartedAt().AsTime()
		}
		for id, at := range before {
			if got, ok := after[id]; !ok || !got.Equal(at) {
				return fmt.Errorf("instance %s was started at %s and then at %s", id, at, got)
			}
		}
		return nil
	})
}

// TestPromoteAndDemote changes the number of servers from one to three, to five and back, each time with the leader among those
// that go, while changes are made through all machines. No container starts again.
func TestPromoteAndDemote(t *testing.T) {
	tr := begin(t, lab.Shape{Servers: 1, Nodes: 4})
	tr.ledger.end()
	tr.ledger = keepLedger(t, tr.Nodes())
	tr.up(t, "web", 10)
	first := tr.Node(0)
	before := starts(t, first)
	step := func(verb string, by *lab.Node, want int, these ...*lab.Node) {
		t.Helper()
		began := time.Now()
		args := []string{"node", verb}
		for _, n := range these {
			args = append(args, n.Name())
		}
		by.Gantry(t, args...)
		t.Logf("%s: %d servers after %s", verb, want, time.Since(began).Round(100*time.Millisecond))
		if got := members(t, by); got != want {
			t.Fatalf("%d servers have a vote, want %d", got, want)
		}
		sameStarts(t, by, before)
	}
	step("promote", first, 3, tr.Node(1), tr.Node(2))
	step("promote", tr.Node(2), 5, tr.Node(3), tr.Node(4))
	servers := tr.Nodes()
	for len(servers) > 1 {
		leader := tr.Leader(t, servers...)
		i := slices.Index(servers, leader)
		other, by := servers[(i+1)%len(servers)], servers[(i+2)%len(servers)]
		servers = slices.DeleteFunc(slices.Clone(servers), func(n *lab.Node) bool { return n == leader || n == other })
		step("demote", by, len(servers), leader, other)
		for _, n := range []*lab.Node{leader, other} {
			lab.Eventually(t, time.Minute, "a former server says that it is none", func() error {
				if _, err := n.TryInstances(); err == nil || !strings.Contains(err.Error(), "only runs instances") {
					return fmt.Errorf("%s answers %v", n.Name(), err)
				}
				return nil
			})
		}
	}
	tr.settle(t)
	sameStarts(t, servers[0], before)
}

// members counts the servers with a vote.
func members(t *testing.T, by *lab.Node) int {
	t.Helper()
	st, err := by.Status()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range st.Members {
		if !m.Learner {
			n++
		}
	}
	return n
}

// TestBackup restores a backup in place and on a machine that has never seen the cluster.
func TestBackup(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1, Nodes: 1})
	tr.up(t, "web", 4)
	server := tr.Node(0)
	before := starts(t, server)
	dir := t.TempDir()
	file := filepath.Join(dir, "backup")
	phrase := filepath.Join(dir, "phrase")
	if err := os.WriteFile(phrase, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server.Gantry(t, "cluster", "backup", file, "--passphrase-file", phrase)
	server.Gantry(t, "config", "create", "later", phrase)
	server.Gantry(t, "cluster", "restore", file, "--passphrase-file", phrase, "--force")
	tr.AwaitNodes(t, 2)
	sameStarts(t, server, before)
	if got := server.Gantry(t, "config", "ls"); strings.Contains(got, "later") {
		t.Error("what was made after the backup is there")
	}
	other := map[string]time.Time{}
	here := ids(tr.Node(1))
	for id, at := range before {
		if here[id] {
			other[id] = at
		}
	}
	server.Wipe(t)
	server.PowerOn(t) // it founds a cluster of its own, at the same address
	server.Gantry(t, "cluster", "restore", file, "--passphrase-file", phrase, "--force")
	tr.AwaitNodes(t, 2)
	sameStarts(t, server, other)
	tr.slots.check(t)
}

// TestRemovedNode stops what it runs, and its certificate opens nothing any more.
func TestRemovedNode(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1, Nodes: 1})
	tr.up(t, "web", 4)
	gone := tr.Node(1)
	thief := stolen(t, gone, identity.Node)
	if code, text := knock(thief, tr.Node(0), 7450, "/metrics"); code != http.StatusOK {
		t.Errorf("a node is answered %d %s", code, text)
	}
	removed := remove(t, tr.Node(0), gone)
	awaitRefused(t, thief, removed, locked{tr.Node(0), 7450, "/metrics"})
	if err := session(thief, tr.Node(0)); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a session of a node that was removed: %v", err)
	}
	lab.Eventually(t, time.Minute, "the removed node runs nothing", func() error {
		if got := ids(gone); len(got) > 0 {
			return fmt.Errorf("it runs %d instances", len(got))
		}
		return nil
	})
	t.Logf("it runs nothing %s after it was removed", time.Since(removed).Round(100*time.Millisecond))
	tr.Retire(t, gone)
	tr.settle(t)
}

// TestRootRotation replaces the cluster's root certificate twice while everything runs.
func TestRootRotation(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
	tr.up(t, "web", 4)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := tr.Node(0).Client(t).Cluster.Configure(ctx, connect.NewRequest(&gantryv1.ConfigureClusterRequest{
		CertificateLife: durationpb.New(2 * time.Minute),
	})); err != nil {
		t.Fatal(err)
	}
	before := starts(t, tr.Node(0))
	for range 2 {
		tr.Leader(t).Gantry(t, "cluster", "rotate-ca")
		time.Sleep(20 * time.Second)
		tr.AwaitNodes(t, 4)
		leader := tr.Leader(t)
		leader.KillDaemon(t)
		leader.StartDaemon(t)
		tr.AwaitNodes(t, 4)
	}
	sameStarts(t, tr.Node(0), before)
	tr.settle(t)
}
