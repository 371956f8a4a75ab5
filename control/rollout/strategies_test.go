package rollout_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store/progress"
)

func resume(t *testing.T, w *world) {
	t.Helper()
	w.now = w.now.Add(time.Minute)
	if err := rollouts.Resume(w.op, w.now); err != nil {
		t.Fatal(err)
	}
}

// turn aborts the rollout, as the API does.
func (w *world) turn() {
	rollouts.Return(w.op, operation.Aborted, w.now)
	w.op.Rollout.Aborted = true
	w.service.Release, w.service.PreviousRelease = w.op.Rollout.From, 0
}

func canary(steps ...*gantryv1.CanaryStep) *gantryv1.UpdateConfig {
	return &gantryv1.UpdateConfig{Strategy: "canary", Parallelism: 2, Canary: steps}
}

func TestCanaryGoesStepByStep(t *testing.T) {
	w := newWorld(10, canary(
		&gantryv1.CanaryStep{Count: 1, Weight: 5, Approval: true},
		&gantryv1.CanaryStep{Percent: 25, Weight: 40, Pause: durationpb.New(time.Hour)},
	))
	w.settle(t)
	w.update().settle(t)
	if w.op.State != operation.Paused || w.op.Waiting != operation.ForApproval || w.count(2, phaseRunning) != 1 || w.service.Weights[2] != 5 {
		t.Fatalf("%v %s", w.service.Weights, w)
	}
	resume(t, w)
	for w.count(2, phaseRunning) < 3 || w.step(t) {
		w.round(t)
	}
	if plan := w.decide(); plan.Again.IsZero() || w.count(2, phaseRunning) != 3 || w.service.Weights[2] != 40 || len(w.instances) != 10 {
		t.Fatalf("%v %v %s", plan, w.service.Weights, w)
	}
	w.now = w.now.Add(time.Hour)
	w.settle(t)
	w.wants(t, operation.Done, 10)
	if w.service.Weights != nil {
		t.Fatalf("the traffic is still held: %v", w.service.Weights)
	}
}

func TestAFailingCanaryIsNotApproved(t *testing.T) {
	w := newWorld(4, canary(&gantryv1.CanaryStep{Count: 1, Weight: 5, Approval: true}))
	w.service.Spec.Update.FailureAction = "rollback"
	w.settle(t)
	w.update().settle(t)
	w.bad[2] = true
	for _, i := range w.instances {
		if i.Instance.Release == 2 {
			i.Status = &gantryv1.InstanceStatus{Phase: phaseFailed}
		}
	}
	w.step(t)
	if w.service.Weights[2] != 0 {
		t.Fatalf("what fails keeps its traffic: %v", w.service.Weights)
	}
	w.settle(t)
	w.wants(t, operation.RolledBack, 4)
}

func TestBlueGreenSwitchesAtOnce(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "blue-green", Keep: durationpb.New(time.Hour)})
	w.settle(t)
	w.update()
	for w.count(2, phaseRunning) < 3 {
		if weight, held := w.service.Weights[2]; len(w.instances) > 3 && (!held || weight != 0) {
			t.Fatalf("traffic before the whole set is there: %v", w.service.Weights)
		}
		w.round(t)
	}
	w.round(t)
	w.step(t)
	if w.service.Weights[2] != 100 || w.count(1, phaseRunning) != 3 || w.decide().Again.IsZero() {
		t.Fatalf("%v %s", w.service.Weights, w)
	}

	w.now = w.now.Add(2 * time.Hour)
	w.settle(t)
	w.wants(t, operation.Done, 3)

}

func TestBlueGreenGoesBackWhileTheOldSetIsKept(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "blue-green", Keep: durationpb.New(time.Hour)})
	w.settle(t)
	w.update()
	for w.service.Weights[2] != 100 {
		w.round(t)
	}
	made := w.made
	w.turn()
	w.step(t)
	if w.service.Weights[2] != 0 {
		t.Fatalf("the traffic is not back at once: %v", w.service.Weights)
	}
	w.settle(t)
	w.wants(t, operation.Aborted, 3)
	if w.made != made || w.service.Weights != nil {
		t.Fatalf("the kept set was not used: %s", w)
	}
}

func TestABrokenBlueGreenNeverHasTraffic(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "blue-green", FailureAction: "rollback"})
	w.settle(t)
	w.breakNext().settle(t)
	w.wants(t, operation.RolledBack, 3)
}

func TestRecreateEndsAllBeforeItStartsAny(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "recreate"})
	w.settle(t)
	w.update()
	w.neverBoth(t)
	w.wants(t, operation.Done, 3)
}

func TestTheWayBackOfARecreateEndsAllBeforeItStartsAny(t *testing.T) {
	for name, turn := range map[string]func(t *testing.T, w *world){
		"by itself": func(_ *testing.T, w *world) { w.breakNext() },
		"aborted": func(t *testing.T, w *world) {
			w.update()
			for w.count(2, phaseRunning) < 2 {
				w.round(t)
			}
			w.turn()
		},
		"aborted at once": func(t *testing.T, w *world) {
			w.update()
			w.round(t)
			w.turn()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "recreate", FailureAction: "rollback"})
			w.settle(t)
			turn(t, w)
			w.neverBoth(t)
			w.settle(t)
			if w.service.Release != 1 || w.count(1, phaseRunning) != 3 {
				t.Fatal(w)
			}
		})
	}
}

func TestARecreateWaitsForInstancesThatAScaleTakesAway(t *testing.T) {
	w := newWorld(5, &gantryv1.UpdateConfig{Strategy: "recreate"})
	w.settle(t)
	w.service.Replicas = 3
	w.update()
	for w.op.State == operation.Pending || w.count(1, phaseRunning) > 2 { // the last two are slow to end
		w.step(t)
		if !w.node(w.instances[0]) {
			t.Fatal(w)
		}
	}
	w.neverBoth(t)
	w.wants(t, operation.Done, 3)
}

