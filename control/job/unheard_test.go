package job

import (
	"log/slog"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/storetest"
)

// TestAGlobalRunWaitsUntilItsNodesHaveSpoken: a leader that has just begun knows no node's architecture, so no run fails for want
// of nodes and none leaves one out. A node that is down is not waited for.
func TestAGlobalRunWaitsUntilItsNodesHaveSpoken(t *testing.T) {
	s := storetest.New(t)
	o := task(nil)
	o.Spec.Mode, o.Spec.Placement = placement.ModeGlobalJob, &gantryv1.Placement{Constraints: []string{"node.platform.arch == amd64"}}
	put(t, s, o, &gantryv1.Node{Meta: store.NewMeta("n1")}, &gantryv1.Node{Meta: store.NewMeta("n2")}, &gantryv1.Node{Meta: store.NewMeta("n3")})
	c, now := New(s, slog.New(slog.DiscardHandler)), time.Unix(1_800_000_000, 0)
	bring := func() []*gantryv1.JobRun {
		t.Helper()
		if err := c.bring(t.Context(), c.entry("p/a/task"), now); err != nil {
			t.Fatal(err)
		}
		return runsOf(s.Snapshot())
	}
	for _, said := range []*gantryv1.NodeStatus{
		{Meta: store.NewMeta("n1"), State: "ready", Architecture: "amd64"}, {Meta: store.NewMeta("n2"), State: "ready", Architecture: "arm64"},
		{Meta: store.NewMeta("n3"), State: "down"},
	} {
		if runs := bring(); len(runs) > 0 {
			t.Fatalf("it has begun before %s was heard of: %v", said.Meta.Key, runs)
		}
		s.Observe([]store.Object{said}, nil)
	}
	if runs := bring(); len(runs) != 1 || runs[0].State != Running || len(runs[0].Nodes) != 1 || runs[0].Nodes[0] != "n1" {
		t.Fatal(runs)
	}
}
