package rollout

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// Input is all that a decision about one service looks at.
type Input struct {
	Service   *gantryv1.Service
	Release   *gantryv1.Release                  // the one the service points to
	Operation *gantryv1.Operation                // the last rollout; nil if there is none
	From      bool                               // the release that rollout started from is still there
	Instances []*gantryv1.InstanceView           // in any order
	Blocked   bool                               // a dependency is not there yet
	Held      bool                               // a restart waits for that of a dependency
	Slots     []int32                            // of a service at rest: those to look at, sorted; nil for all. Instances are theirs
	Eligible  []string                           // of a global service: the nodes to run on
	Unsure    func(node string) bool             // an eligible node that may not be: it keeps what it has; nil: none
	Node      func(id string) progress.NodeState // nil: all serve
	Pinned    func(i *gantryv1.Instance) bool    // its data is on its node; nil: never
	Ready     func(id string) (since time.Time)  // when an instance was first seen ready; zero if it is not
	Failing   func(id string) (since time.Time)  // since when an instance could not be made; zero if it could; nil: for long
	Now       time.Time
}

// Action is what a Change does.
type Action int

// The actions.
const (
	Create        Action = iota // make an instance of Release in Slot, on Node if it is not empty
	SetDesired                  // set Instance's wanted state to Desired
	Restart                     // give Instance the service's restart generation
	Forget                      // delete the object of Instance, whose node is no longer part of the cluster
	PointTo                     // point the service to Release, where it came from
	Weigh                       // set the service's Weights
	DeleteService               // the service is being removed and nothing of it is left
)

// Change is one thing to do.
type Change struct {
	Action   Action
	Slot     int32
	Release  int64
	Node     string
	Instance string
	Desired  gantryv1.Instance_Desired
	Weights  map[int64]int32
	Cause    string
}

// Plan is the outcome of a decision.
type Plan struct {
	// Operation is the rollout as it is from now on, to be stored before or with the changes; nil if it stays as it is.
	Operation *gantryv1.Operation
	Changes   []Change
	// Again asks for another decision at this time even if nothing changes; zero for no.
	Again time.Time
}

const (
	running = gantryv1.Instance_DESIRED_RUNNING
	stopped = gantryv1.Instance_DESIRED_STOPPED
	removed = gantryv1.Instance_DESIRED_REMOVED
)

// Decide compares what a service wants with what it has. It is pure.
func Decide(in Input) Plan {
	d := &decision{Input: in}
	switch {
	case in.Service.Removing:
		d.remove()
	case in.Release == nil || placement.IsJob(in.Service.Spec):
	case operation.Active(in.Operation) && rollouts.Goal(in.Operation) != in.Service.Release: // another one is about to begin
	default:
		d.open()
		d.sort()
		if in.Service.Stopped {
			d.stop()
		} else {
			d.drive()
			if !d.turned {
				d.fill()
			}
		}
		d.close()
	}
	return d.plan
}

// decision is a plan in the making. The service points to the release that all slots are to end with; while a rollout is on
// its way, slots it has not moved keep what they have.
type decision struct {
	Input
	op       *gantryv1.Operation    // the rollout while it is on its way, to be changed; else nil
	settings *gantryv1.UpdateConfig // in force now
	slots    []slot                 // slot n at n-1, or those of Slots that there are to be
	leaving  int                    // instances without a slot that are to go, and have not
	budget   int                    // slots that may be taken in hand now
	holds    bool                   // nothing may be made before the old set is gone
	turned   bool                   // the way back has just been taken: the slots are to be looked at again
	proven   *bool                  // an instance of the release has run for a while; nil while nobody has asked
	last     *time.Time             // when the last instance became ready; nil while nobody has asked
	plan     Plan
}

// open takes the rollout that is on its way in hand.
func (d *decision) open() {
	d.settings = d.Service.Spec.GetUpdate()
	if !operation.Active(d.Operation) {
		return
	}
	d.op = proto.Clone(d.Operation).(*gantryv1.Operation)
	if d.op.Rollout.Update == nil {
		d.op.Rollout.Update = &gantryv1.UpdateConfig{}
	}
	d.settings = d.op.Rollout.Update
	if d.op.Rollout.Back {
		d.settings = d.op.Rollout.Rollback
	}
}

// close notes what has become of the rollout and of the traffic.
func (d *decision) close() {
	if w := d.weights(); !sameWeights(w, d.Service.Weights) {
		d.add(Change{Action: Weigh, Weights: w})
	}
	if d.op == nil {
		return
	}
	d.note()
	if !proto.Equal(d.op, d.Operation) {
		d.plan.Operation = d.op
	}
}

func (d *decision) add(c Change) {
	if c.Cause == "" && d.op != nil {
		c.Cause = "rollout " + operation.Number(d.op)
	}
	d.plan.Changes = append(d.plan.Changes, c)
}

func (d *decision) set(i *gantryv1.InstanceView, want gantryv1.Instance_Desired) {
	d.setFor(i, want, "")
}

