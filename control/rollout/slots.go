package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// slot is what stands in one slot of a service.
type slot struct {
	current *gantryv1.InstanceView   // the one the slot is to hold now; nil if it has none
	old     []*gantryv1.InstanceView // others, which serve until current does
	leaving int                      // wanted gone, not gone yet
	stuck   bool                     // its data is on a node that is down or drained: nothing can be done
	node    string                   // of a global service: where it is
	absent  bool                     // of a global service: a number that no node has
	unsure  bool                     // of a global service: it is not known whether the node is to have an instance
}

// failedGrace is how long an instance that failed is kept, so that whoever waits for it can read its last log lines.
const failedGrace = 5 * time.Second

// mostSlots is far beyond what the API lets in. A number that got into the store another way must not end every server that
// leads.
const mostSlots = 1 << 20

// sort puts instances into slots, and sends away those that have no place or whose node is gone.
func (d *decision) sort() {
	switch {
	case placement.IsGlobal(d.Service.Spec):
		d.assign()
	case d.Slots != nil:
		first, _ := slices.BinarySearch(d.Slots, 1)
		end, _ := slices.BinarySearch(d.Slots, min(max(d.Service.Replicas, 0), mostSlots)+1)
		d.Slots = d.Slots[first:end]
		d.slots = make([]slot, len(d.Slots))
	default:
		d.slots = make([]slot, min(max(d.Service.Replicas, 0), mostSlots))
	}
	d.leaving = 0
	for _, i := range d.Instances {
		d.place(i)
	}
	for n := range d.slots {
		d.choose(n)
	}
}

// place puts one instance into its slot.
func (d *decision) place(i *gantryv1.InstanceView) {
	state, s := d.nodeOf(i), d.slotOf(i)
	pinned := (state == progress.NodeLost || state == progress.NodeDrained) && d.Pinned != nil && d.Pinned(i.Instance)
	switch {
	case state == progress.NodeRemoved:
		d.add(Change{Action: Forget, Instance: i.Instance.Meta.Key, Cause: "node " + i.Instance.Node + " was removed"})
	case i.Instance.Desired == removed && state == progress.NodeLost:
	case i.Instance.Desired == removed && s != nil:
		s.leaving++
	case i.Instance.Desired == removed:
		d.leaving++
	case s == nil, i.Instance.Job != 0: // the service was a job before
		d.set(i, removed)
		if state != progress.NodeLost {
			d.leaving++
		}
	case d.buried(i, s):
	case state == progress.NodeLost && !pinned && !placement.IsGlobal(d.Service.Spec):
		d.setFor(i, removed, fmt.Sprintf("node %s is down", i.Instance.Node))
	default:
		s.stuck = s.stuck || pinned || state == progress.NodeLost
		s.old = append(s.old, i)
	}
}

// slotOf is the slot that an instance may have; nil if it has no place.
func (d *decision) slotOf(i *gantryv1.InstanceView) *slot {
	n, ok := d.position(i.Instance.Slot)
	if !ok {
		return nil
	}
	s := &d.slots[n]
	if s.absent || s.node != "" && s.node != i.Instance.Node {
		return nil
	}
	return s
}

// position is where a slot is in slots, number the slot that is there.
func (d *decision) position(slot int32) (int, bool) {
	if d.Slots != nil {
		return slices.BinarySearch(d.Slots, slot)
	}
	return int(slot) - 1, slot >= 1 && int(slot) <= len(d.slots)
}

func (d *decision) number(position int) int32 {
	if d.Slots != nil {
		return d.Slots[position]
	}
	return int32(position) + 1
}

// buried keeps the instance whose failure turned the rollout around for a while, ended, and reports whether it did.
func (d *decision) buried(i *gantryv1.InstanceView, s *slot) bool {
	r := d.Operation.GetRollout()
	until := r.GetFailedAt().AsTime().Add(failedGrace)
	if !r.GetBack() || r.FailedInstance != i.Instance.Meta.Key || !d.Now.Before(until) {
		return false
	}
	d.set(i, stopped)
	switch i.Status.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_FAILED, gantryv1.InstanceStatus_PHASE_LOST:
	default:
		s.leaving++
	}
	d.again(until)
	return true
}

// moved reports that a slot is to hold the release the service points to: all but those a rollout has not come to.
func (d *decision) moved(n int) bool {
	return d.op == nil || d.op.Rollout.Back || n < int(d.op.Rollout.Moved) || d.switched()
}

// paid reports that a slot is being moved because the rollout said so when it stored its progress, or ends all instances.
func (d *decision) paid(n int) bool {
	return d.holds && d.op.State != operation.Paused || d.op != nil && !d.op.Rollout.Back && n < int(d.op.Rollout.Moved)
}

