// Package rollouts describes the change of a service from one release to another as an operation.
//
// Begin plans the steps that the service's settings ask for and stores them; Return and Abort turn around. The steps are
// driven by control/rollout. Everything works inside the caller's transaction or on a message; nothing is kept.
package rollouts

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// Kind of these operations.
const Kind = "rollout"

// What a step does.
const (
	Move    = "move"    // give so many slots to the new release
	Wait    = "wait"    // let it run for a time
	Approve = "approve" // let a person look at it
	Prepare = "prepare" // make the whole new set beside the old one
	Switch  = "switch"  // give it the traffic
	Keep    = "keep"    // keep the old set for a time
	Retire  = "retire"  // remove the old set
	Clear   = "clear"   // remove the old set before there is a new one
	Back    = "return"  // give all slots to the release before
)

// The strategies.
const (
	Rolling   = "rolling"
	Canary    = "canary"
	BlueGreen = "blue-green"
	Recreate  = "recreate"
)

// Causes of a rollout.
const (
	CauseUp       = "up"
	CauseRollback = "rollback"
	CauseFound    = "found" // the service had a release that no operation led to
)

// Begin stores the operation that leads a service to the release it is about to be stored with.
func Begin(tx *store.Tx, s *gantryv1.Service, who, cause string, now time.Time) *gantryv1.Operation {
	op := Plan(s, origin(tx, s), cause)
	op.Who = who
	operation.Begin(tx, op, now)
	return op
}

// Plan is the operation that leads a service from a release to the one it points to. It is pure.
func Plan(s *gantryv1.Service, from int64, cause string) *gantryv1.Operation {
	r := &gantryv1.Rollout{From: from, To: s.Release, Update: settings(s.Spec.GetUpdate()), Rollback: settings(s.Spec.GetRollback())}
	if cause == CauseRollback {
		strategy := r.Update.Strategy
		if r.Update = settings(s.Spec.GetRollback()); r.Update.Strategy == "" && strategy == Recreate {
			r.Update.Strategy = Recreate // releases that must not meet must not meet on the way back either
		}
	}
	return &gantryv1.Operation{Kind: Kind, Subject: s.Meta.Key, Cause: cause, Rollout: r, Steps: steps(r)}
}

func settings(u *gantryv1.UpdateConfig) *gantryv1.UpdateConfig {
	if u == nil {
		return &gantryv1.UpdateConfig{}
	}
	return proto.Clone(u).(*gantryv1.UpdateConfig)
}

// origin is the release to return to: the last one that is known to have worked, 0 if there is none.
func origin(r store.Reader, s *gantryv1.Service) int64 {
	from := s.PreviousRelease
	if last := operation.Last(r, s.Meta.Key); last != nil {
		from = Good(last)
	}
	if _, ok := store.Get[*gantryv1.Release](r, progress.ReleaseKey(s.Meta.Key, from)); !ok || from == s.Release {
		return 0
	}
	return from
}

// Good is the release that is known to work after a rollout, or while it lasts; 0 for none.
func Good(op *gantryv1.Operation) int64 {
	if op.GetState() == operation.Done {
		return op.GetRollout().GetTo()
	}
	return op.GetRollout().GetFrom()
}

// Goal is the release that a service has been led to, or is.
func Goal(op *gantryv1.Operation) int64 {
	if op.GetRollout().GetBack() {
		return op.GetRollout().GetFrom()
	}
	return op.GetRollout().GetTo()
}

func steps(r *gantryv1.Rollout) []*gantryv1.OperationStep {
	all := step(Move, "all instances to release %d, %s", r.To, pace(r.Update))
	switch {
	case r.From == 0 && r.Update.Strategy == Recreate: // there may be some of a release that never worked
		return []*gantryv1.OperationStep{step(Clear, "end all instances of other releases"), step(Move, "start all instances of release %d", r.To)}
	case r.From == 0:
		return []*gantryv1.OperationStep{step(Move, "all instances of release %d", r.To)}
	}
	switch r.Update.Strategy {
	case Canary:
		return append(canary(r), step(Move, "the others to release %d, %s", r.To, pace(r.Update)))
	case BlueGreen:
		return blueGreen(r)
	case Recreate:
		return []*gantryv1.OperationStep{
			step(Clear, "end all instances of release %d", r.From), step(Move, "start all instances of release %d", r.To),
		}
	}
	return []*gantryv1.OperationStep{all}
}

