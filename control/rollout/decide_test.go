package rollout_test

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store/progress"
)

func (w *world) wants(t *testing.T, state gantryv1.Operation_State, ready int) {
	t.Helper()
	if w.op.State != state {
		t.Fatalf("the rollout is %s, wanted %s: %s", operation.Word(w.op.State), operation.Word(state), w)
	}
	if got := w.count(w.service.Release, phaseRunning); got != ready || len(w.instances) != ready {
		t.Fatalf("%d of %d instances run: %s", got, ready, w)
	}
}

func TestFillsAndShrinks(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.wants(t, operation.Done, 3)
	w.service.Replicas = 1
	w.settle(t)
	w.wants(t, operation.Done, 1)
	if w.instances[0].Instance.Slot != 1 {
		t.Fatal(w)
	}
}

func TestStopKeepsAndStartRevives(t *testing.T) {
	w := newWorld(2, nil)
	w.settle(t)
	w.service.Stopped = true
	w.settle(t)
	if len(w.instances) != 2 || w.instances[0].Status.Phase != phaseExited {
		t.Fatal(w)
	}
	w.service.Stopped = false
	w.settle(t)
	w.wants(t, operation.Done, 2)
	if w.made != 2 {
		t.Fatal(w)
	}
}

func TestWhatIsStoppedIsNotStartedToBeReplaced(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.service.Stopped = true
	w.settle(t)
	w.service.Stopped = false
	w.update()
	for _, c := range w.decide().Changes {
		if c.Action == rollout.SetDesired && c.Desired == desiredRunning {
			t.Fatalf("an instance of the old release is started: %s", w)
		}
	}
	w.settle(t)
	w.wants(t, operation.Done, 3)
}

func TestRemovingEndsWithTheService(t *testing.T) {
	w := newWorld(2, nil)
	w.settle(t)
	w.service.Removing = true
	for len(w.instances) > 0 {
		w.step(t)
		w.node(w.instances[0])
	}
	plan := w.decide()
	if len(plan.Changes) != 1 || plan.Changes[0].Action != rollout.DeleteService {
		t.Fatalf("%v", plan)
	}
}

func TestRemovingDoesNotWaitForANodeThatIsDown(t *testing.T) {
	w := newWorld(1, nil)
	w.settle(t)
	w.lose(w.instances[0].Instance.Node)
	w.service.Removing = true
	w.step(t)
	plan := w.decide()
	if len(plan.Changes) != 1 || plan.Changes[0].Action != rollout.DeleteService || w.instances[0].Instance.Desired != desiredRemoved {
		t.Fatalf("%v: %s", plan, w)
	}
}

func TestFailedUpdateHaltsAndKeepsTheOldOnes(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.breakNext().settle(t)
	if w.op.State != operation.Paused || w.op.Waiting != operation.ForFailure || w.op.Error == "" || w.made != 4 {
		t.Fatalf("one at a time was wanted, and a pause: %s", w)
	}
	if w.count(1, phaseRunning) != 3 {
		t.Fatalf("old instances were taken down: %s", w)
	}
}

func TestResumedAfterAFailureItIsTriedAgain(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.breakNext().settle(t)
	failed := w.op.Rollout.FailedInstance
	w.bad = map[int64]bool{}
	resume(t, w)
	w.settle(t)
	w.wants(t, operation.Done, 3)
	for _, i := range w.instances {
		if i.Instance.Meta.Key == failed {
			t.Fatalf("what failed was kept: %s", w)
		}
	}
}

func TestFailedUpdateRollsBack(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(3, &gantryv1.UpdateConfig{FailureAction: "rollback", Order: order})
			w.service.Spec.Rollback = &gantryv1.UpdateConfig{Order: order}
			w.settle(t)
			w.breakNext().settle(t)
			if w.service.Release != 1 || w.op.Error == "" || w.op.Rollout.FailedInstance == "" {
				t.Fatal(w)
			}
			w.wants(t, operation.RolledBack, 3)
		})
	}
}

func TestWhatFailedIsKeptForAMoment(t *testing.T) {
	w := newWorld(1, &gantryv1.UpdateConfig{FailureAction: "rollback"})
	w.settle(t)
	w.breakNext()
	for !w.op.Rollout.Back {
		w.step(t)
		for _, i := range w.instances {
			w.node(i)
		}
	}
	w.step(t)
	if i := w.find(t, w.op.Rollout.FailedInstance); i.Instance.Desired != desiredStopped {
		t.Fatalf("its log is gone: %s", w)
	}
	if plan := w.decide(); plan.Again.IsZero() {
		t.Fatalf("it would be kept for ever: %s", w)
	}
}

