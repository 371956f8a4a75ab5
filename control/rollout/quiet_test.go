package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// TestRestingServicesAreDecidedAlike lets random things happen to a service at rest. What is decided by the slots in which
// something may be to do must be what is decided by all of them, and a service in which all is well must have none.
func TestRestingServicesAreDecidedAlike(t *testing.T) {
	states := map[string]progress.NodeState{"a": progress.NodeServes, "b": progress.NodeServes, "c": progress.NodeServes}
	node := func(id string) progress.NodeState { return states[id] }
	small := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 9))
		for id := range states {
			states[id] = progress.NodeServes
		}
		x, now := newIndex(), time.Unix(1e9, 0)
		s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Environment: "p", App: "a", Name: "web", Release: 2, Replicas: 8,
			Spec: &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}, Update: &gantryv1.UpdateConfig{Parallelism: 1 + rng.Int32N(3)}}}
		x.setService(s)
		e := x.entry(s.Meta.Key)
		e.op = &gantryv1.Operation{Meta: store.NewMeta("p/a/web/1"), State: operation.Done, Rollout: &gantryv1.Rollout{To: 2}}
		for slot := range s.Replicas {
			x.see(e, randomView(rng, fmt.Sprint("i", slot), slot+1, true), now)
		}
		for step := range 40 {
			befall(rng, x, e, states, step, now)
			all := Decide(Input{Service: e.service, Operation: e.op, Now: now, Node: node,
				Release: &gantryv1.Release{Number: e.service.Release, Spec: e.service.Spec}, Instances: slices.Collect(maps.Values(e.views))})
			slots := e.listen(node)
			if len(slots) < int(e.service.Replicas)/2 {
				small++
			}
			some := Decide(Input{Service: e.service, Operation: e.op, Now: now, Node: node,
				Release: &gantryv1.Release{Number: e.service.Release, Spec: e.service.Spec}, Slots: slots, Instances: e.in(slots)})
			if a, b := inOrder(all), inOrder(some); !reflect.DeepEqual(a, b) || all.Again != some.Again || all.Operation != some.Operation {
				t.Fatalf("seed %d, step %d: by all slots\n%+v\nby %v\n%+v", seed, step, a, slots, b)
			}
		}
	}
	if small < 1000 {
		t.Errorf("only %d of 12000 decisions were about less than half of the slots", small)
	}
}

func inOrder(p Plan) []Change {
	return slices.SortedFunc(slices.Values(p.Changes), func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Action, b.Action), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Instance, b.Instance))
	})
}

func randomView(rng *rand.Rand, id string, slot int32, well bool) *gantryv1.InstanceView {
	i := &gantryv1.Instance{Meta: &gantryv1.Meta{Key: id, CreatedAt: timestamppb.New(time.Unix(1e9, 0))}, Slot: slot, Release: 2,
		Node: []string{"a", "b", "c"}[rng.IntN(3)], Desired: running, App: "a", Service: "web"}
	v := &gantryv1.InstanceView{Instance: i, Status: &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RUNNING}}
	if well {
		return v
	}
	switch rng.IntN(7) {
	case 0:
		v.Status = nil
	case 1:
		v.Status.Phase = gantryv1.InstanceStatus_PHASE_FAILED
	case 2:
		v.Status.Phase = gantryv1.InstanceStatus_PHASE_CREATING
	case 3:
		i.Release = 1
	case 4:
		i.Desired = removed
	case 5:
		i.Node, v.Status = "", nil
	case 6:
		i.Job = 7
	}
	return v
}

