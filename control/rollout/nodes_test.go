package rollout_test

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store/progress"
)

func TestWhatWasOnALostNodeRunsElsewhere(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(6, &gantryv1.UpdateConfig{Order: order})
			w.settle(t)
			w.lose("n1")
			w.step(t)
			if len(w.instances) != 8 {
				t.Fatalf("the lost ones hold up others, or settings do: %s", w)
			}
			w.settle(t)
			if w.count(1, phaseRunning) != 6 {
				t.Fatal(w)
			}
			w.heal("n1")
			w.settle(t)
			w.wants(t, operation.Done, 6)
		})
	}
}

func TestDataKeepsAnInstanceOnItsNode(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	pinned := w.instances[0]
	w.pinned[pinned.Instance.Meta.Key] = true
	w.lose(pinned.Instance.Node)
	w.settle(t)
	if len(w.instances) != 3 || pinned.Instance.Desired != desiredRunning {
		t.Fatalf("it has to wait for its node: %s", w)
	}
	w.update().settle(t)
	if w.count(2, phaseRunning) != 2 {
		t.Fatalf("it holds up the others: %s", w)
	}
	w.heal(pinned.Instance.Node)
	w.settle(t)
	w.wants(t, operation.Done, 3)
}

func TestADrainedNodeIsLeftAFewAtATime(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(9, &gantryv1.UpdateConfig{Order: order, Parallelism: 2})
			w.settle(t)
			w.states["n1"] = progress.NodeDrained
			least := 9
			if order == "stop-first" {
				least = 7
			}
			for range 100 {
				w.step(t)
				for _, i := range append([]*gantryv1.InstanceView(nil), w.instances...) {
					w.node(i)
					if w.serving() < least || len(w.instances) > 11 {
						t.Fatalf("too many at a time: %s", w)
					}
				}
			}
			w.wants(t, operation.Done, 9)
			for _, i := range w.instances {
				if i.Instance.Node == "n1" {
					t.Fatal(w)
				}
			}
		})
	}
}

func TestDataStaysOnADrainedNode(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.pinned[w.instances[0].Instance.Meta.Key] = true
	w.states[w.instances[0].Instance.Node] = progress.NodeDrained
	if w.step(t) {
		t.Fatal(w)
	}
}

func TestWhatWasOnARemovedNodeIsForgotten(t *testing.T) {
	w := newWorld(3, nil)
	w.settle(t)
	w.states["n1"] = progress.NodeRemoved
	w.step(t)
	for _, i := range w.instances {
		if i.Instance.Node == "n1" {
			t.Fatal(w)
		}
	}
	w.settle(t)
	w.wants(t, operation.Done, 3)
}

func TestARolloutGoesOnWhileANodeIsLost(t *testing.T) {
	w := newWorld(6, nil)
	w.settle(t)
	w.update()
	w.step(t)
	w.lose("n2")
	w.settle(t)
	if w.op.State != operation.Done || w.count(2, phaseRunning) != 6 {
		t.Fatal(w)
	}
}

func TestAGlobalInstanceWaitsForItsNode(t *testing.T) {
	w := newWorld(1, nil)
	w.service.Spec.Mode = "global"
	w.settle(t)
	w.lose("n2")
	if w.step(t) {
		t.Fatal(w)
	}
	w.states["n2"] = progress.NodeRemoved
	w.nodes = []string{"n1", "n3"}
	plan := w.decide()
	if len(plan.Changes) != 1 || plan.Changes[0].Action != rollout.Forget {
		t.Fatalf("%v: %s", plan, w)
	}
}

// TestWhatANodeHasNotSaidEndsNothing: a leader that has just begun knows no node's architecture. What is there stays, the rollout
// waits, and nothing is put where it may not belong.
func TestWhatANodeHasNotSaidEndsNothing(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(1, &gantryv1.UpdateConfig{Order: order})
			w.service.Spec.Mode = "global"
			w.settle(t)
			w.update()
			w.unsure = map[string]bool{"n0": true, "n1": true, "n2": true, "n3": true}
			w.nodes = append([]string{"n0"}, w.nodes...)
			w.settle(t)
			if w.made != 3 || w.count(1, phaseRunning) != 3 || w.op.State != operation.Running {
				t.Fatal(w)
			}
			w.lose("n3") // it never speaks again
			w.unsure = map[string]bool{"n3": true}
			w.nodes = w.nodes[1:] // another architecture
			w.settle(t)
			if w.op.State != operation.Done || w.count(2, phaseRunning) != 2 || len(w.instances) != 3 {
				t.Fatalf("a node that is down keeps what it has, and holds nothing up: %s", w)
			}
		})
	}
}

// TestARolloutWaitsForNodesThatHaveNotSpoken: none has an instance yet.
func TestARolloutWaitsForNodesThatHaveNotSpoken(t *testing.T) {
	w := newWorld(1, nil)
	w.service.Spec.Mode = "global"
	w.unsure = map[string]bool{"n1": true, "n2": true, "n3": true}
	w.settle(t)
	if w.op.State != operation.Running || len(w.instances) != 0 {
		t.Fatal(w)
	}
	w.lose("n1")
	w.unsure = map[string]bool{"n1": true}
	w.settle(t)
	w.wants(t, operation.Done, 2)
}
