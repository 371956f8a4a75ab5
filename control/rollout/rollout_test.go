package rollout

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

func put(t *testing.T, s *store.Store, objects ...store.Object) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		for _, o := range objects {
			store.Put(tx, o)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInstancesThatWereNeverPlacedAreForgotten(t *testing.T) {
	s := storetest.New(t)
	put(t, s, &gantryv1.Instance{Meta: store.NewMeta("a"), Environment: "p", Service: "a", Desired: removed})
	if _, err := New(s, slog.New(slog.DiscardHandler)).pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := store.List[*gantryv1.Instance](s.Snapshot(), ""); len(left) != 0 {
		t.Fatalf("%v", left)
	}
}

// TestDecisionsAreMadeOnWhatTheyChange scales a service to nothing while a pass that has seen it with one waits its turn.
func TestDecisionsAreMadeOnWhatTheyChange(t *testing.T) {
	s := storetest.New(t)
	spec := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}}
	put(t, s,
		&gantryv1.Service{Meta: store.NewMeta("p/a/web"), Environment: "p", App: "a", Name: "web", Replicas: 1, Release: 1, Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(ReleaseKey("p/a/web", 1)), Service: "p/a/web", Number: 1, Spec: spec})
	done := make(chan error, 1)
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		go func() {
			_, err := New(s, slog.New(slog.DiscardHandler)).pass(t.Context())
			done <- err
		}()
		if err := awaitStack(t.Context(), "store.(*Store).Update", "rollout.(*Controller).pass"); err != nil {
			return err
		}
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error { o.Replicas = 0; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if made := store.List[*gantryv1.Instance](s.Snapshot(), ""); len(made) != 0 {
		t.Fatalf("an outdated plan made %v", made)
	}
}

// awaitStack returns once some goroutine is in all the functions.
func awaitStack(ctx context.Context, functions ...string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 1<<20)
	for {
		for _, stack := range bytes.Split(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
			in := true
			for _, f := range functions {
				in = in && bytes.Contains(stack, []byte(f))
			}
			if in {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
