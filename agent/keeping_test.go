package agent

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// keeper is a worker with records on disk, and nothing else.
func keeper(t *testing.T, slot int32) (*worker, *records) {
	t.Helper()
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{records: r, state: newEndpointState(nil, nil, "n1"), reports: nodelink.NewOutbox(), log: slog.New(slog.DiscardHandler)}
	return newWorker(a, &gantryv1.InstanceRecord{
		Assignment: &gantryv1.Assignment{Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "abc"}, Slot: slot}},
		Status:     &gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: "abc"}},
	}), r
}

func recorded(t *testing.T, r *records) *gantryv1.InstanceRecord {
	t.Helper()
	recs, err := r.load()
	if err != nil || len(recs) > 1 {
		t.Fatalf("%v, %v", recs, err)
	}
	if len(recs) == 0 {
		return nil
	}
	return recs[0]
}

// The end of what `gantry run` started is told at once and written a moment later, also when the daemon stops before.
func TestProgressSettles(t *testing.T) {
	w, r := keeper(t, 0)
	w.lived(inPhase(gantryv1.InstanceStatus_PHASE_RUNNING))
	if recorded(t, r) != nil {
		t.Fatal("written at once")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w.sleep(ctx, 0) {
		t.Fatal("goes on")
	}
	if got := recorded(t, r).GetStatus().GetPhase(); got != gantryv1.InstanceStatus_PHASE_RUNNING {
		t.Fatalf("after the stop: %v", got)
	}
	w.lived(inPhase(gantryv1.InstanceStatus_PHASE_EXITED))
	if !w.sleep(t.Context(), 3*settling) {
		t.Fatal("does not go on")
	}
	if got := recorded(t, r).GetStatus().GetPhase(); got != gantryv1.InstanceStatus_PHASE_EXITED {
		t.Fatalf("after a moment: %v", got)
	}
}

// A service's instance has its start and end on disk when it has told them: who routes to it asks the record after a crash.
func TestServicesAreRecordedAtOnce(t *testing.T) {
	w, r := keeper(t, 1)
	w.lived(inPhase(gantryv1.InstanceStatus_PHASE_RUNNING))
	if got := recorded(t, r).GetStatus().GetPhase(); got != gantryv1.InstanceStatus_PHASE_RUNNING {
		t.Fatalf("on disk: %v", got)
	}
}

// A start is noted on disk once, and again until it is there.
func TestStartIsNoted(t *testing.T) {
	w, r := keeper(t, 0)
	if err := w.noteStart(3, 1); err != nil || recorded(t, r).GetStartedRuns() != 1 || recorded(t, r).GetStartedGeneration() != 3 {
		t.Fatalf("%v: %v", err, recorded(t, r))
	}
	if err := os.Remove(r.path("abc")); err != nil {
		t.Fatal(err)
	}
	if err := w.noteStart(3, 1); err != nil || recorded(t, r) != nil {
		t.Fatalf("noted twice: %v", err)
	}
	dir := r.dir
	r.dir = "/proc/no-such-place"
	if err := w.noteStart(3, 2); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("without a disk: %v", err)
	}
	if err := w.noteStart(3, 2); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("the second try took the first one's word: %v", err)
	}
	if w.settle() {
		t.Fatal("settled without a disk")
	}
	r.dir = dir
	if err := w.noteStart(3, 2); err != nil || recorded(t, r).GetStartedRuns() != 2 {
		t.Fatalf("%v: %v", err, recorded(t, r))
	}
}

// What is done beside the saving does not hide that it failed, nor the other way round.
func TestSaveWhile(t *testing.T) {
	w, r := keeper(t, 0)
	if err := w.saveWhile(func() error { return nil }); err != nil || recorded(t, r) == nil {
		t.Fatalf("%v", err)
	}
	broken := fault.New(fault.Conflict, "no")
	if err := w.saveWhile(func() error { return broken }); err != broken {
		t.Fatalf("%v", err)
	}
	r.dir = "/proc/no-such-place"
	if err := w.saveWhile(func() error { return nil }); !fault.Is(err, fault.Unavailable) || !w.isUnsaved() {
		t.Fatalf("%v", err)
	}
}
