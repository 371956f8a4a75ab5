package rollout

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store/progress"
)

// Input is all that a decision about one service looks at.
type Input struct {
	Service   *gantryv1.Service
	Release   *gantryv1.Release // the one the service points to
	Instances []*gantryv1.InstanceView
	Blocked   bool // a dependency is not there yet
	Now       time.Time
}

// Action is what a Change does.
type Action int

// The actions.
const (
	Create        Action = iota // make an instance of the current release in Slot
	SetDesired                  // set Instance's wanted state to Desired
	Restart                     // give Instance the service's restart generation
	Rollback                    // point the service back to the release before
	DeleteService               // the service is being removed and nothing of it is left
)

// Change is one thing to do.
type Change struct {
	Action   Action
	Slot     int32
	Instance string
	Desired  gantryv1.Instance_Desired
}

// Plan is the outcome of a decision.
type Plan struct {
	Changes []Change
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
	d := &decision{Input: in, slots: map[int32]*slot{}}
	switch {
	case in.Service.Removing:
		d.remove()
	case in.Release == nil:
		return Plan{}
	default:
		d.sort()
		d.restarts()
		if in.Service.Stopped {
			d.stop()
		} else {
			d.run()
		}
	}
	return d.plan
}

// slot is what stands in one slot of a service.
type slot struct {
	current *gantryv1.InstanceView   // of the current release
	old     []*gantryv1.InstanceView // of other releases, wanted still
	leaving int                      // wanted gone, not gone yet
}

type decision struct {
	Input
	plan  Plan
	slots map[int32]*slot
}

func (d *decision) add(c Change) { d.plan.Changes = append(d.plan.Changes, c) }

func (d *decision) set(i *gantryv1.InstanceView, want gantryv1.Instance_Desired) {
	if i.Instance.Desired != want {
		d.add(Change{Action: SetDesired, Instance: i.Instance.Meta.Key, Desired: want})
	}
}

func (d *decision) remove() {
	for _, i := range d.Instances {
		d.set(i, removed)
	}
	if len(d.Instances) == 0 {
		d.add(Change{Action: DeleteService})
	}
}

// sort puts instances into slots and sends away those that have no place.
func (d *decision) sort() {
	for _, i := range d.Instances {
		s := d.slots[i.Instance.Slot]
		if s == nil {
			s = &slot{}
			d.slots[i.Instance.Slot] = s
		}
		switch {
		case i.Instance.Desired == removed:
			s.leaving++
		case i.Instance.Slot > d.Service.Replicas:
			d.set(i, removed)
		case i.Instance.Release == d.Service.Release && s.current == nil:
			s.current = i
		case i.Instance.Release == d.Service.Release:
			d.set(i, removed) // a second one in the slot: never wanted
		default:
			s.old = append(s.old, i)
		}
	}
}

// restarts carries `gantry restart` to the instances.
func (d *decision) restarts() {
	for _, s := range d.slots {
		if s.current != nil && s.current.Instance.RestartGeneration < d.Service.RestartGeneration {
			d.add(Change{Action: Restart, Instance: s.current.Instance.Meta.Key})
		}
	}
}

func (d *decision) stop() {
	for n := int32(1); n <= d.Service.Replicas; n++ {
		s := d.slots[n]
		if s == nil {
			continue
		}
		if s.current != nil {
			d.set(s.current, stopped)
		}
		for _, o := range s.old {
			d.set(o, removed)
		}
	}
}

// run fills every slot and moves those with an old release to the current one, a few at a time.
func (d *decision) run() {
	budget := d.parallelism() - d.inFlight()
	if d.updating() && d.halted() {
		budget = 0
	}
	for n := int32(1); n <= d.Service.Replicas; n++ {
		s := d.slots[n]
		if s == nil {
			s = &slot{}
		}
		switch {
		case s.current != nil:
			d.settle(s)
		case len(s.old) == 0:
			d.fill(n, s)
		case budget > 0 && !d.Blocked && !d.early():
			budget--
			d.replace(n, s)
		}
	}
}

