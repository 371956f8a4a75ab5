package rollout_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store/progress"
)

func anyUpdate(t *rapid.T, order string) *gantryv1.UpdateConfig {
	u := &gantryv1.UpdateConfig{
		Order: order, Parallelism: rapid.Int32Range(0, 3).Draw(t, "parallelism"),
		FailureAction: rapid.SampledFrom([]string{"", "continue", "rollback"}).Draw(t, "action"),
		Strategy:      rapid.SampledFrom([]string{"", "canary", "recreate"}).Draw(t, "strategy"),
		Canary:        []*gantryv1.CanaryStep{{Count: 1, Approval: true}, {Percent: 50, Weight: 30, Pause: durationpb.New(time.Minute)}},
	}
	if order == "start-first" && u.Strategy == "" && rapid.Bool().Draw(t, "blue-green") {
		u.Strategy = "blue-green"
	}
	if rapid.Bool().Draw(t, "slowly") {
		u.Delay, u.Monitor = durationpb.New(10*time.Second), durationpb.New(5*time.Second)
	}
	return u
}

// TestRandomSchedules lets nodes move, fail, come and go in any order, with updates to releases that work or do not, with
// scaling, aborting and servers that die in the middle of a plan. In every state no slot holds more than it may; in the end all
// is as it is wanted.
func TestRandomSchedules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		order := rapid.SampledFrom([]string{"start-first", "stop-first"}).Draw(t, "order")
		w := newWorld(rapid.Int32Range(0, 5).Draw(t, "replicas"), anyUpdate(t, order))
		w.service.Spec.Rollback = &gantryv1.UpdateConfig{Order: order}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			w.happen(t)
			w.check(t, order)
		}
		w.calm(t)
		w.settle(t)
		for w.op.State == operation.Paused {
			w.now = w.now.Add(time.Minute)
			if err := rollouts.Resume(w.op, w.now); err != nil {
				t.Fatal(err)
			}
			w.settle(t)
		}
		if operation.Active(w.op) || rollouts.Goal(w.op) != w.service.Release || w.service.Weights != nil {
			t.Fatalf("the rollout has no end, or another one: %v %s", w.service.Weights, w)
		}
		if got := w.count(w.service.Release, phaseRunning); got != int(w.service.Replicas) || len(w.instances) != got {
			t.Fatalf("settled with %d of %d: %s", got, w.service.Replicas, w)
		}
	})
}

// happen does something that can happen at any time.
func (w *world) happen(t *rapid.T) {
	what := rapid.IntRange(0, 21).Draw(t, "what")
	switch {
	case what == 0:
		w.update()
	case what == 1:
		w.breakNext()
	case what == 2:
		w.service.Replicas = rapid.Int32Range(0, 5).Draw(t, "scale")
	case what == 3:
		w.service.Stopped = !w.service.Stopped
	case what == 4:
		n := rapid.SampledFrom(w.nodes).Draw(t, "node")
		if w.states[n] == progress.NodeLost {
			w.heal(n)
		} else {
			w.lose(n)
		}
	case what == 5:
		n := rapid.SampledFrom(w.nodes).Draw(t, "node")
		switch w.states[n] {
		case progress.NodeServes:
			w.states[n] = progress.NodeDrained
		case progress.NodeDrained:
			w.states[n] = progress.NodeServes
		}
	case what == 6:
		if operation.Active(w.op) && !w.op.Rollout.Back && w.op.Rollout.From != 0 {
			w.turn()
		}
	case what == 7:
		if w.op.State == operation.Paused {
			_ = rollouts.Resume(w.op, w.now)
		} else {
			_ = operation.Pause(w.op)
		}
	case what == 8:
		w.crash(t, rapid.IntRange(0, 3).Draw(t, "applied"))
	case what == 9:
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "seconds")) * time.Second)
	case what < 16 && len(w.instances) > 0:
		i := w.instances[rapid.IntRange(0, len(w.instances)-1).Draw(t, "moves")]
		if w.node(i); what == 10 && i.Status.Phase == phaseRunning {
			i.Status = &gantryv1.InstanceStatus{Phase: phaseFailed, Error: "by chance"}
		}
	default:
		w.step(t)
	}
}

// calm ends what disturbs.
func (w *world) calm(t *rapid.T) {
	for _, n := range w.nodes {
		if w.states[n] == progress.NodeLost {
			w.heal(n)
		}
		w.states[n] = progress.NodeServes
	}
	for _, i := range w.instances { // what failed by chance works when it is tried again
		if i.Status.Phase == phaseFailed {
			i.Status = &gantryv1.InstanceStatus{Phase: phasePending}
		}
	}
	w.service.Stopped = false
	w.bad = map[int64]bool{}
	w.now = w.now.Add(time.Hour)
}

func (w *world) check(t *rapid.T, order string) {
	wanted, perSlot := map[int32]int{}, map[int32]int{}
	for _, i := range w.instances {
		if s := w.states[i.Instance.Node]; s == progress.NodeLost || w.op.Rollout.FailedInstance == i.Instance.Meta.Key {
			continue
		}
		perSlot[i.Instance.Slot]++
		if i.Instance.Desired != desiredRemoved {
			wanted[i.Instance.Slot]++
		}
	}
	for slot, n := range wanted {
		if n > 2 {
			t.Fatalf("slot %d is to hold %d instances: %s", slot, n, w)
		}
	}
	for slot, n := range perSlot {
		if order == "stop-first" && n > 1 && !w.healed {
			t.Fatalf("slot %d holds %d instances: %s", slot, n, w)
		}
	}
}

// TestARolloutTakesNoMoreThanItsShare updates a service on nodes that work, with servers that die at any moment: with
// start-first nothing is ever missing, with stop-first no more than its parallelism.
func TestARolloutTakesNoMoreThanItsShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		order := rapid.SampledFrom([]string{"start-first", "stop-first"}).Draw(t, "order")
		u := anyUpdate(t, order)
		if u.Strategy == "recreate" {
			u.Strategy = ""
		}
		w := newWorld(rapid.Int32Range(1, 7).Draw(t, "replicas"), u)
		w.service.Spec.Rollback = &gantryv1.UpdateConfig{Order: order, Parallelism: u.Parallelism}
		w.settle(t)
		if rapid.Bool().Draw(t, "works") {
			w.update()
		} else {
			w.breakNext()
		}
		least := int(w.service.Replicas)
		if order == "stop-first" {
			least -= max(1, int(u.Parallelism))
		}
		if u.FailureAction == "continue" && w.bad[2] {
			least = 0
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				w.crash(t, rapid.IntRange(0, 2).Draw(t, "applied"))
			case 1:
				w.now = w.now.Add(11 * time.Second)
			case 2, 3:
				if n := len(w.instances); n > 0 {
					w.node(w.instances[rapid.IntRange(0, n-1).Draw(t, "moves")])
				}
			default:
				w.step(t)
			}
			if got := w.serving(); got < least {
				t.Fatalf("%d of %d serve, %d have to: %s", got, w.service.Replicas, least, w)
			}
		}
	})
}

// TestADecisionIsTheSameTwice: what is decided changes nothing that is not stored.
func TestADecisionIsTheSameTwice(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.update()
	w.instances[0].Instance.Meta.CreatedAt = timestamppb.New(w.now)
	a, b := w.decide(), w.decide()
	if len(a.Changes) != len(b.Changes) || len(a.Changes) == 0 || a.Changes[0].Slot != b.Changes[0].Slot || w.op.State != operation.Pending {
		t.Fatalf("%v, then %v: %s", a, b, w)
	}
}
