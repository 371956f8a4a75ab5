package rollout_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
)

const (
	phaseRunning = gantryv1.InstanceStatus_PHASE_RUNNING
	phaseExited  = gantryv1.InstanceStatus_PHASE_EXITED
	phasePending = gantryv1.InstanceStatus_PHASE_PENDING
	phaseFailed  = gantryv1.InstanceStatus_PHASE_FAILED

	desiredRunning = gantryv1.Instance_DESIRED_RUNNING
	desiredRemoved = gantryv1.Instance_DESIRED_REMOVED
	desiredStopped = gantryv1.Instance_DESIRED_STOPPED
)

// world is a service with its instances, as a node would move them.
type world struct {
	service   *gantryv1.Service
	instances []*gantryv1.InstanceView
	made      int
	now       time.Time
}

func newWorld(replicas int32, update *gantryv1.UpdateConfig) *world {
	return &world{
		now: time.Unix(1_800_000_000, 0),
		service: &gantryv1.Service{
			Meta: &gantryv1.Meta{Key: "p/a/web"}, Environment: "p", App: "a", Name: "web", Replicas: replicas, Release: 1,
			Spec: &gantryv1.ServiceSpec{Update: update, Container: &gantryv1.ContainerSpec{}},
		},
	}
}

func (w *world) decide() rollout.Plan {
	return rollout.Decide(rollout.Input{
		Service: w.service, Release: &gantryv1.Release{Number: w.service.Release, Spec: w.service.Spec},
		Instances: w.instances, Now: w.now,
	})
}

// step decides and applies once; it reports whether anything changed.
func (w *world) step(t rapid.TB) bool {
	plan := w.decide()
	for _, c := range plan.Changes {
		switch c.Action {
		case rollout.Create:
			w.made++
			w.instances = append(w.instances, &gantryv1.InstanceView{
				Instance: &gantryv1.Instance{
					Meta: &gantryv1.Meta{Key: fmt.Sprint("i", w.made), CreatedAt: timestamppb.New(w.now.Add(time.Duration(w.made)))},
					Slot: c.Slot, Release: w.service.Release, Desired: desiredRunning, Service: "web", App: "a", Node: "n",
				},
				Status: &gantryv1.InstanceStatus{Phase: phasePending},
			})
		case rollout.SetDesired:
			w.find(t, c.Instance).Instance.Desired = c.Desired
		case rollout.Rollback:
			w.service.Release, w.service.PreviousRelease = w.service.PreviousRelease, 0
		}
	}
	return len(plan.Changes) > 0
}

func (w *world) find(t rapid.TB, id string) *gantryv1.InstanceView {
	for _, i := range w.instances {
		if i.Instance.Meta.Key == id {
			return i
		}
	}
	t.Fatalf("the plan names the unknown instance %s", id)
	return nil
}

// node brings one instance as far as it is wanted.
func (w *world) node(n int) {
	i := w.instances[n]
	switch i.Instance.Desired {
	case desiredRemoved:
		w.instances = append(w.instances[:n], w.instances[n+1:]...)
	case desiredStopped:
		i.Status.Phase = phaseExited
	default:
		i.Status.Phase = phaseRunning
		i.Status.StartedAt = timestamppb.New(w.now)
	}
}

func (w *world) settle(t rapid.TB) {
	for range 1000 {
		changed := w.step(t)
		for n := 0; n < len(w.instances); n++ {
			before := len(w.instances)
			was := w.instances[n].Status.Phase
			w.node(n)
			if len(w.instances) < before {
				changed = true
				n--
			} else if w.instances[n].Status.Phase != was {
				changed = true
			}
		}
		w.now = w.now.Add(time.Second)
		if !changed && w.decide().Again.IsZero() {
			return
		}
	}
	t.Fatalf("did not settle: %v", w.instances)
}

func (w *world) count(release int64, phase gantryv1.InstanceStatus_Phase) int {
	n := 0
	for _, i := range w.instances {
		if i.Instance.Release == release && i.Status.Phase == phase && i.Instance.Desired == desiredRunning {
			n++
		}
	}
	return n
}

func TestFillsAndShrinks(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	if w.count(1, phaseRunning) != 3 {
		t.Fatalf("after the start: %v", w.instances)
	}
	w.service.Replicas = 1
	w.settle(t)
	if len(w.instances) != 1 || w.instances[0].Instance.Slot != 1 {
		t.Fatalf("after scaling down: %v", w.instances)
	}
}

func TestStopKeepsAndStartRevives(t *testing.T) {
	w := newWorld(2, nil)
	w.settle(t)
	w.service.Stopped = true
	w.settle(t)
	if len(w.instances) != 2 || w.instances[0].Status.Phase != phaseExited {
		t.Fatalf("stopped: %v", w.instances)
	}
	w.service.Stopped = false
	w.settle(t)
	if w.count(1, phaseRunning) != 2 || w.made != 2 {
		t.Fatalf("started again: %v", w.instances)
	}
}

