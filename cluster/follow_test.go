package cluster_test

import (
	"errors"
	"testing"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

func TestAFollowerSucceedsOnlyALeaderThatIsGone(t *testing.T) {
	r := newRig(t)
	first := r.start(r.options("a", identity.Server))
	b, _ := r.join(first, "b")
	c, _ := r.join(first, "c")
	followers := []*cluster.Member{b, c}
	leader := first.ID()
	for _, m := range []*cluster.Member{first, b, c} {
		r.eventually("all know the leader", func() error {
			if m.Leader() != leader {
				return errors.New(m.Leader())
			}
			return nil
		})
		if asked, err := m.Succeed(t.Context()); asked || err != nil {
			t.Errorf("a leader that is there is followed: %v", err)
		}
	}
	check(t, put(t.Context(), first, "k", "v"))
	first.Kill()
	asked := make(chan bool, 2)
	for _, m := range followers {
		go func() {
			ok, err := m.Succeed(t.Context())
			if err != nil {
				t.Error(err)
			}
			asked <- ok
		}()
	}
	if one, two := <-asked, <-asked; !one && !two {
		t.Error("none asked to be elected")
	}
	r.eventually("one follows", func() error {
		if b.Leader() == leader || b.Leader() == "" || b.Leader() != c.Leader() {
			return errors.New(b.Leader() + " and " + c.Leader())
		}
		return nil
	})
	r.eventually("the cluster takes changes", func() error { return put(t.Context(), b, "k2", "v") })
	if got := read(t, c, "k"); got != "v" {
		t.Errorf("what was acknowledged is %q", got)
	}
}

// Raft gives a hand-over to a member that is away up by itself.
func TestTheLeadIsHandedToOneThatIsThere(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	b, _ := r.join(a, "b")
	c, _ := r.join(a, "c")
	b.Stop()
	if err := a.HandOver(t.Context(), b.ID()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("handed over to one that is away: %v", err)
	}
	r.eventually("the lead is handed over", func() error { return a.HandOver(t.Context()) }) // to one that has just come
	r.eventually("the one that is there leads", func() error {
		if c.Leader() != c.ID() {
			return errors.New(c.Leader())
		}
		return nil
	})
}
