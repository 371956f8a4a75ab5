package machines

import (
	"slices"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// TestCopiesOfImagesAreConfigured sets how many machines have each image.
func TestCopiesOfImagesAreConfigured(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		copies, want int32
		kind         fault.Kind
	}{{3, 3, ""}, {0, 3, ""}, {-1, 3, fault.Invalid}, {101, 3, fault.Invalid}, {1, 1, ""}} {
		_, err := (&clusterService{b.API}).Configure(t.Context(), connect.NewRequest(&gantryv1.ConfigureClusterRequest{ImageCopies: c.copies}))
		if fault.KindOf(err) != c.kind {
			t.Errorf("%d: %v", c.copies, err)
		}
		got, _ := store.Get[*gantryv1.Cluster](b.store.Snapshot(), ClusterKey)
		if got.ImageCopies != c.want {
			t.Errorf("after %d it is %d, want %d", c.copies, got.ImageCopies, c.want)
		}
	}
}

// TestStatusHasTheFindingsOfOthers asks for the status of a cluster of which another part of the leader has something to say.
func TestStatusHasTheFindingsOfOthers(t *testing.T) {
	b := newBench(t)
	other := &gantryv1.Finding{Severity: "warning", Message: "an image is on one machine alone"}
	b.o.Findings = func() []*gantryv1.Finding { return []*gantryv1.Finding{other} }
	resp, err := (&clusterService{b.API}).Status(t.Context(), connect.NewRequest(&gantryv1.ClusterStatusRequest{}))
	check(t, err)
	if !slices.Contains(resp.Msg.Findings, other) {
		t.Errorf("%v", resp.Msg.Findings)
	}
}
