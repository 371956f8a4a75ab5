package rollout

import (
	"maps"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store/progress"
)

// drive takes the rollout as many steps on as what is observed allows. What it decides is stored before or with what follows.
func (d *decision) drive() {
	d.holds = d.clears()
	d.budget = d.parallelism() - d.inFlight()
	if d.op == nil {
		return
	}
	d.acquit()
	if d.judge(); d.turned || !operation.Active(d.op) || d.op.State == operation.Paused || d.waits() {
		return
	}
	for step := operation.Current(d.op); step != nil; step = operation.Current(d.op) {
		operation.Start(d.op, step, d.Now)
		if !d.perform(step) {
			return
		}
		operation.End(d.op, step, operation.Done, d.Now)
	}
	switch {
	case d.op.Rollout.Aborted:
		d.finish(operation.Aborted)
	case d.op.Rollout.Back:
		d.finish(operation.RolledBack)
	default:
		d.finish(operation.Done)
	}
}

func (d *decision) finish(state gantryv1.Operation_State) { operation.Finish(d.op, state, d.Now) }

// perform does what a step still needs and reports that nothing is left of it. Doing it twice is doing it once.
func (d *decision) perform(step *gantryv1.OperationStep) bool {
	switch step.Action {
	case rollouts.Move:
		to := d.target(step)
		d.advance(to)
		return int(d.op.Rollout.Moved) >= to && d.all(to, d.arrived)
	case rollouts.Wait, rollouts.Keep:
		until := step.StartedAt.AsTime().Add(step.Pause.AsDuration())
		if d.Now.Before(until) {
			d.again(until)
			return false
		}
	case rollouts.Approve:
		operation.Hold(d.op, operation.ForApproval)
		return false
	case rollouts.Prepare:
		d.take(len(d.slots))
		return d.all(len(d.slots), d.finished)
	case rollouts.Retire, rollouts.Back:
		return d.all(len(d.slots), d.arrived)
	case rollouts.Clear:
		if !d.op.Rollout.Back {
			d.take(len(d.slots))
		}
		d.holds = d.clears()
		return !d.holds
	}
	return true
}

// clears reports that all old instances are to end, and have not. On the way back they are from the moment it is taken.
func (d *decision) clears() bool {
	step := operation.Current(d.op)
	if step.GetAction() != rollouts.Clear || step.StartedAt == nil && !d.op.Rollout.Back {
		return false
	}
	return d.leaving > 0 || !d.all(len(d.slots), func(s *slot) bool { return len(s.old) == 0 && s.leaving == 0 || s.stuck })
}

// target is how many slots a step moves.
func (d *decision) target(step *gantryv1.OperationStep) int {
	n := len(d.slots)
	switch {
	case step.Count > 0:
		return min(n, int(step.Count))
	case step.Percent > 0:
		return min(n, (n*int(step.Percent)+99)/100)
	}
	return n
}

// advance gives slots to the new release, as many as may be in hand at a time. Slots in which nothing is wanted to run cost
// nothing.
func (d *decision) advance(to int) {
	for n := int(d.op.Rollout.Moved); n < to; n++ {
		s := &d.slots[n]
		free := s.absent || s.stuck || s.current != nil && (s.current.Instance.Desired == stopped || d.there(s.current))
		if !free && (d.budget <= 0 || d.early()) {
			return
		}
		if !free {
			d.budget--
		}
		d.take(n + 1)
	}
}

// there reports that an instance is of the release the rollout leads to, and works.
func (d *decision) there(i *gantryv1.InstanceView) bool {
	return i.Instance.Release == d.op.Rollout.To && done(i.Status)
}

// take gives all slots before n to the new release.
func (d *decision) take(n int) {
	for at := int(d.op.Rollout.Moved); at < n; at++ {
		d.op.Rollout.Moved = int32(at) + 1
		d.choose(at)
	}
}

// all reports whether the first n slots have come as far as they can, by a test.
func (d *decision) all(n int, test func(*slot) bool) bool {
	for i := range d.slots[:min(n, len(d.slots))] {
		s := &d.slots[i]
		if !s.absent && !s.stuck && !test(s) && !d.tolerated(s) {
			return false
		}
	}
	return true
}

// arrived reports that a slot holds what it is to hold, and nothing else.
func (d *decision) arrived(s *slot) bool { return d.finished(s) && len(s.old) == 0 }

// provenAfter is how long an instance without a health check must have run before a rollout believes in its release: most that
// cannot work, for want of a file, a variable or a database, end much earlier.
const provenAfter = time.Second

// finished reports that the current instance of a slot works, and has for as long as it is to be watched.
func (d *decision) finished(s *slot) bool {
	if s.current == nil || !done(s.current.Status) {
		return false
	}
	watch := d.watch(s.current)
	if watch <= 0 {
		return true
	}
	since := d.since(s.current)
	if since.IsZero() {
		return false
	}
	if until := since.Add(watch); d.Now.Before(until) {
		d.again(until)
		return false
	}
	return true
}

