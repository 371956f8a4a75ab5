// Package operation keeps actions that take longer than a request: trees of steps, stored before they act.
//
// Begin stores one; whoever drives it asks Current for the step that is due and marks it with Start and End, in the same
// transaction as what the step does, so that any other server can go on from the store alone. A person steers it with
// Pause and Resume. The functions work on a message or inside a transaction of the caller and keep nothing; what the steps
// of a kind mean is for the packages beside this one.
package operation

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// The states, shorter.
const (
	Pending    = gantryv1.Operation_STATE_PENDING
	Running    = gantryv1.Operation_STATE_RUNNING
	Paused     = gantryv1.Operation_STATE_PAUSED
	Done       = gantryv1.Operation_STATE_DONE
	Failed     = gantryv1.Operation_STATE_FAILED
	RolledBack = gantryv1.Operation_STATE_ROLLED_BACK
	Aborted    = gantryv1.Operation_STATE_ABORTED
)

// What a paused operation waits for.
const (
	ForApproval = "approval"
	ForPerson   = "a person"
	ForFailure  = "a failure"
)

// Keep is how many operations of a subject are kept.
const Keep = 10

// Key is the key of a subject's operation, ordered by number.
func Key(subject string, number int64) string { return fmt.Sprintf("%s/%08d", subject, number) }

// Number is an operation's number in words.
func Number(op *gantryv1.Operation) string { return strconv.FormatInt(op.GetNumber(), 10) }

// All lists the operations of a subject, the oldest first.
func All(r store.Reader, subject string) []*gantryv1.Operation {
	return store.List[*gantryv1.Operation](r, subject+"/")
}

// Last is the newest operation of a subject; nil if there is none.
func Last(r store.Reader, subject string) *gantryv1.Operation {
	all := All(r, subject)
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// Active reports that an operation has not ended.
func Active(op *gantryv1.Operation) bool {
	switch op.GetState() {
	case Pending, Running, Paused:
		return true
	}
	return false
}

// Begin numbers and stores an operation. One on the same subject that has not ended is aborted, and the oldest are forgotten.
func Begin(tx *store.Tx, op *gantryv1.Operation, now time.Time) {
	before := All(tx, op.Subject)
	op.Number, op.State = 1, Pending
	for i, old := range before {
		op.Number = old.Number + 1
		if i < len(before)-Keep+1 {
			store.Delete[*gantryv1.Operation](tx, old.Meta.Key)
		} else if Active(old) {
			c := proto.Clone(old).(*gantryv1.Operation)
			Finish(c, Aborted, now)
			c.Error = fmt.Sprintf("operation %d has taken its place", old.Number+1)
			store.Put(tx, c)
		}
	}
	op.Meta = store.NewMeta(Key(op.Subject, op.Number))
	store.Put(tx, op)
}

// Abandon aborts the last operation of a subject, if it has not ended, because nobody drives it any more.
func Abandon(tx *store.Tx, subject, why string, now time.Time) {
	op := Last(tx, subject)
	if !Active(op) {
		return
	}
	op = proto.CloneOf(op)
	Finish(op, Aborted, now)
	op.Error = why
	store.Put(tx, op)
}

// Current is the step that is due: the first one without parts of its own that has not ended; nil if all have.
func Current(op *gantryv1.Operation) *gantryv1.OperationStep { return due(op.GetSteps()) }

func due(steps []*gantryv1.OperationStep) *gantryv1.OperationStep {
	for _, s := range steps {
		if ended(s) {
			continue
		}
		if len(s.Steps) == 0 {
			return s
		}
		if d := due(s.Steps); d != nil {
			return d
		}
	}
	return nil
}

func ended(s *gantryv1.OperationStep) bool {
	switch s.State {
	case gantryv1.Operation_STATE_UNSPECIFIED, Pending, Running:
		return false
	}
	return true
}

// Start marks the step that is due as running.
func Start(op *gantryv1.Operation, s *gantryv1.OperationStep, now time.Time) {
	if op.State == Pending {
		op.State, op.StartedAt = Running, timestamppb.New(now)
	}
	if s.State != Running {
		s.State, s.StartedAt = Running, timestamppb.New(now)
	}
	settle(op.Steps)
}

// End marks a step as ended in a state.
func End(op *gantryv1.Operation, s *gantryv1.OperationStep, state gantryv1.Operation_State, now time.Time) {
	s.State, s.EndedAt = state, timestamppb.New(now)
	settle(op.Steps)
}

// settle gives steps with parts the state of their parts.
func settle(steps []*gantryv1.OperationStep) {
	for _, s := range steps {
		if len(s.Steps) == 0 {
			continue
		}
		settle(s.Steps)
		first, last := s.Steps[0], s.Steps[len(s.Steps)-1]
		switch {
		case ended(last):
			s.State, s.EndedAt = last.State, last.EndedAt
		case first.StartedAt != nil:
			s.State = Running
		}
		s.StartedAt = first.StartedAt
	}
}

// Finish ends an operation; steps that have not ended are aborted.
func Finish(op *gantryv1.Operation, state gantryv1.Operation_State, now time.Time) {
	Drop(op, now)
	op.State, op.EndedAt, op.Waiting = state, timestamppb.New(now), ""
	if op.StartedAt == nil {
		op.StartedAt = op.EndedAt
	}
}

// Drop aborts all steps that have not ended.
func Drop(op *gantryv1.Operation, now time.Time) {
	for s := Current(op); s != nil; s = Current(op) {
		End(op, s, Aborted, now)
	}
}

// Hold pauses an operation for a reason.
func Hold(op *gantryv1.Operation, waiting string) { op.State, op.Waiting = Paused, waiting }

// Pause holds an operation because a person asks for it.
func Pause(op *gantryv1.Operation) error {
	if err := running(op); err != nil {
		return err
	}
	if op.State == Paused {
		return fault.New(fault.Conflict, "operation %d of %s is paused already, it waits for %s", op.Number, op.Subject, op.Waiting)
	}
	Hold(op, ForPerson)
	return nil
}

// Resume lets a paused operation go on; a step that waits for approval has it.
func Resume(op *gantryv1.Operation, now time.Time) error {
	if err := running(op); err != nil {
		return err
	}
	if op.State != Paused {
		return fault.New(fault.Conflict, "operation %d of %s is not paused", op.Number, op.Subject)
	}
	if op.Waiting == ForApproval {
		End(op, Current(op), Done, now)
	}
	op.State, op.Waiting, op.Error, op.Hint = Running, "", "", ""
	if op.StartedAt == nil {
		op.State = Pending
	}
	return nil
}

func running(op *gantryv1.Operation) error {
	if Active(op) {
		return nil
	}
	return fault.New(fault.Conflict, "operation %d of %s has ended: it is %s", op.Number, op.Subject, Word(op.State))
}

// Word is a state for people.
func Word(s gantryv1.Operation_State) string {
	return map[gantryv1.Operation_State]string{
		Pending: "pending", Running: "running", Paused: "paused", Done: "done", Failed: "failed",
		RolledBack: "rolled back", Aborted: "aborted",
	}[s]
}