func TestARecreateEndsWhatNeverWorked(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "recreate", FailureAction: "continue"})
	w.round(t)
	w.update()
	w.op = rollouts.Plan(w.service, 0, "test")
	w.op.State = operation.Pending
	w.neverBoth(t)
	w.wants(t, operation.Done, 3)
}

func TestAPausedRecreateStartsNothingBesideTheOld(t *testing.T) {
	for name, turn := range map[string]func(w *world){"forth": func(*world) {}, "back": (*world).turn} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "recreate"})
			w.settle(t)
			w.update()
			for name == "back" && w.count(2, phaseRunning) < 3 {
				w.round(t)
			}
			turn(w)
			w.step(t)
			if err := operation.Pause(w.op); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				w.oneNeverBoth(t)
			}
			resume(t, w)
			w.neverBoth(t)
		})
	}
}

func TestARecreateThatHasTouchedNothingHasMovedNothing(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "recreate"})
	w.settle(t)
	w.blocked = true
	w.update()
	w.step(t)
	w.turn()
	w.settle(t)
	w.wants(t, operation.Aborted, 3)
	if w.op.Rollout.Moved != 0 { // what depends on it would be restarted
		t.Fatal(w)
	}
}

// neverBoth follows a rollout to its end, one instance after the other: at no time may both releases run.
func (w *world) neverBoth(t *testing.T) {
	t.Helper()
	for round := 0; operation.Active(w.op); round++ {
		if w.oneNeverBoth(t); round > 1000 {
			t.Fatalf("it does not end: %s", w)
		}
	}
}

// oneNeverBoth is one decision, and what one instance makes of it.
func (w *world) oneNeverBoth(t *testing.T) {
	t.Helper()
	w.step(t)
	w.now = w.now.Add(time.Second)
	runs := map[int64]int{}
	for _, i := range w.instances {
		if i.Status.Phase != phaseFailed && i.Status.Phase != phaseExited {
			runs[i.Instance.Release]++
		}
	}
	if len(runs) > 1 {
		t.Fatalf("both releases at once: %s", w)
	}
	for _, i := range slices.Clone(w.instances) {
		if w.node(i) {
			break
		}
	}
}

func TestAbortGoesBack(t *testing.T) {
	w := newWorld(5, nil)
	w.settle(t)
	w.update()
	for w.count(2, phaseRunning) < 2 {
		w.round(t)
	}
	w.turn()
	w.settle(t)
	w.wants(t, operation.Aborted, 5)
	if w.service.Release != 1 {
		t.Fatal(w)
	}
}

func TestAWayBackThatFailsIsSaid(t *testing.T) {
	w := newWorld(2, &gantryv1.UpdateConfig{FailureAction: "rollback", Order: "stop-first"})
	w.service.Spec.Rollback = &gantryv1.UpdateConfig{Order: "stop-first"}
	w.settle(t)
	w.bad[1] = true
	w.breakNext().settle(t)
	if w.op.State != operation.Failed || w.op.Hint == "" || w.service.Release != 1 {
		t.Fatal(w)
	}
}

func TestAWayBackThatIsResumedStillSaysWhatFailed(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{FailureAction: "rollback"})
	w.settle(t)
	w.breakNext()
	for !w.op.Rollout.Back {
		w.round(t)
	}
	why := w.op.Error
	if err := operation.Pause(w.op); err != nil || why == "" {
		t.Fatal(err, w)
	}
	resume(t, w)
	w.settle(t)
	w.wants(t, operation.RolledBack, 3)
	if w.op.Error != why || w.op.Hint == "" {
		t.Fatal(w)
	}
}

func TestAPausedWayBackHolds(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(6, &gantryv1.UpdateConfig{Order: order})
			w.service.Spec.Rollback = &gantryv1.UpdateConfig{Order: order}
			w.settle(t)
			w.update()
			for w.count(2, phaseRunning) < 4 {
				w.round(t)
			}
			w.turn()
			w.step(t)
			if err := operation.Pause(w.op); err != nil {
				t.Fatal(err)
			}
			w.settle(t)
			if w.count(2, phaseRunning) < 2 || w.op.State != operation.Paused || len(w.instances) != 6 {
				t.Fatalf("what was begun ends, no more: %s", w)
			}
			w.states["n1"] = progress.NodeDrained
			w.settle(t)
			for _, i := range w.instances {
				if i.Instance.Node == "n1" {
					t.Fatalf("a drained node waits for the rollout: %s", w)
				}
			}
			resume(t, w)
			w.settle(t)
			w.wants(t, operation.Aborted, 6)
		})
	}
}

// TestSlotsThatComeAfterTheSwitchAreNew: the old set, which is kept, has no traffic.
func TestSlotsThatComeAfterTheSwitchAreNew(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{Strategy: "blue-green", Keep: durationpb.New(time.Hour)})
	w.settle(t)
	w.update()
	for w.service.Weights[2] != 100 {
		w.round(t)
	}
	grows := func(replicas int) {
		t.Helper()
		w.service.Replicas = int32(replicas)
		for range 20 {
			w.round(t)
		}
		if w.count(1, phaseRunning) != 3 || w.count(2, phaseRunning) != replicas {
			t.Fatal(w)
		}
	}
	grows(5)
	if err := operation.Pause(w.op); err != nil {
		t.Fatal(err)
	}
	grows(6)
	resume(t, w)
	w.now = w.now.Add(2 * time.Hour)
	w.settle(t)
	w.wants(t, operation.Done, 6)
}
