package operation_test

import (
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

func step(name string, parts ...*gantryv1.OperationStep) *gantryv1.OperationStep {
	return &gantryv1.OperationStep{Name: name, State: operation.Pending, Steps: parts}
}

func tree() *gantryv1.Operation {
	return &gantryv1.Operation{Subject: "p/a/web", Number: 7, State: operation.Pending, Steps: []*gantryv1.OperationStep{
		step("a", step("a1"), step("a2")), step("b"),
	}}
}

func TestStepsComeInOrder(t *testing.T) {
	op, now := tree(), time.Unix(1e9, 0)
	var names []string
	for s := operation.Current(op); s != nil; s = operation.Current(op) {
		operation.Start(op, s, now)
		if op.State != operation.Running || op.Steps[0].State == operation.Pending {
			t.Fatalf("%v", op)
		}
		names = append(names, s.Name)
		operation.End(op, s, operation.Done, now)
	}
	if len(names) != 3 || names[0] != "a1" || names[1] != "a2" || names[2] != "b" || op.Steps[0].State != operation.Done {
		t.Fatalf("%v: %v", names, op)
	}
}

func TestWhatEndsEarlyLeavesNothingOpen(t *testing.T) {
	op, now := tree(), time.Unix(1e9, 0)
	operation.Start(op, operation.Current(op), now)
	operation.Finish(op, operation.Failed, now)
	if operation.Current(op) != nil || operation.Active(op) || op.Steps[1].State != operation.Aborted || op.EndedAt == nil {
		t.Fatalf("%v", op)
	}
	if err := operation.Pause(op); !fault.Is(err, fault.Conflict) {
		t.Fatalf("paused after its end: %v", err)
	}
	if err := operation.Resume(op, now); !fault.Is(err, fault.Conflict) {
		t.Fatalf("resumed after its end: %v", err)
	}
}

func TestPauseAndResume(t *testing.T) {
	op, now := tree(), time.Unix(1e9, 0)
	if err := operation.Resume(op, now); !fault.Is(err, fault.Conflict) {
		t.Fatalf("resumed what runs: %v", err)
	}
	operation.Start(op, operation.Current(op), now)
	if err := operation.Pause(op); err != nil {
		t.Fatal(err)
	}
	if err := operation.Pause(op); !fault.Is(err, fault.Conflict) {
		t.Fatalf("paused twice: %v", err)
	}
	if err := operation.Resume(op, now); err != nil || op.State != operation.Running || operation.Current(op).Name != "a1" {
		t.Fatalf("%v %v", err, op)
	}
	operation.Hold(op, operation.ForApproval)
	if err := operation.Resume(op, now); err != nil || operation.Current(op).Name != "a2" {
		t.Fatalf("what is approved is done: %v %v", err, op)
	}
}

func TestOnlyTheLastOnesAreKeptAndOneIsActive(t *testing.T) {
	s := storetest.New(t)
	for range operation.Keep + 5 {
		err := s.Update(t.Context(), func(tx *store.Tx) error { operation.Begin(tx, tree(), time.Unix(1e9, 0)); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	all := operation.All(s.Snapshot(), "p/a/web")
	if len(all) != operation.Keep || all[0].Number != 6 || operation.Last(s.Snapshot(), "p/a/web").Number != operation.Keep+5 {
		t.Fatalf("%d are kept, from %d", len(all), all[0].Number)
	}
	for _, op := range all[:len(all)-1] {
		if op.State != operation.Aborted || op.Error == "" {
			t.Fatalf("%v", op)
		}
	}
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		operation.Abandon(tx, "p/a/web", "it is a job now", time.Unix(1e9, 0))
		operation.Abandon(tx, "p/a/we", "there is none", time.Unix(1e9, 0))
		return nil
	})
	if last := operation.Last(s.Snapshot(), "p/a/web"); err != nil || operation.Active(last) || last.Error != "it is a job now" {
		t.Fatal(err, last)
	}
	if operation.Last(s.Snapshot(), "p/a/we") != nil {
		t.Fatal("another subject's operation was found")
	}
}