// fill makes an instance in an empty slot, unless one that must be gone first is still there.
func (d *decision) fill(n int32, s *slot) {
	if d.Blocked || s.leaving > 0 && !d.startFirst() {
		return
	}
	d.add(Change{Action: Create, Slot: n})
}

// settle ends the move of a slot: once the new instance is ready, the old ones go.
func (d *decision) settle(s *slot) {
	d.set(s.current, running)
	if done(s.current.Status) {
		for _, o := range s.old {
			d.set(o, removed)
		}
	}
}

func (d *decision) replace(n int32, s *slot) {
	if d.startFirst() {
		d.add(Change{Action: Create, Slot: n})
		return
	}
	for _, o := range s.old {
		d.set(o, removed)
	}
}

func (d *decision) parallelism() int {
	if p := d.Service.Spec.GetUpdate().GetParallelism(); p > 0 {
		return int(p)
	}
	return 1
}

// updating reports that a slot still holds an instance of another release.
func (d *decision) updating() bool {
	for _, s := range d.slots {
		if len(s.old) > 0 {
			return true
		}
	}
	return false
}

// inFlight counts the slots on their way to the current release while others still wait for their turn.
func (d *decision) inFlight() int {
	n := 0
	for _, s := range d.slots {
		if s.current != nil && !done(s.current.Status) && !d.tolerated(s.current) {
			n++
		}
		if s.current == nil && len(s.old) == 0 && s.leaving > 0 {
			n++
		}
	}
	return n
}

func done(st *gantryv1.InstanceStatus) bool { return progress.Ready(st) || progress.Completed(st) }

// tolerated reports that an instance has failed and the update goes on all the same.
func (d *decision) tolerated(i *gantryv1.InstanceView) bool {
	return d.Service.Spec.GetUpdate().GetFailureAction() == "continue" && progress.Failure(i) != ""
}

// halted reports that a new instance has failed and the update must not go on; it may ask for a rollback.
func (d *decision) halted() bool {
	for _, s := range d.slots {
		if s.current == nil || progress.Failure(s.current) == "" {
			continue
		}
		switch d.Service.Spec.GetUpdate().GetFailureAction() {
		case "continue":
			continue
		case "rollback":
			d.rollback()
		}
		return true
	}
	return false
}

func (d *decision) rollback() {
	if d.Service.PreviousRelease == 0 || d.Service.PreviousRelease >= d.Service.Release {
		return
	}
	for _, c := range d.plan.Changes {
		if c.Action == Rollback {
			return
		}
	}
	d.add(Change{Action: Rollback})
}

// early reports that update_config.delay has not passed since the last instance became ready, and asks to look again.
func (d *decision) early() bool {
	delay := d.Service.Spec.GetUpdate().GetDelay().AsDuration()
	if delay <= 0 {
		return false
	}
	var last *timestamppb.Timestamp
	for _, s := range d.slots {
		if s.current == nil {
			continue
		}
		if at := s.current.Status.GetStartedAt(); at != nil && (last == nil || at.AsTime().After(last.AsTime())) {
			last = at
		}
	}
	if last == nil || !d.Now.Before(last.AsTime().Add(delay)) {
		return false
	}
	d.plan.Again = last.AsTime().Add(delay)
	return true
}

// startFirst reports whether a new instance may run beside the one it replaces: not if both would write the same files or
// need the same port or address.
func (d *decision) startFirst() bool {
	switch d.Service.Spec.GetUpdate().GetOrder() {
	case "start-first":
		return true
	case "stop-first":
		return false
	}
	return !exclusive(d.Release.Spec.GetContainer())
}

// exclusive reports that two instances of a spec would be in each other's way.
func exclusive(c *gantryv1.ContainerSpec) bool {
	for _, m := range c.GetMounts() {
		shared := m.Type == gantryv1.Mount_TYPE_VOLUME || m.Type == gantryv1.Mount_TYPE_BIND
		if shared && !m.ReadOnly {
			return true
		}
	}
	for _, p := range c.GetPorts() {
		if p.Mode == "host" {
			return true
		}
	}
	n := c.GetNetwork()
	return n.GetKind() == gantryv1.NetworkMode_KIND_HOST || n.GetAddress() != "" || c.GetMacAddress() != ""
}
