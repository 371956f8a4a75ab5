package operations_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/server/operations"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
	"github.com/gantryd/gantry/store/storetest"
)

// serve answers for a store in which the service web is on its way from release 1 to 2, and api to its first.
func serve(t *testing.T) (*store.Store, gantryv1connect.OperationServiceClient) {
	t.Helper()
	s := storetest.New(t)
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		for _, name := range []string{"api", "web"} {
			svc := &gantryv1.Service{Meta: store.NewMeta("p/shop/" + name), Spec: &gantryv1.ServiceSpec{}, Release: 1}
			store.Put(tx, &gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey(svc.Meta.Key, 1))})
			store.Put(tx, svc)
			op := rollouts.Begin(tx, svc, "ann", rollouts.CauseUp, time.Now())
			if name == "web" {
				operation.Finish(op, operation.Done, time.Now())
				svc.Release = 2
				rollouts.Begin(tx, svc, "ann", rollouts.CauseUp, time.Now())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, h := gantryv1connect.NewOperationServiceHandler(operations.New(s))
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(rw, r.WithContext(caller.With(r.Context(), caller.Caller{User: "bob"})))
	}))
	t.Cleanup(srv.Close)
	return s, gantryv1connect.NewOperationServiceClient(srv.Client(), srv.URL)
}

func target(service string, number int64) *connect.Request[gantryv1.OperationTarget] {
	return connect.NewRequest(&gantryv1.OperationTarget{Environment: "p", App: "shop", Service: service, Number: number})
}

func TestOperationsAreListed(t *testing.T) {
	_, c := serve(t)
	for name, test := range map[string]struct {
		req  *gantryv1.ListOperationsRequest
		want int
	}{
		"all":                   {&gantryv1.ListOperationsRequest{}, 3},
		"of a service":          {&gantryv1.ListOperationsRequest{Environment: "p", App: "shop", Service: "web"}, 2},
		"active":                {&gantryv1.ListOperationsRequest{Active: true}, 2},
		"of another app":        {&gantryv1.ListOperationsRequest{App: "sho"}, 0},
		"another environment's": {&gantryv1.ListOperationsRequest{Environment: "q"}, 0},
	} {
		got, err := c.List(t.Context(), connect.NewRequest(test.req))
		if err != nil || len(got.Msg.Operations) != test.want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

func TestTheLastOneIsMeantWithoutANumber(t *testing.T) {
	_, c := serve(t)
	for number, want := range map[int64]int64{0: 2, 1: 1} {
		if got, err := c.Get(t.Context(), target("web", number)); err != nil || got.Msg.Number != want {
			t.Errorf("%v %v", got, err)
		}
	}
	for _, missing := range []*connect.Request[gantryv1.OperationTarget]{target("web", 9), target("nobody", 0)} {
		if _, err := c.Get(t.Context(), missing); err == nil {
			t.Errorf("%v was found", missing.Msg)
		}
	}
}

func TestOperationsAreSteeredAndWatched(t *testing.T) {
	s, c := serve(t)
	stream, err := c.Watch(t.Context(), target("web", 0))
	if err != nil {
		t.Fatal(err)
	}
	next := func(want gantryv1.Operation_State) *gantryv1.Operation {
		t.Helper()
		if !stream.Receive() || stream.Msg().State != want {
			t.Fatalf("%v, wanted %s: %v", stream.Msg(), operation.Word(want), stream.Err())
		}
		return stream.Msg()
	}
	next(operation.Pending)
	if _, err := c.Pause(t.Context(), target("web", 0)); err != nil {
		t.Fatal(err)
	}
	next(operation.Paused)
	if _, err := c.Pause(t.Context(), target("web", 0)); err == nil {
		t.Fatal("paused twice")
	}
	if _, err := c.Resume(t.Context(), target("web", 0)); err != nil {
		t.Fatal(err)
	}
	next(operation.Pending)
	if _, err := c.Abort(t.Context(), target("web", 0)); err != nil {
		t.Fatal(err)
	}
	if op := next(operation.Running); !op.Rollout.Back || op.Error != "aborted by bob" {
		t.Fatal(op)
	}
	if web, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/shop/web"); web.Release != 1 {
		t.Fatal(web)
	}
	err = s.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, operation.Key("p/shop/web", 2), func(op *gantryv1.Operation) error {
			operation.Finish(op, operation.Aborted, time.Now())
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	next(operation.Aborted)
	if stream.Receive() || stream.Err() != nil {
		t.Fatalf("what has ended is watched still: %v", stream.Err())
	}
}

func TestWhatHasNothingToGoBackToIsNotAborted(t *testing.T) {
	_, c := serve(t)
	if _, err := c.Abort(t.Context(), target("api", 0)); err == nil || fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
}
