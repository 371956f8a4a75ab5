package cluster_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
)

// answering waits until a member leads and says that these and no others answer it.
func (r *rig) answering(leader *cluster.Member, want ...*cluster.Member) {
	r.t.Helper()
	var ids []string
	for _, m := range want {
		ids = append(ids, m.ID())
	}
	slices.Sort(ids)
	r.eventually("those who answer are known", func() error {
		if got := slices.Sorted(maps.Keys(leader.Answering())); !slices.Equal(got, ids) {
			return fmt.Errorf("%v answer, want %v", got, ids)
		}
		return nil
	})
}

// lead makes a member the leader.
func (r *rig) lead(m *cluster.Member, of ...*cluster.Member) {
	r.t.Helper()
	r.eventually("the member leads", func() error {
		for _, x := range of {
			if x.Leader() == x.ID() {
				_ = x.HandOver(r.t.Context(), m.ID()) // asked again
			}
		}
		if m.Leader() != m.ID() {
			return fmt.Errorf("%s leads", m.Leader())
		}
		return nil
	})
}

// TestAnswering stops a member and starts it again. What raft knows is published for one member of a process alone, the one
// that was opened last, so that this has to lead.
func TestAnswering(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	b, ob := r.join(a, "b")
	c, _ := r.join(a, "c")
	r.lead(c, a, b)
	r.answering(c, a, b, c)
	if got := a.Answering(); got != nil {
		t.Errorf("one that does not lead says of others: %v", got)
	}
	b.Stop()
	r.answering(c, a, c)
	b = r.start(ob)
	r.lead(b, a, c)
	r.answering(b, a, b, c)
}