// wanted is the release of which an instance is to be made in a slot.
func (d *decision) wanted(n int) int64 {
	if !d.moved(n) && d.From && d.op.Rollout.From != 0 {
		return d.op.Rollout.From
	}
	return d.Service.Release
}

// choose tells the current instance of a slot from old ones. Of several that could be either, the best stays.
func (d *decision) choose(n int) {
	s := &d.slots[n]
	all := s.old
	if s.current != nil {
		all = append([]*gantryv1.InstanceView{s.current}, all...)
	}
	if len(all) == 1 { // by far the most
		if s.current, s.old = nil, all; d.current(n, all[0]) {
			s.current, s.old = all[0], nil
		}
		return
	}
	s.current, s.old = nil, nil
	var current, old *gantryv1.InstanceView
	for _, i := range all {
		if d.current(n, i) {
			current = d.better(current, i)
		} else {
			old = d.better(old, i)
		}
	}
	s.current = current
	if old != nil {
		s.old = []*gantryv1.InstanceView{old}
	}
	for _, i := range all {
		if i != current && i != old {
			d.set(i, removed) // one more in the slot: never wanted
		}
	}
}

// current reports whether an instance is what its slot is to hold now.
func (d *decision) current(n int, i *gantryv1.InstanceView) bool {
	s := &d.slots[n]
	if d.nodeOf(i) == progress.NodeDrained && !s.stuck {
		return false
	}
	if d.retried(i) {
		return false
	}
	return !d.moved(n) || i.Instance.Release == d.Service.Release
}

// retried reports that an instance failed before the rollout was resumed, so that another one is to be made.
func (d *decision) retried(i *gantryv1.InstanceView) bool {
	at := d.op.GetRollout().GetRetriedAt()
	return at != nil && progress.Failure(i) != "" && i.Instance.Meta.CreatedAt.AsTime().Before(at.AsTime())
}

// better is the one of two instances that is to stay in a slot: the one of more worth, or the older one.
func (d *decision) better(a, b *gantryv1.InstanceView) *gantryv1.InstanceView {
	if a == nil {
		return b
	}
	older := b.Instance.Meta.CreatedAt.AsTime().Compare(a.Instance.Meta.CreatedAt.AsTime())
	if c := cmp.Or(d.worth(a)-d.worth(b), older, strings.Compare(b.Instance.Meta.Key, a.Instance.Meta.Key)); c < 0 {
		return b
	}
	return a
}

// worth orders instances that could stand in one slot.
func (d *decision) worth(i *gantryv1.InstanceView) int {
	w := 0
	if done(i.Status) {
		w += 4
	}
	if i.Instance.Release == d.Service.Release {
		w += 2
	}
	if i.Instance.Release == d.op.GetRollout().GetFrom() {
		w++
	}
	return w
}

// assign gives every eligible node of a global service a slot: the one it has, or the lowest that is free.
func (d *decision) assign() {
	byNode, used := d.numbers()
	next := int32(1)
	for _, node := range d.Eligible {
		if byNode[node] != 0 {
			continue
		}
		for used[next] {
			next++
		}
		byNode[node], used[next] = next, true
	}
	most := int32(0)
	for _, n := range byNode {
		most = max(most, n)
	}
	d.slots = make([]slot, most)
	for n := range d.slots {
		d.slots[n].absent = true
	}
	for node, n := range byNode {
		d.slots[n-1] = slot{
			node: node, stuck: d.Node != nil && d.Node(node) == progress.NodeLost, unsure: d.Unsure != nil && d.Unsure(node),
		}
	}
}

// numbers are the slots that nodes of a global service have, and those that are taken. A node that is not eligible keeps its
// slot only for data that is on it.
func (d *decision) numbers() (byNode map[string]int32, used map[int32]bool) {
	byNode, used = map[string]int32{}, map[int32]bool{}
	eligible := map[string]bool{}
	for _, node := range d.Eligible {
		eligible[node] = true
	}
	for _, i := range d.Instances {
		node, n := i.Instance.Node, i.Instance.Slot
		if n < 1 || d.nodeOf(i) == progress.NodeRemoved {
			continue
		}
		used[n] = true
		keeps := d.nodeOf(i) == progress.NodeDrained && i.Instance.Desired != removed && d.Pinned != nil && d.Pinned(i.Instance)
		if (eligible[node] || keeps) && (byNode[node] == 0 || n < byNode[node]) {
			byNode[node] = n
		}
	}
	return byNode, used
}
