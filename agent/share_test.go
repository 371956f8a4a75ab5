package agent

import (
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network"
	"github.com/gantryd/gantry/store"
)

// neighbour puts a worker for an instance of the app a on the machine.
func (a *Agent) neighbour(id, service string, slot int32, release int64) *worker {
	w := newWorker(a, &gantryv1.InstanceRecord{
		Assignment: &gantryv1.Assignment{
			Spec: &gantryv1.ContainerSpec{}, Instance: &gantryv1.Instance{
				Meta: store.NewMeta(id), Environment: "p", App: "a", Service: service, Slot: slot, Release: release,
				Desired: gantryv1.Instance_DESIRED_RUNNING,
			},
		},
		Status: &gantryv1.InstanceStatus{Meta: store.NewMeta(id)},
	})
	a.workers[id] = w
	return w
}

// sidecar shares the namespaces of the service x.
func sidecar(a *Agent, slot int32) *worker {
	w := a.neighbour("side", "side", slot, 1)
	w.rec.Assignment.Spec = &gantryv1.ContainerSpec{
		Network: &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_SERVICE, Target: "x"}, PidMode: "service:x",
	}
	return w
}

// Which instance is shared with does not depend on the order in which they are looked at, and an update that starts the new
// instance beside the old one makes nobody anew before the old one goes.
func TestOneStaysWithWhomOneShares(t *testing.T) {
	for range 20 { // maps are in another order each time
		a := &Agent{workers: map[string]*worker{}}
		w := sidecar(a, 3)
		old := a.neighbour("old", "x", 1, 1)
		chosen := func() string { return w.peer(w.assignment().Instance, "x").id }
		if got := chosen(); got != "old" {
			t.Fatalf("beside one that runs: %q", got)
		}
		if err := w.noteJoined(w.assignment()); err != nil || w.rec.Joined != "net:old pid:old@0" {
			t.Fatalf("%v: %q", err, w.rec.Joined)
		}
		a.neighbour("0", "x", 1, 1)
		for _, id := range []string{"b", "a", "c"} {
			a.neighbour(id, "x", 1, 2)
		}
		if moved, err := w.moved(w.assignment()); moved || err != nil {
			t.Fatalf("away from one that is wanted: %v, to %q", err, chosen())
		}
		old.retire()
		if moved, err := w.moved(w.assignment()); !moved || err != nil {
			t.Fatalf("stays with one that goes: %v", err)
		}
		if got := chosen(); got != "a" {
			t.Fatalf("of those of the new release: %q", got)
		}
		a.neighbour("same", "x", 3, 1)
		if got := chosen(); got != "same" {
			t.Fatalf("with one of the same slot: %q", got)
		}
		if got := w.peer(w.assignment().Instance, "c").id; got != "c" {
			t.Fatalf("the one that was named: %q", got)
		}
	}
}

// One that comes first waits for the one whose network it is to share: it makes none in that one's place.
func TestOneWaitsForTheNetworkThatItShares(t *testing.T) {
	a := &Agent{workers: map[string]*worker{}, Parts: Parts{Network: &network.Network{}}}
	w := sidecar(a, 1)
	if err := w.noteJoined(w.assignment()); !fault.Is(err, fault.Unavailable) || fault.HintOf(err) == "" {
		t.Fatalf("beside nobody: %v", err)
	}
	x := a.neighbour("x1", "x", 1, 1)
	var req engine.CreateRequest
	if err := w.join(w.assignment(), "x", &req); !fault.Is(err, fault.Unavailable) || req.Netns != "" {
		t.Fatalf("beside one without a network: %v, %q", err, req.Netns)
	}
	if err := w.share(w.assignment(), &req); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("beside one without a process: %v", err)
	}
	w.retryAfter(time.Hour, 5)
	a.pokeJoined(x.assignment().Instance)
	if wait := time.Until(w.notBefore); wait > 0 || len(w.wake) != 1 {
		t.Fatalf("that one has started, and the next try is in %v", wait)
	}
}
