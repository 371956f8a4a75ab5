package rollout

import (
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// Of a large service at rest, most slots hold what they are to hold, and nothing is to be decided about them: a decision looks
// at the others alone, so that it costs what has happened, not what there is.

// touch notes that something has happened in a slot.
func (e *entry) touch(slot int32) {
	if e.loud != nil {
		e.loud[slot] = struct{}{}
	}
}

// vacate takes an instance out of its slot.
func (e *entry) vacate(slot int32, id string) {
	e.slots[slot] = slices.DeleteFunc(e.slots[slot], func(other string) bool { return other == id })
	if len(e.slots[slot]) == 0 {
		delete(e.slots, slot)
	}
	e.touch(slot)
}

// rests reports that each slot of the service is decided by itself: no rollout is on its way, nothing that asks for a pause
// between slots, no nodes that slots belong to.
func (e *entry) rests() bool {
	s := e.service
	return !operation.Active(e.op) && !s.Stopped && !s.Removing && !placement.IsGlobal(s.Spec) && !placement.IsJob(s.Spec) &&
		s.Spec.GetUpdate().GetDelay().AsDuration() <= 0
}

// listen forgets the slots in which nothing is to do, and lists the others in order. It is for a service that rests.
func (e *entry) listen(node func(id string) progress.NodeState) []int32 {
	if e.loud == nil {
		e.loud = make(map[int32]struct{}, len(e.slots))
		for slot := range e.slots {
			e.loud[slot] = struct{}{}
		}
		for slot := range min(e.service.Replicas, mostSlots) {
			e.loud[slot+1] = struct{}{}
		}
	}
	out := make([]int32, 0, len(e.loud))
	for slot := range e.loud {
		if e.settled(slot, node) {
			delete(e.loud, slot)
		} else {
			out = append(out, slot)
		}
	}
	slices.Sort(out)
	return out
}

// settled reports that a slot holds one instance, which works and is the one wanted, or nothing if nothing is wanted.
func (e *entry) settled(slot int32, node func(id string) progress.NodeState) bool {
	wanted := slot >= 1 && slot <= e.service.Replicas
	ids := e.slots[slot]
	if !wanted || len(ids) != 1 {
		return !wanted && len(ids) == 0
	}
	v := e.views[ids[0]]
	i := v.Instance
	return i.Job == 0 && i.Desired == running && i.Release == e.service.Release && i.RestartGeneration >= e.service.RestartGeneration &&
		done(v.Status) && progress.Failure(v) == "" && node(i.Node) == progress.NodeServes
}

// in lists the instances of some slots.
func (e *entry) in(slots []int32) []*gantryv1.InstanceView {
	out := make([]*gantryv1.InstanceView, 0, len(slots))
	for _, slot := range slots {
		for _, id := range e.slots[slot] {
			out = append(out, e.views[id])
		}
	}
	return out
}
