package progress

import (
	"fmt"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// Rollout is the last rollout of a service; nil if it has had none.
func Rollout(r store.Reader, serviceKey string) *gantryv1.Operation {
	all := store.List[*gantryv1.Operation](r, serviceKey+"/")
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// Going reports that a rollout has not ended.
func Going(op *gantryv1.Operation) bool {
	switch op.GetState() {
	case gantryv1.Operation_STATE_PENDING, gantryv1.Operation_STATE_RUNNING, gantryv1.Operation_STATE_PAUSED:
		return true
	}
	return false
}

// keeping reports that a rollout has done all but remove the old set, which it keeps for a time.
func keeping(op *gantryv1.Operation) bool {
	for _, s := range op.GetSteps() {
		if s.Action == "keep" && s.State == gantryv1.Operation_STATE_RUNNING {
			return Going(op) && !op.Rollout.GetBack()
		}
	}
	return false
}

// kept reports that an instance belongs to an old set that is kept for a time.
func kept(op *gantryv1.Operation, i *gantryv1.Instance) bool {
	return keeping(op) && i.Release != op.Rollout.To && i.Desired == gantryv1.Instance_DESIRED_RUNNING
}

// reached reports that a rollout will change no more of what a service serves.
func reached(op *gantryv1.Operation) bool { return !Going(op) || keeping(op) }

// judgeRollout lets a rollout that can go back speak for its service: an instance that fails is for the rollout to judge, and
// what it has decided stands.
func judgeRollout(v *gantryv1.ServiceView) {
	op := v.Operation
	if op.GetRollout().GetFrom() == 0 || v.Wanted == 0 {
		return
	}
	switch {
	case op.State == gantryv1.Operation_STATE_FAILED || op.Error != "" && op.State == gantryv1.Operation_STATE_PAUSED:
		v.Failure = op.Error
	case !Going(op):
	case op.Rollout.Back:
		v.Failure, v.Waiting = "", fmt.Sprintf("goes back to release %d: %s", op.Rollout.From, op.Error)
	case op.State == gantryv1.Operation_STATE_PAUSED:
		v.Failure, v.Waiting = "", "paused, waits for "+op.Waiting
	default:
		v.Failure = ""
	}
}
