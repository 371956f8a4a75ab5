package schedule

import (
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// TestOneThatIsNotCompleteHoldsUpNoOther: a service that lacks an instance is evened out when it has it, the others before.
func TestOneThatIsNotCompleteHoldsUpNoOther(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("lacks", 4, rules(func(p *gantryv1.Placement) { p.Rebalance = true }))
	w.service("web", 4, rules(func(p *gantryv1.Placement) { p.Rebalance = true }))
	w.settle(t)
	w.say("lacks", gantryv1.InstanceStatus_PHASE_FAILED)
	w.say("web", gantryv1.InstanceStatus_PHASE_RUNNING)
	w.node("n2")
	now := time.Unix(1_800_000_000, 0)
	evict, again := w.planner.rebalance(w.reader(), now)
	if len(evict) != 1 || w.get(evict[0].instance).Service != "web" {
		t.Fatalf("%v are moved, asked again at %s", evict, again)
	}
	w.say("lacks", gantryv1.InstanceStatus_PHASE_RUNNING)
	if evict, again = w.planner.rebalance(w.reader(), again); len(evict) != 0 || again.IsZero() {
		t.Fatalf("%v are moved while another is on its way", evict)
	}
	for range 100 { // the one that was moved never comes up
		now = again
		if evict, again = w.planner.rebalance(w.reader(), now); len(evict) == 1 && w.get(evict[0].instance).Service == "lacks" {
			return
		}
		if len(evict) != 0 || again.IsZero() {
			t.Fatalf("%v are moved, asked again at %s", evict, again)
		}
	}
	t.Error("a move that does not end holds up all others")
}

// say has all instances of a service be in a phase.
func (w *world) say(service string, phase gantryv1.InstanceStatus_Phase) {
	for _, i := range w.instances() {
		if i.Service == service {
			w.put(&gantryv1.InstanceStatus{Meta: store.NewMeta(i.Meta.Key), Phase: phase})
		}
	}
}