// befall has one thing happen, as the index hears of it.
func befall(rng *rand.Rand, x *index, e *entry, states map[string]progress.NodeState, step int, now time.Time) {
	ids := slices.Sorted(maps.Keys(e.views))
	switch rng.IntN(8) {
	case 0: // a node
		id := []string{"a", "b", "c"}[rng.IntN(3)]
		states[id] = []progress.NodeState{progress.NodeServes, progress.NodeServes, progress.NodeLost, progress.NodeDrained, progress.NodeRemoved}[rng.IntN(5)]
		for _, v := range e.views {
			if v.Instance.Node == id {
				x.see(e, v, now)
			}
		}
	case 1: // the service
		s := &gantryv1.Service{Meta: e.service.Meta, Environment: "p", App: "a", Name: "web", Release: 2, Spec: e.service.Spec,
			Replicas: 5 + rng.Int32N(6), RestartGeneration: e.service.RestartGeneration + rng.Int64N(2)}
		x.setService(s)
	case 2, 3: // somebody comes
		x.see(e, randomView(rng, fmt.Sprint("n", step), rng.Int32N(12), rng.IntN(2) == 0), now)
	case 4: // somebody goes
		if len(ids) > 0 {
			x.forget(e, ids[rng.IntN(len(ids))])
		}
	default: // somebody changes
		if len(ids) > 0 {
			old := e.views[ids[rng.IntN(len(ids))]].Instance
			x.see(e, randomView(rng, old.Meta.Key, old.Slot, rng.IntN(3) > 0), now)
		}
	}
}

// BenchmarkLostNode decides about a service of 100,000 instances of which 100 were on a node that is lost: by all slots, and by
// those in which something has happened.
func BenchmarkLostNode(b *testing.B) {
	const instances, lost = 100_000, 100
	x, now := newIndex(), time.Unix(1e9, 0)
	s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Environment: "p", App: "a", Name: "web", Release: 1, Replicas: instances,
		Spec: &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}}}
	x.setService(s)
	e := x.entry(s.Meta.Key)
	for n := range int32(instances) {
		x.see(e, &gantryv1.InstanceView{
			Instance: &gantryv1.Instance{Meta: store.NewMeta(fmt.Sprint("i", n)), Slot: n + 1, Release: 1, Node: fmt.Sprint("n", n/lost), Desired: running},
			Status:   &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RUNNING},
		}, now)
	}
	node := func(id string) progress.NodeState {
		if id == "n5" {
			return progress.NodeLost
		}
		return progress.NodeServes
	}
	in := Input{Service: s, Release: &gantryv1.Release{Number: 1, Spec: s.Spec}, Now: now, Node: node}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			in.Instances = slices.AppendSeq(make([]*gantryv1.InstanceView, 0, len(e.views)), maps.Values(e.views))
			if n := len(Decide(in).Changes); n < lost {
				b.Fatal(n)
			}
		}
	})
	e.listen(node)
	b.Run("loud", func(b *testing.B) {
		for b.Loop() {
			in.Slots = e.listen(node)
			in.Instances = e.in(in.Slots)
			if n := len(Decide(in).Changes); n < lost {
				b.Fatal(n)
			}
		}
	})
}

// TestASlotOfAThirdReleaseIsLeftAlone holds a blue-green rollout before its first step, with an instance of a release that it
// neither comes from nor leads to: another one beside it would be sent away at once, and made again.
func TestASlotOfAThirdReleaseIsLeftAlone(t *testing.T) {
	update := &gantryv1.UpdateConfig{Strategy: rollouts.BlueGreen}
	view := randomView(rand.New(rand.NewPCG(1, 1)), "i1", 1, true)
	plan := Decide(Input{
		Service: &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Replicas: 1, Release: 3, Spec: &gantryv1.ServiceSpec{Update: update}},
		Release: &gantryv1.Release{Number: 3, Spec: &gantryv1.ServiceSpec{Update: update}}, From: true,
		Operation: &gantryv1.Operation{Meta: store.NewMeta("p/a/web/3"), State: operation.Paused, Waiting: operation.ForPerson,
			Steps:   []*gantryv1.OperationStep{{Action: rollouts.Prepare, State: operation.Pending}},
			Rollout: &gantryv1.Rollout{From: 1, To: 3, Update: update}},
		Instances: []*gantryv1.InstanceView{view}, Now: time.Unix(1e9, 0),
	})
	for _, ch := range plan.Changes {
		if ch.Action == Create || ch.Action == SetDesired {
			t.Errorf("%+v", ch)
		}
	}
}
