package rollout_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store/progress"
)

// TestAMomentsFailureIsNoFaultOfTheRelease: the node tries again by itself.
func TestAMomentsFailureIsNoFaultOfTheRelease(t *testing.T) {
	for name, c := range map[string]struct {
		seconds int // for which no instance of the release can be made
		state   gantryv1.Operation_State
	}{
		"three seconds": {3, operation.Done}, "half a minute": {30, operation.Paused},
	} {
		w := newWorld(3, nil)
		w.failing = map[string]time.Time{}
		w.settle(t)
		w.breakNext()
		for range c.seconds {
			w.round(t)
		}
		delete(w.bad, w.next)
		w.settle(t)
		if w.op.State != c.state {
			t.Errorf("%s: %s", name, w)
		}
	}
}

// pausedFor breaks an update and returns the instance for which it paused.
func pausedFor(t *testing.T) (*world, *gantryv1.InstanceView) {
	t.Helper()
	w := newWorld(3, nil)
	w.settle(t)
	w.breakNext().settle(t)
	if w.op.State != operation.Paused {
		t.Fatal(w)
	}
	delete(w.bad, w.next)
	return w, w.find(t, w.op.Rollout.FailedInstance)
}

// TestAFailureOnANodeThatGoesDownIsTheNodes: what a machine does in its last seconds says nothing about a release.
func TestAFailureOnANodeThatGoesDownIsTheNodes(t *testing.T) {
	for name, gone := range map[string]func(*world, string){
		"down":    func(w *world, node string) { w.lose(node) },
		"removed": func(w *world, node string) { w.states[node] = progress.NodeRemoved },
	} {
		w, failed := pausedFor(t)
		gone(w, failed.Instance.Node)
		w.settle(t)
		if w.op.State != operation.Done || w.count(2, phaseRunning) != 3 {
			t.Errorf("%s: %s", name, w)
		}
	}
	w, failed := pausedFor(t)
	w.now = w.now.Add(time.Hour)
	w.lose(failed.Instance.Node)
	w.settle(t)
	if w.op.State != operation.Paused {
		t.Errorf("a node that goes down much later clears the release: %s", w)
	}
}

// TestTheNextLeaderGoesOnCounting: a monitor of a minute that every new leader begins anew would never end.
func TestTheNextLeaderGoesOnCounting(t *testing.T) {
	for name, update := range map[string]*gantryv1.UpdateConfig{
		"monitor": {Monitor: durationpb.New(time.Minute)}, "delay": {Delay: durationpb.New(time.Minute)},
	} {
		w := newWorld(2, update)
		w.settle(t)
		w.update()
		for len(w.op.Rollout.Ready) == 0 {
			w.round(t)
		}
		writes := 0
		for range 50 {
			op := w.op
			if w.round(t); !proto.Equal(op, w.op) {
				writes++
			}
		}
		if writes > 2 {
			t.Errorf("%s: %d writes while nothing happens", name, writes)
		}
		if len(w.op.Rollout.Ready) != 1 || w.op.Rollout.Moved != 1 {
			t.Errorf("%s: %s", name, w)
		}
		w.settle(t)
		if w.wants(t, operation.Done, 2); len(w.op.Rollout.Ready) != 0 {
			t.Errorf("%s: notes are left: %v", name, w.op)
		}
	}
}
