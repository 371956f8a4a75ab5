package rollout

import (
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// TestALeaderTakesOverWhatWasCounted: observations are gone with the leader that had them; the nodes tell them again.
func TestALeaderTakesOverWhatWasCounted(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 1)
	update(t, s, func(tx *store.Tx) error {
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error {
			o.Spec.Update = &gantryv1.UpdateConfig{Monitor: durationpb.New(time.Hour)}
			return nil
		})
	})
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	release(t, s, 2)
	op := func() *gantryv1.Operation { return operation.Last(s.Snapshot(), "p/a/web") }
	for len(op().GetRollout().GetReady()) == 0 {
		pass(t, c, sub)
		if !agents(t, s, 0) && len(op().GetRollout().GetReady()) > 0 {
			break
		}
	}
	var id string
	for id = range op().Rollout.Ready {
	}
	since := op().Rollout.Ready[id].AsTime()
	for _, test := range []struct { // in this order: the second leader notes another time
		name  string
		begun time.Time
	}{{"the same process", since.Add(-time.Second)}, {"a process that has begun since", since.Add(30 * time.Second)}} {
		said, _ := store.Get[*gantryv1.InstanceStatus](s.Snapshot(), id)
		s.Forget()
		next := New(s, slog.New(slog.DiscardHandler))
		next.now, next.slow = func() time.Time { return c.now().Add(time.Minute) }, time.Hour
		events, err := next.start()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(events.Close)
		pass(t, next, events)
		st := &gantryv1.InstanceStatus{Meta: store.NewMeta(id), Node: said.Node, Phase: gantryv1.InstanceStatus_PHASE_RUNNING, StartedAt: timestamppb.New(test.begun)}
		s.Observe([]store.Object{st}, nil)
		pass(t, next, events)
		got := next.index.owner[id].since[id]
		if kept := got.Equal(since); kept != test.begun.Before(since) || got.IsZero() {
			t.Errorf("%s: ready since %s, noted %s", test.name, got, since)
		}
	}
}
