package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
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

// TestPromoteAndDemote changes the number of servers from one to three and back, the first one among those that go.
func TestPromoteAndDemote(t *testing.T) {
	tr := begin(t, lab.Shape{Servers: 1, Nodes: 2})
	tr.up(t, "web", 6)
	before := starts(t, tr.Node(0))
	tr.Node(0).Gantry(t, "node", "promote", tr.Node(1).Name(), tr.Node(2).Name())
	if got := members(t, tr.Node(2)); got != 3 {
		t.Fatalf("%d servers have a vote", got)
	}
	tr.Node(2).Gantry(t, "node", "demote", tr.Node(0).Name())
	tr.Node(2).Gantry(t, "node", "demote", tr.Node(1).Name())
	if got := members(t, tr.Node(2)); got != 1 {
		t.Fatalf("%d servers are left", got)
	}
	sameStarts(t, tr.Node(2), before)
	lab.Eventually(t, time.Minute, "the former server says that it is none", func() error {
		if _, err := tr.Node(0).TryInstances(); err == nil || !strings.Contains(err.Error(), "only runs instances") {
			return fmt.Errorf("it answers %v", err)
		}
		return nil
	})
	tr.ledger.check(t)
	tr.slots.check(t)
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
	tr.Node(0).Gantry(t, "node", "rm", "--force", gone.Name())
	lab.Eventually(t, time.Minute, "the removed node runs nothing", func() error {
		if got := ids(gone); len(got) > 0 {
			return fmt.Errorf("it runs %d instances", len(got))
		}
		return nil
	})
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