func TestAShareOfFailuresIsTolerated(t *testing.T) {
	for name, test := range map[string]struct {
		ratio float64
		fails int
		state gantryv1.Operation_State
	}{
		"none":        {0.34, 0, operation.Done},
		"one of four": {0.34, 1, operation.Done},
		"two of four": {0.34, 2, operation.Paused},
		"no share":    {0, 1, operation.Paused},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(4, &gantryv1.UpdateConfig{MaxFailureRatio: test.ratio})
			w.settle(t)
			w.update()
			for range 100 {
				w.step(t)
				for _, i := range append([]*gantryv1.InstanceView(nil), w.instances...) {
					w.node(i)
					if i.Instance.Release == 2 && int(i.Instance.Slot) <= test.fails {
						i.Status = &gantryv1.InstanceStatus{Phase: phaseFailed}
					}
				}
				w.now = w.now.Add(time.Second)
			}
			if w.op.State != test.state {
				t.Fatal(w)
			}
		})
	}
}

func TestABrokenFirstReleaseIsReplaced(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{FailureAction: "rollback"})
	w.bad[1] = true
	w.settle(t)
	if w.op.State != operation.Running {
		t.Fatalf("there is nothing to go back to: %s", w)
	}
	w.update().settle(t)
	w.wants(t, operation.Done, 3)
}

func TestANewUpdateTakesThePlaceOfOneThatFailed(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.breakNext().settle(t)
	w.update()
	if w.op.Rollout.From != 1 {
		t.Fatalf("release 2 never worked: %s", w)
	}
	w.settle(t)
	w.wants(t, operation.Done, 3)
}

func TestWhatCannotBeSharedIsStoppedFirst(t *testing.T) {
	bind := &gantryv1.Mount{Type: gantryv1.Mount_TYPE_BIND, Source: "/srv", Target: "/srv"}
	for name, test := range map[string]struct {
		container *gantryv1.ContainerSpec
		first     rollout.Action
	}{
		"nothing shared": {&gantryv1.ContainerSpec{}, rollout.Create},
		"writable bind":  {&gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{bind}}, rollout.SetDesired},
		"read-only bind": {&gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{
			Type: gantryv1.Mount_TYPE_BIND, Source: "/srv", Target: "/srv", ReadOnly: true,
		}}}, rollout.Create},
		"host port":         {&gantryv1.ContainerSpec{Ports: []*gantryv1.PortPublish{{Mode: "host"}}}, rollout.SetDesired},
		"fixed address":     {&gantryv1.ContainerSpec{Network: &gantryv1.NetworkMode{Address: "10.1.0.5"}}, rollout.SetDesired},
		"fixed MAC address": {&gantryv1.ContainerSpec{MacAddress: "02:00:00:00:00:01"}, rollout.SetDesired},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(1, nil)
			w.service.Spec.Container = test.container
			w.settle(t)
			w.update()
			if plan := w.decide(); len(plan.Changes) != 1 || plan.Changes[0].Action != test.first {
				t.Fatalf("%+v", plan)
			}
		})
	}
}

func TestDelayIsKept(t *testing.T) {
	w := newWorld(2, &gantryv1.UpdateConfig{Delay: durationpb.New(time.Minute)})
	w.settle(t)
	w.now = w.now.Add(time.Hour)
	w.update()
	w.step(t)
	w.node(w.find(t, "i3")) // placed
	w.node(w.find(t, "i3")) // runs
	w.step(t)
	ready := w.now
	w.now = w.now.Add(time.Second)
	w.step(t)
	w.node(w.find(t, "i1")) // the first old one goes
	plan := w.decide()
	if len(plan.Changes) != 0 || !plan.Again.Equal(ready.Add(time.Minute)) {
		t.Fatalf("%+v: %s", plan, w)
	}
	w.settle(t)
	w.wants(t, operation.Done, 2)
}

