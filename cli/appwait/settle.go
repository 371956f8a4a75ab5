package appwait

import (
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// settleTime is how long a container without a health check must run until it is believed. Most that cannot work,
// for want of a file, a variable or a database, end much earlier.
const settleTime = time.Second

// judge decides when a wait is over, by the views it hears and by time.
type judge struct {
	wait Wait
	now  func() time.Time
	// All is as it should be, but for the time to settle, which is over at until.
	reached bool
	until   time.Time
	// Start of the youngest container that settles; another one begins anew.
	youngest time.Time
	// Instances that could not be made before the wait, and when that was; nil before the first view.
	failed map[string]time.Time
}

// hear takes a view, and returns an error if a service has failed.
func (j *judge) hear(views []*gantryv1.ServiceView) error {
	if j.failed == nil {
		j.failed = failures(views)
	}
	for _, v := range views {
		// What ends on purpose leaves others without what they need; that is no failure of the wait.
		if j.wait.coming && v.GetFailure() != "" && !j.past(v) {
			return &failedService{v}
		}
		if j.wait.coming && replaced(j.wait, v) {
			return errReplaced(j.wait, v)
		}
	}
	if !j.wait.Done(views) && !halted(j.wait, views) {
		j.reached, j.youngest = false, time.Time{}
		return nil
	}
	now, youngest := j.now(), time.Time{}
	if j.wait.Settle {
		youngest = youngestUnchecked(views)
	}
	if !j.reached || !youngest.Equal(j.youngest) {
		// The node's clock may be ahead of this one: that must not hold for longer than it takes to settle.
		j.until = earlier(youngest.Add(settleTime), now.Add(settleTime))
	}
	j.reached, j.youngest = true, youngest
	return nil
}

// past reports whether a service has only failed to be made before the wait.
func (j *judge) past(v *gantryv1.ServiceView) bool {
	if !j.wait.Again {
		return false
	}
	i := failedInstance(v)
	before, known := j.failed[i.GetInstance().GetMeta().GetKey()]
	return known && i.GetStatus().GetFinishedAt().AsTime().Equal(before)
}

// failures lists the instances that could not be made, and since when.
func failures(views []*gantryv1.ServiceView) map[string]time.Time {
	out := map[string]time.Time{}
	for _, v := range views {
		for _, i := range v.GetInstances() {
			if st := i.GetStatus(); st.GetPhase() == gantryv1.InstanceStatus_PHASE_FAILED && st.GetFinishedAt() != nil {
				out[i.GetInstance().GetMeta().GetKey()] = st.GetFinishedAt().AsTime()
			}
		}
	}
	return out
}

// settled reports whether the wait is over.
func (j *judge) settled() bool { return j.reached && !j.now().Before(j.until) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// youngestUnchecked is when the last of the running containers was started that have no health check to speak for them.
func youngestUnchecked(views []*gantryv1.ServiceView) time.Time {
	var out time.Time
	for _, v := range views {
		for _, i := range v.GetInstances() {
			st := i.GetStatus()
			if st.GetPhase() != gantryv1.InstanceStatus_PHASE_RUNNING || st.GetHealth() != gantryv1.InstanceStatus_HEALTH_UNSPECIFIED {
				continue
			}
			if begun := st.GetStartedAt(); begun != nil && begun.AsTime().After(out) {
				out = begun.AsTime()
			}
		}
	}
	return out
}
