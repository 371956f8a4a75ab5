package agent

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// A node that was removed hears so with every try to come back; it says once what that costs, and again after it was let in.
func TestExpulsionIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	a := &Agent{
		workers: map[string]*worker{}, told: make(chan struct{}), state: newEndpointState(nil, nil, "n1"),
		log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	w := a.neighbour("x1", "x", 1, 1)
	refused := fault.New(fault.Denied, "not of this cluster")
	said := func() int { return strings.Count(log.String(), "containers are removed, with what they have written") }
	a.expelled(refused)
	if said() != 1 || w.assignment().Instance.Desired != gantryv1.Instance_DESIRED_REMOVED {
		t.Fatalf("%v: %s", w.assignment().Instance, log.String())
	}
	w.retryAfter(time.Hour, 5)
	a.expelled(refused)
	if said() != 1 || w.failures != 5 {
		t.Fatalf("the second try: %d failures, %s", w.failures, log.String())
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	a.state.done = 2 // there is no kernel here to be told
	a.take(canceled, &gantryv1.NodeUpdate{})
	a.expelled(refused)
	if said() != 2 {
		t.Fatalf("after it was let in: %s", log.String())
	}
}

// An assignment of a release that is gone has no spec: the instance ends as the one that it was made from says.
func TestOneWhoseReleaseIsGoneEndsInItsOwnTime(t *testing.T) {
	a := &Agent{workers: map[string]*worker{}}
	w := a.neighbour("x1", "x", 1, 1)
	w.rec.Assignment.Spec = &gantryv1.ContainerSpec{StopSignal: "SIGINT", StopGracePeriod: durationpb.New(time.Minute)}
	w.rec.Assignment.DependsOn = []string{"db"}
	removed := &gantryv1.Instance{Meta: store.NewMeta("x1"), Desired: gantryv1.Instance_DESIRED_REMOVED}
	w.update(&gantryv1.Assignment{Instance: removed, Spec: &gantryv1.ContainerSpec{}})
	as := w.assignment()
	if as.Instance.Desired != gantryv1.Instance_DESIRED_REMOVED || grace(as) != time.Minute || as.Spec.StopSignal != "SIGINT" || len(as.DependsOn) != 1 {
		t.Fatalf("%v", as)
	}
	removed.StopGrace = durationpb.New(time.Second)
	w.update(&gantryv1.Assignment{Instance: removed})
	if got := grace(w.assignment()); got != time.Second {
		t.Fatalf("told how long, it is given %v", got)
	}
	w.update(&gantryv1.Assignment{Instance: removed, Spec: &gantryv1.ContainerSpec{StopSignal: "SIGTERM"}})
	if got := w.assignment().Spec.StopSignal; got != "SIGTERM" {
		t.Fatalf("with a spec: %q", got)
	}
}