func step(action, name string, args ...any) *gantryv1.OperationStep {
	return &gantryv1.OperationStep{Action: action, Name: fmt.Sprintf(name, args...), State: operation.Pending}
}

func pace(u *gantryv1.UpdateConfig) string {
	return fmt.Sprintf("%d at a time", max(1, u.GetParallelism()))
}

func canary(r *gantryv1.Rollout) []*gantryv1.OperationStep {
	var out []*gantryv1.OperationStep
	for _, c := range r.Update.Canary {
		size := fmt.Sprintf("%d of the instances", c.Count)
		if c.Count == 0 {
			size = fmt.Sprintf("%d %% of the instances", c.Percent)
		}
		move := step(Move, "%s to release %d", size, r.To)
		move.Count, move.Percent, move.Weight = c.Count, c.Percent, c.Weight
		if c.Weight > 0 {
			move.Name += fmt.Sprintf(", with %d %% of the traffic", c.Weight)
		}
		group := &gantryv1.OperationStep{Name: "canary with " + size, State: operation.Pending, Steps: []*gantryv1.OperationStep{move}}
		if c.Pause.AsDuration() > 0 {
			wait := step(Wait, "watch it for %s", c.Pause.AsDuration())
			wait.Pause = c.Pause
			group.Steps = append(group.Steps, wait)
		}
		if c.Approval {
			group.Steps = append(group.Steps, step(Approve, "wait for approval"))
		}
		out = append(out, group)
	}
	return out
}

func blueGreen(r *gantryv1.Rollout) []*gantryv1.OperationStep {
	out := []*gantryv1.OperationStep{
		step(Prepare, "a whole set of release %d, without traffic", r.To),
		step(Switch, "all traffic to release %d", r.To),
	}
	if keep := r.Update.Keep; keep.AsDuration() > 0 {
		k := step(Keep, "keep release %d for %s", r.From, keep.AsDuration())
		k.Pause = keep
		out = append(out, k)
	}
	return append(out, step(Retire, "remove release %d", r.From))
}

// Return turns a rollout around: what is left of its steps is dropped, and all slots go back to the release before. The
// caller points the service to that release in the same transaction.
func Return(op *gantryv1.Operation, state gantryv1.Operation_State, now time.Time) {
	operation.Drop(op, now)
	for _, s := range op.Steps {
		if s.State == operation.Aborted && s.StartedAt != nil {
			s.State = state
		}
	}
	op.Rollout.Back = true
	if op.Rollout.Update.GetStrategy() == Recreate {
		op.Steps = append(op.Steps, step(Clear, "end all instances of release %d", op.Rollout.To),
			step(Back, "start all instances of release %d", op.Rollout.From))
	} else {
		op.Steps = append(op.Steps, step(Back, "all instances back to release %d, %s", op.Rollout.From, pace(op.Rollout.Rollback)))
	}
	op.State, op.Waiting = operation.Running, ""
	if op.StartedAt == nil {
		op.StartedAt = timestamppb.New(now)
	}
}

// Abort turns a rollout around because a person asks for it.
func Abort(tx *store.Tx, op *gantryv1.Operation, who string, now time.Time) error {
	name := op.Subject
	switch {
	case !operation.Active(op):
		return fault.New(fault.Conflict, "the rollout %d of %s has ended: it is %s", op.Number, name, operation.Word(op.State)).
			WithHint("gantry rollback takes a service to an earlier release")
	case op.Rollout.Back:
		return fault.New(fault.Conflict, "the rollout %d of %s is on its way back already", op.Number, name)
	case op.Rollout.From == 0:
		return fault.New(fault.Conflict, "%s has no release to go back to", name).
			WithHint("gantry up with a corrected file takes its place, gantry down removes it")
	}
	Return(op, operation.Aborted, now)
	op.Rollout.Aborted, op.Error, op.Hint = true, "aborted", ""
	if who != "" {
		op.Error += " by " + who
	}
	return store.Modify(tx, op.Subject, func(s *gantryv1.Service) error {
		s.Release, s.PreviousRelease = op.Rollout.From, 0
		return nil
	})
}

// Resume lets a rollout go on. What had failed before is made again.
func Resume(op *gantryv1.Operation, now time.Time) error {
	failed, why, hint := op.Waiting == operation.ForFailure, op.Error, op.Hint
	if err := operation.Resume(op, now); err != nil {
		return err
	}
	if op.Rollout.Back { // still for that reason
		op.Error, op.Hint = why, hint
	}
	if failed {
		op.Rollout.RetriedAt = timestamppb.New(now)
	}
	return nil
}