func TestRemovingEndsWithTheService(t *testing.T) {
	w := newWorld(2, nil)
	w.settle(t)
	w.service.Removing = true
	for len(w.instances) > 0 {
		w.step(t)
		w.node(0)
	}
	plan := w.decide()
	if len(plan.Changes) != 1 || plan.Changes[0].Action != rollout.DeleteService {
		t.Fatalf("%v", plan)
	}
}

func TestFailedUpdateHaltsAndKeepsTheOldOnes(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.service.Release = 2
	w.step(t)
	if w.made != 4 {
		t.Fatalf("one at a time was wanted: %v", w.instances)
	}
	w.instances[3].Status.Phase = phaseFailed
	if w.step(t) {
		t.Fatalf("the update went on: %v", w.instances)
	}
	if w.count(1, phaseRunning) != 3 {
		t.Fatalf("old instances were taken down: %v", w.instances)
	}
}

func TestFailedUpdateRollsBack(t *testing.T) {
	w := newWorld(3, &gantryv1.UpdateConfig{FailureAction: "rollback"})
	w.settle(t)
	w.service.Release, w.service.PreviousRelease = 2, 1
	w.step(t)
	w.instances[3].Status.Phase = phaseFailed
	w.step(t)
	if w.service.Release != 1 {
		t.Fatalf("still on release %d", w.service.Release)
	}
	w.settle(t)
	if w.count(1, phaseRunning) != 3 || len(w.instances) != 3 {
		t.Fatalf("after the rollback: %v", w.instances)
	}
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
		"fixed address":     {&gantryv1.ContainerSpec{Network: &gantryv1.NetworkMode{Address: "10.1.0.5"}}, rollout.SetDesired},
		"fixed MAC address": {&gantryv1.ContainerSpec{MacAddress: "02:00:00:00:00:01"}, rollout.SetDesired},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(1, nil)
			w.service.Spec.Container = test.container
			w.settle(t)
			w.service.Release = 2
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
	w.service.Release = 2
	w.step(t)
	w.node(2) // the first new one runs
	w.step(t)
	w.node(0) // the first old one goes
	plan := w.decide()
	if len(plan.Changes) != 0 || !plan.Again.Equal(w.now.Add(time.Minute)) {
		t.Fatalf("%+v", plan)
	}
}

// TestRandomSchedules lets nodes move in any order, with updates, scaling and failures between, and checks what must hold in
// every state: a stop-first slot never holds two, an update never takes more than its share away, and all settles.
func TestRandomSchedules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		order := rapid.SampledFrom([]string{"start-first", "stop-first"}).Draw(t, "order")
		w := newWorld(rapid.Int32Range(0, 5).Draw(t, "replicas"), &gantryv1.UpdateConfig{
			Order: order, Parallelism: rapid.Int32Range(0, 3).Draw(t, "parallelism"),
		})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				w.service.PreviousRelease, w.service.Release = w.service.Release, w.service.Release+1
			case 1:
				w.service.Replicas = rapid.Int32Range(0, 5).Draw(t, "scale")
			case 2:
				w.service.Stopped = !w.service.Stopped
			case 3:
				if n := len(w.instances); n > 0 {
					w.instances[rapid.IntRange(0, n-1).Draw(t, "fails")].Status.Phase = phaseFailed
				}
			case 4, 5, 6:
				if n := len(w.instances); n > 0 {
					w.node(rapid.IntRange(0, n-1).Draw(t, "moves"))
				}
			default:
				w.step(t)
			}
			w.check(t, order)
		}
		w.service.Stopped = false
		w.settle(t)
		if got := w.count(w.service.Release, phaseRunning); got != int(w.service.Replicas) || len(w.instances) != got {
			t.Fatalf("settled with %d of %d: %v", got, w.service.Replicas, w.instances)
		}
	})
}

func (w *world) check(t *rapid.T, order string) {
	perSlot, current := map[int32]int{}, map[string]int{}
	for _, i := range w.instances {
		perSlot[i.Instance.Slot]++
		if i.Instance.Desired == desiredRunning && i.Instance.Release == w.service.Release {
			current[fmt.Sprint(i.Instance.Slot)]++
		}
	}
	for slot, n := range perSlot {
		if order == "stop-first" && n > 1 {
			t.Fatalf("slot %d holds %d instances", slot, n)
		}
	}
	for slot, n := range current {
		if n > 1 {
			t.Fatalf("slot %s holds %d instances of the current release", slot, n)
		}
	}
}
