package rollout

import (
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
)

// clock notes since when an instance is ready, or cannot be made.
func (e *entry) clock(v *gantryv1.InstanceView, now time.Time) {
	id := v.Instance.Meta.Key
	switch {
	case !done(v.Status):
		delete(e.since, id)
	case e.since[id].IsZero():
		e.since[id] = e.readySince(id, v.Status, now)
	}
	switch v.Status.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_FAILED:
		if e.failing[id].IsZero() {
			e.failing[id] = now
		}
	case gantryv1.InstanceStatus_PHASE_RUNNING, gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_RESTARTING:
		delete(e.failing, id) // other phases come between two attempts
	}
	if v.Status.GetPhase() > gantryv1.InstanceStatus_PHASE_PENDING { // its node has said how it is
		delete(e.before, id)
	}
}

// inherit takes over what an earlier leader has noted of an operation that is on its way.
func (e *entry) inherit(now time.Time) {
	if !operation.Active(e.op) {
		return
	}
	e.before = map[string]time.Time{}
	for id, at := range e.op.GetRollout().GetReady() {
		if t := at.AsTime(); t.Before(now) { // else their clocks differ
			e.before[id] = t
		}
	}
}

// readySince is since when an instance that this leader sees ready for the first time has been so: an earlier leader may have
// noted it, and it counts unless the process has begun since.
func (e *entry) readySince(id string, st *gantryv1.InstanceStatus, now time.Time) time.Time {
	noted := e.before[id]
	if noted.IsZero() || st.GetStartedAt().AsTime().After(noted.Add(clockTolerance)) {
		return now
	}
	return noted
}

// clockTolerance is how much a node's clock may differ from a leader's.
const clockTolerance = 2 * time.Second
