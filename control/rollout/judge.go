package rollout

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store/progress"
)

const (
	// failingFor is how long an instance may not be made before its release is blamed. Its node tries again meanwhile, three
	// times at least: a registry that does not answer for a moment is no fault of the release.
	failingFor = 5 * time.Second
	// doubtFor is how long after a failure the release is not blamed if it turns out that the node was about to go down.
	doubtFor = time.Minute
)

// failures lists the new instances that do not come up by themselves.
func (d *decision) failures() []*gantryv1.InstanceView {
	var out []*gantryv1.InstanceView
	for n := range d.slots {
		s := &d.slots[n]
		if s.current != nil && !s.stuck && d.moved(n) && s.current.Instance.Release == d.Service.Release && d.failed(s.current) {
			out = append(out, s.current)
		}
	}
	return out
}

// failed reports that an instance has failed, and not only for a moment.
func (d *decision) failed(i *gantryv1.InstanceView) bool {
	if progress.Failure(i) == "" {
		return false
	}
	if i.Status.GetPhase() != gantryv1.InstanceStatus_PHASE_FAILED || d.Failing == nil {
		return true
	}
	until := d.Failing(i.Instance.Meta.Key).Add(failingFor)
	if d.Now.Before(until) {
		d.again(until)
		return false
	}
	return true
}

// judge lets a rollout whose instances fail stop or turn around. One from nothing goes on trying: there is nothing to save.
func (d *decision) judge() {
	r := d.op.Rollout
	if r.From == 0 || d.settings.GetFailureAction() == "continue" || d.op.State == operation.Paused && d.op.Waiting != operation.ForApproval {
		return
	}
	failed := d.failures()
	if len(failed) == 0 || float64(len(failed)) <= d.settings.GetMaxFailureRatio()*float64(len(d.slots)) {
		return
	}
	why := progress.Failure(failed[0])
	if len(failed) > 1 {
		why = fmt.Sprintf("%s; %d in all fail", why, len(failed))
	}
	switch {
	case r.Back:
		d.op.Error = fmt.Sprintf("%s; and going back to release %d failed: %s", d.op.Error, r.From, why)
		d.op.Hint = "gantry up with a corrected file, or gantry rollback to another release"
		d.finish(operation.Failed)
		d.op.Steps[len(d.op.Steps)-1].State = operation.Failed
	case d.settings.GetFailureAction() == "rollback" && d.From:
		d.fail(failed[0], why)
		d.op.Hint = "correct it and run gantry up again"
		rollouts.Return(d.op, operation.Failed, d.Now)
		d.turned = true
		d.add(Change{Action: PointTo, Release: r.From})
	default:
		d.fail(failed[0], why)
		d.op.Hint = "gantry up with a corrected file, gantry rollout resume to try again, or gantry rollout abort"
		operation.Hold(d.op, operation.ForFailure)
	}
}

// fail notes what failed.
func (d *decision) fail(i *gantryv1.InstanceView, why string) {
	d.op.Error = why
	d.op.Rollout.FailedInstance, d.op.Rollout.FailedAt = i.Instance.Meta.Key, timestamppb.New(d.Now)
}

// acquit lets a rollout go on that stopped for a failure on a node which has gone down or away since: that was the node's.
func (d *decision) acquit() {
	r := d.op.Rollout
	if d.op.State != operation.Paused || d.op.Waiting != operation.ForFailure || !d.Now.Before(r.GetFailedAt().AsTime().Add(doubtFor)) {
		return
	}
	for _, i := range d.Instances {
		if i.Instance.Meta.Key != r.FailedInstance {
			continue
		}
		if at := d.nodeOf(i); at != progress.NodeLost && at != progress.NodeRemoved {
			return
		}
		if rollouts.Resume(d.op, d.Now) == nil {
			r.FailedInstance, r.FailedAt = "", nil
		}
	}
}

// note has the operation know since when instances are ready, where a monitor or a delay counts from there: the next leader
// would begin anew. It forgets the others when there is something to note.
func (d *decision) note() {
	length := max(d.settings.GetMonitor().AsDuration(), d.settings.GetDelay().AsDuration())
	if length < notedFrom || !operation.Active(d.op) {
		d.op.Rollout.Ready = nil
		return
	}
	ready, fresh := map[string]*timestamppb.Timestamp{}, false
	for n := range d.slots {
		i := d.slots[n].current
		if i == nil || !d.moved(n) || i.Instance.Release != d.Service.Release {
			continue
		}
		since := d.since(i)
		if since.IsZero() || !d.Now.Before(since.Add(length)) {
			continue
		}
		ready[i.Instance.Meta.Key] = timestamppb.New(since)
		fresh = fresh || !d.op.Rollout.Ready[i.Instance.Meta.Key].AsTime().Equal(since)
	}
	if fresh {
		d.op.Rollout.Ready = ready
	}
}

// notedFrom is the shortest time for which it is worth a write that a new leader does not begin it anew.
const notedFrom = 2 * time.Second