func (d *decision) setFor(i *gantryv1.InstanceView, want gantryv1.Instance_Desired, cause string) {
	if i.Instance.Desired != want {
		d.add(Change{Action: SetDesired, Instance: i.Instance.Meta.Key, Desired: want, Cause: cause})
	}
}

// again asks for another decision at a time.
func (d *decision) again(at time.Time) { d.plan.Again = store.Sooner(d.plan.Again, at) }

// remove takes everything down. What is on a node that is down goes when the node is back, and holds nothing up.
func (d *decision) remove() {
	left := 0
	for _, i := range d.Instances {
		state := d.nodeOf(i)
		if state == progress.NodeRemoved {
			d.add(Change{Action: Forget, Instance: i.Instance.Meta.Key, Cause: "its node was removed"})
			continue
		}
		d.set(i, removed)
		if state != progress.NodeLost || i.Instance.Desired != removed {
			left++
		}
	}
	if left == 0 {
		d.add(Change{Action: DeleteService})
	}
}

func (d *decision) nodeOf(i *gantryv1.InstanceView) progress.NodeState {
	if i.Instance.Node == "" || d.Node == nil {
		return progress.NodeServes
	}
	return d.Node(i.Instance.Node)
}

// restart carries `gantry restart` to an instance.
func (d *decision) restart(i *gantryv1.InstanceView) {
	if i.Instance.RestartGeneration < d.Service.RestartGeneration && !d.Held {
		d.add(Change{Action: Restart, Instance: i.Instance.Meta.Key})
	}
}

// stop keeps one instance of each slot, ended.
func (d *decision) stop() {
	for n := range d.slots {
		s := &d.slots[n]
		for _, i := range s.old {
			if s.current == nil {
				s.current = i
			} else {
				d.set(i, removed)
			}
		}
		if s.current != nil {
			d.restart(s.current)
			d.set(s.current, stopped)
		}
	}
}

// fill brings every slot closer to what it is to hold.
func (d *decision) fill() {
	for n := range d.slots {
		s := &d.slots[n]
		switch {
		case s.absent:
		case s.current != nil:
			d.restart(s.current)
			d.settle(s)
		case len(s.old) > 0:
			d.replace(n, s)
		case s.leaving == 0 || d.startFirst():
			d.create(n, d.wanted(n))
		}
	}
}

// settle ends the move of a slot: once the new instance is ready, the old ones go.
func (d *decision) settle(s *slot) {
	if s.current.Instance.Desired != running && !d.waits() {
		d.set(s.current, running)
	}
	if d.prepares() {
		d.refillOld(s)
		return
	}
	if d.finished(s) && !d.keeps() {
		for _, o := range s.old {
			d.set(o, removed)
		}
	}
}

// refillOld makes an instance of the old set again that was lost before the new set has the traffic.
func (d *decision) refillOld(s *slot) {
	r := d.op.Rollout
	if d.From && len(s.old) == 0 && r.From != r.To && s.current.Instance.Release == r.To {
		d.create(int(s.current.Instance.Slot)-1, r.From)
	}
}

// replace begins to move a slot. A rollout has paid for the slots it has moved; others, which leave a drained node or go back
// to the release before, take from the budget.
func (d *decision) replace(n int, s *slot) {
	if s.stuck || s.unsure || d.waits() {
		return
	}
	if !d.paid(n) && s.leaving == 0 {
		if d.budget <= 0 || d.pausedBack(s) || d.early() {
			return
		}
		d.budget--
	}
	if d.startFirst() && !d.holds {
		d.create(n, d.wanted(n))
		return
	}
	for _, o := range s.old {
		d.setFor(o, removed, d.causeOf(o))
	}
}

// pausedBack reports that a slot would be moved only by the way back, which is paused; one that leaves a drained node goes on.
func (d *decision) pausedBack(s *slot) bool {
	return d.op != nil && d.op.Rollout.Back && d.op.State == operation.Paused &&
		!slices.ContainsFunc(s.old, func(o *gantryv1.InstanceView) bool { return d.causeOf(o) != "" })
}

func (d *decision) causeOf(i *gantryv1.InstanceView) string {
	if d.nodeOf(i) == progress.NodeDrained {
		return "node " + i.Instance.Node + " is drained"
	}
	return ""
}

// create makes an instance, unless that has to wait.
func (d *decision) create(n int, release int64) bool {
	if d.holds || d.slots[n].unsure || d.waits() {
		return false
	}
	d.add(Change{Action: Create, Slot: d.number(n), Release: release, Node: d.slots[n].node})
	return true
}

// waits reports that the rollout on its way waits for another service.
func (d *decision) waits() bool { return d.Blocked && d.op != nil && !d.op.Rollout.Back }

// startFirst reports whether a new instance may run beside the one it replaces: not if both would write the same files or
// need the same port or address.
func (d *decision) startFirst() bool {
	switch {
	case d.prepares() || d.keeps():
		return true
	case d.settings.GetOrder() == "start-first":
		return true
	case d.settings.GetOrder() == "stop-first":
		return false
	}
	return !rollouts.Exclusive(d.Release.Spec.GetContainer())
}
