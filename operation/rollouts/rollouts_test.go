package rollouts_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
	"github.com/gantryd/gantry/store/storetest"
)

func actions(steps []*gantryv1.OperationStep) string {
	var out []string
	for _, s := range steps {
		if len(s.Steps) > 0 {
			out = append(out, "("+actions(s.Steps)+")")
			continue
		}
		out = append(out, s.Action)
	}
	return strings.Join(out, " ")
}

func TestStepsOfEachStrategy(t *testing.T) {
	canary := []*gantryv1.CanaryStep{{Count: 1, Approval: true}, {Percent: 50, Pause: durationpb.New(time.Minute)}, {Percent: 80}}
	for name, test := range map[string]struct {
		update *gantryv1.UpdateConfig
		from   int64
		steps  string
	}{
		"nothing said":     {nil, 1, "move"},
		"the first":        {&gantryv1.UpdateConfig{Strategy: rollouts.BlueGreen}, 0, "move"},
		"the first, alone": {&gantryv1.UpdateConfig{Strategy: rollouts.Recreate}, 0, "clear move"},
		"recreate":         {&gantryv1.UpdateConfig{Strategy: rollouts.Recreate}, 1, "clear move"},
		"blue-green":       {&gantryv1.UpdateConfig{Strategy: rollouts.BlueGreen}, 1, "prepare switch retire"},
		"blue-green, kept": {&gantryv1.UpdateConfig{Strategy: rollouts.BlueGreen, Keep: durationpb.New(time.Hour)}, 1, "prepare switch keep retire"},
		"canary":           {&gantryv1.UpdateConfig{Strategy: rollouts.Canary, Canary: canary}, 1, "(move approve) (move wait) (move) move"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Release: 2, Spec: &gantryv1.ServiceSpec{Update: test.update}}
			if got := actions(rollouts.Plan(s, test.from, "up").Steps); got != test.steps {
				t.Fatal(got)
			}
		})
	}
}

// TestAReleaseThatMustNotMeetAnotherDoesNotOnTheWayBack is about `gantry rollback`, which has settings of its own.
func TestAReleaseThatMustNotMeetAnotherDoesNotOnTheWayBack(t *testing.T) {
	spec := &gantryv1.ServiceSpec{Update: &gantryv1.UpdateConfig{Strategy: rollouts.Recreate}, Rollback: &gantryv1.UpdateConfig{Parallelism: 2}}
	s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Release: 1, Spec: spec}
	if got := actions(rollouts.Plan(s, 2, rollouts.CauseRollback).Steps); got != "clear move" {
		t.Fatal(got)
	}
}

// TestTheReleaseToReturnToIsOneThatWorked goes through releases of which some fail.
func TestTheReleaseToReturnToIsOneThatWorked(t *testing.T) {
	st := storetest.New(t)
	s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Spec: &gantryv1.ServiceSpec{}}
	for n, test := range []struct {
		ends gantryv1.Operation_State
		from int64
	}{{operation.Done, 0}, {operation.Running, 1}, {operation.RolledBack, 1}, {operation.Done, 1}, {operation.Aborted, 4}, {operation.Running, 4}} {
		err := st.Update(t.Context(), func(tx *store.Tx) error {
			s.Release = int64(n) + 1
			store.Put(tx, &gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey("p/a/web", s.Release))})
			op := rollouts.Begin(tx, s, "me", rollouts.CauseUp, time.Now())
			if op.Rollout.From != test.from {
				t.Errorf("release %d would go back to %d", s.Release, op.Rollout.From)
			}
			op.State = test.ends
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAbort(t *testing.T) {
	st := storetest.New(t)
	s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Release: 2, PreviousRelease: 1, Spec: &gantryv1.ServiceSpec{}}
	err := st.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, s)
		first := rollouts.Plan(s, 0, "up")
		first.State = operation.Running
		if err := rollouts.Abort(tx, first, "me", time.Now()); !fault.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
			t.Errorf("a first release was aborted: %v", err)
		}
		op := rollouts.Plan(s, 1, "up")
		op.State = operation.Running
		if err := rollouts.Abort(tx, op, "me", time.Now()); err != nil {
			t.Error(err)
		}
		if got, _ := store.Get[*gantryv1.Service](tx, "p/a/web"); got.Release != 1 || rollouts.Goal(op) != 1 || actions(op.Steps) != "move return" {
			t.Errorf("%v %v", got, op)
		}
		if err := rollouts.Abort(tx, op, "me", time.Now()); !fault.Is(err, fault.Conflict) {
			t.Errorf("aborted twice: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