func TestMonitorIsWatched(t *testing.T) {
	w := newWorld(1, &gantryv1.UpdateConfig{Monitor: durationpb.New(time.Minute), FailureAction: "rollback"})
	w.settle(t)
	w.update()
	w.step(t)
	w.node(w.find(t, "i2"))
	w.node(w.find(t, "i2"))
	plan := w.decide()
	if w.step(t); w.op.State != operation.Running || !plan.Again.Equal(w.now.Add(time.Minute)) || len(w.instances) != 2 {
		t.Fatalf("nobody watches: %v: %s", plan, w)
	}
	w.now = w.now.Add(30 * time.Second)
	w.find(t, "i2").Status = &gantryv1.InstanceStatus{Phase: phaseExited, ExitCode: 1}
	w.bad[2] = true
	w.settle(t)
	w.wants(t, operation.RolledBack, 1)
}

// TestACrashingReleaseTakesOneSlot: without a health check the first instance has to run for a moment before it is believed.
func TestACrashingReleaseTakesOneSlot(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(3, &gantryv1.UpdateConfig{Order: order})
			w.settle(t)
			w.update()
			for range 20 { // it runs, and ends a moment later
				w.step(t)
				for _, i := range append([]*gantryv1.InstanceView(nil), w.instances...) {
					if w.node(i); i.Instance.Release == 2 && i.Status.Phase == phaseRunning {
						w.step(t)
						i.Status = &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RESTARTING, ExitCode: 1, Streak: 1}
					}
				}
				w.now = w.now.Add(100 * time.Millisecond)
			}
			if w.op.Rollout.Moved != 1 || w.count(1, phaseRunning) < 2 {
				t.Fatal(w)
			}
		})
	}
}

func TestAPausedRolloutBeginsNothing(t *testing.T) {
	w := newWorld(5, nil)
	w.settle(t)
	w.update()
	w.step(t)
	if err := operation.Pause(w.op); err != nil {
		t.Fatal(err)
	}
	w.settle(t)
	if w.count(2, phaseRunning) != 1 || w.count(1, phaseRunning) != 4 || len(w.instances) != 5 {
		t.Fatalf("what was begun ends, no more: %s", w)
	}
	resume(t, w)
	w.settle(t)
	w.wants(t, operation.Done, 5)
}

func TestAServiceWaitsForItsDependencies(t *testing.T) {
	w := newWorld(2, nil)
	w.blocked = true
	w.settle(t)
	if len(w.instances) != 0 || w.op.State != operation.Pending {
		t.Fatal(w)
	}
	w.blocked = false
	w.settle(t)
	w.blocked = true // later, a dependency holds back no instance that has to be made again
	w.lose(w.instances[0].Instance.Node)
	w.settle(t)
	if w.count(1, phaseRunning) != 2 {
		t.Fatal(w)
	}
	w.update().settle(t)
	if w.op.State != operation.Pending || w.count(1, phaseRunning) != 2 {
		t.Fatal(w)
	}
}

func TestAGlobalServiceFollowsItsNodes(t *testing.T) {
	w := newWorld(1, nil)
	w.service.Spec.Mode = "global"
	w.settle(t)
	w.wants(t, operation.Done, 3)
	slots := map[string]int32{}
	for _, i := range w.instances {
		slots[i.Instance.Node] = i.Instance.Slot
	}
	w.nodes = append([]string{"n0"}, w.nodes...)
	w.settle(t)
	w.wants(t, operation.Done, 4)
	w.update().settle(t)
	w.wants(t, operation.Done, 4)
	w.states["n2"] = progress.NodeDrained
	w.settle(t)
	w.wants(t, operation.Done, 3)
	for _, i := range w.instances {
		if was := slots[i.Instance.Node]; was != 0 && was != i.Instance.Slot {
			t.Fatalf("a node's slot changed: %s", w)
		}
	}
}

func TestJobsAreLeftAlone(t *testing.T) {
	w := newWorld(2, nil)
	w.service.Spec.Mode = "replicated-job"
	if w.step(t) {
		t.Fatal(w)
	}
}

// TestNumbersThatCannotBe: they are refused at the API, but what is stored has to be lived with.
func TestNumbersThatCannotBe(t *testing.T) {
	for _, n := range []int32{-1, math.MinInt32} {
		w := newWorld(1, nil)
		w.settle(t)
		w.service.Replicas = n
		w.settle(t)
		if len(w.instances) != 0 {
			t.Errorf("%d replicas: %s", n, w)
		}
	}
	w := newWorld(0, nil)
	w.service.Replicas = math.MaxInt32
	w.step(t)
}