// watch is how long an instance has to be ready before it counts.
func (d *decision) watch(i *gantryv1.InstanceView) time.Duration {
	monitor := d.settings.GetMonitor().AsDuration()
	switch {
	case d.op == nil || progress.Completed(i.Status):
		return 0
	case monitor > 0:
		return monitor
	case d.op.Rollout.From == 0 || i.Status.GetHealth() != gantryv1.InstanceStatus_HEALTH_UNSPECIFIED || d.isProven():
		return 0
	}
	return provenAfter
}

// isProven reports that an instance of the release that slots are given has run for long enough.
func (d *decision) isProven() bool {
	for n := 0; d.proven == nil && n < len(d.slots); n++ {
		i := d.slots[n].current
		if i == nil || i.Instance.Release != d.Service.Release || !done(i.Status) {
			continue
		}
		if since := d.since(i); !since.IsZero() && !d.Now.Before(since.Add(provenAfter)) {
			yes := true
			d.proven = &yes
		}
	}
	if d.proven == nil {
		d.proven = new(bool)
	}
	return *d.proven
}

func (d *decision) since(i *gantryv1.InstanceView) time.Time {
	if d.Ready == nil {
		return time.Time{}
	}
	return d.Ready(i.Instance.Meta.Key)
}

func done(st *gantryv1.InstanceStatus) bool { return progress.Ready(st) || progress.Completed(st) }

func (d *decision) parallelism() int { return max(1, int(d.settings.GetParallelism())) }

// inFlight counts the slots that are not what they are to be and can become it by themselves.
func (d *decision) inFlight() int {
	count := 0
	for n := range d.slots {
		s := &d.slots[n]
		if s.absent || s.stuck {
			continue
		}
		switch {
		case s.current == nil:
			if len(s.old) == 0 || s.leaving > 0 || d.paid(n) {
				count++
			}
		case d.moved(n):
			if !d.finished(s) && !d.tolerated(s) {
				count++
			}
		case !done(s.current.Status):
			// An old instance that fails, or that no node takes, is no reason to keep the new release back.
			i := s.current
			if i.Instance.Desired == running && i.Instance.Node != "" && progress.Failure(i) == "" {
				count++
			}
		}
	}
	return count
}

// early reports that the delay after the last instance that became ready has not passed, and asks to look again.
func (d *decision) early() bool {
	delay := d.settings.GetDelay().AsDuration()
	if delay <= 0 {
		return false
	}
	if d.last == nil {
		d.last = &time.Time{}
		for n := range d.slots {
			if s := &d.slots[n]; d.moved(n) && s.current != nil && d.since(s.current).After(*d.last) {
				*d.last = d.since(s.current)
			}
		}
	}
	if d.last.IsZero() || !d.Now.Before(d.last.Add(delay)) {
		return false
	}
	d.again(d.last.Add(delay))
	return true
}

// tolerated reports that the instance of a slot has failed and others are taken in hand all the same. A rollout from nothing
// waits for all.
func (d *decision) tolerated(s *slot) bool {
	switch {
	case s.current == nil || progress.Failure(s.current) == "":
		return false
	case d.op == nil:
		return true
	case d.op.Rollout.From == 0:
		return false
	}
	return d.settings.GetFailureAction() == "continue" || d.settings.GetMaxFailureRatio() > 0
}

// prepares reports that a new set is being made beside the old one, which has the traffic.
func (d *decision) prepares() bool {
	return d.strategy() == rollouts.BlueGreen && !d.begun(rollouts.Switch)
}

// switched reports that the new set has the traffic: slots that come now are its own.
func (d *decision) switched() bool {
	return d.strategy() == rollouts.BlueGreen && d.begun(rollouts.Switch)
}

// keeps reports that the old set is to stay for the time being.
func (d *decision) keeps() bool {
	return d.strategy() == rollouts.BlueGreen && !d.begun(rollouts.Retire)
}

// strategy is that of the rollout that is on its way forward; empty if none is.
func (d *decision) strategy() string {
	if d.op == nil || d.op.Rollout.Back || d.op.Rollout.From == 0 || d.op.State == operation.Pending {
		return ""
	}
	return d.op.Rollout.Update.Strategy
}

// begun reports that a step with the action has been begun.
func (d *decision) begun(action string) bool { return d.latest(d.op.Steps, action) != nil }

// latest is the last step begun with the action; nil if there is none.
func (d *decision) latest(steps []*gantryv1.OperationStep, action string) *gantryv1.OperationStep {
	var out *gantryv1.OperationStep
	for _, s := range steps {
		if s.Action == action && s.StartedAt != nil {
			out = s
		}
		if part := d.latest(s.Steps, action); part != nil {
			out = part
		}
	}
	return out
}

// weights is how the rollout wants the traffic to be divided; nil if it does not mind.
func (d *decision) weights() map[int64]int32 {
	if !operation.Active(d.op) {
		return nil
	}
	r := d.op.Rollout
	if r.Back {
		return map[int64]int32{r.To: 0}
	}
	switch d.strategy() {
	case rollouts.BlueGreen:
		if d.prepares() {
			return map[int64]int32{r.To: 0}
		}
		return map[int64]int32{r.To: 100}
	case rollouts.Canary:
		if s := d.latest(d.op.Steps, rollouts.Move); s != nil && s.Weight > 0 {
			return map[int64]int32{r.To: s.Weight}
		}
	}
	return nil
}

func sameWeights(a, b map[int64]int32) bool { return maps.Equal(a, b) }
