package daemon

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/control/replicate"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

// fetching is a machine that is told to fetch an image.
type fetching struct {
	gantryv1connect.UnimplementedImageServiceHandler
	asked chan *gantryv1.PullRequest
	do    func(context.Context, *connect.ServerStream[gantryv1.Progress]) error
}

func (f *fetching) Pull(ctx context.Context, r *connect.Request[gantryv1.PullRequest], s *connect.ServerStream[gantryv1.Progress]) error {
	f.asked <- r.Msg
	if err := f.do(ctx, s); err != nil {
		return wire.Encode(err)
	}
	return nil
}

// TestFetchAhead tells how a copy ends: well, with the machine's reason, or with its silence.
func TestFetchAhead(t *testing.T) {
	step := &gantryv1.Progress{Status: "downloading"}
	for name, c := range map[string]struct {
		do       func(context.Context, *connect.ServerStream[gantryv1.Progress]) error
		patience time.Duration
		want     fault.Kind
	}{
		"well": {func(_ context.Context, s *connect.ServerStream[gantryv1.Progress]) error { return s.Send(step) }, time.Hour, fault.Unknown},
		"another pull goes before": {func(context.Context, *connect.ServerStream[gantryv1.Progress]) error {
			return fault.New(fault.Conflict, "it gave way")
		}, time.Hour, fault.Conflict},
		"it falls silent": {func(ctx context.Context, s *connect.ServerStream[gantryv1.Progress]) error {
			err := s.Send(step)
			<-ctx.Done()
			return err
		}, 50 * time.Millisecond, fault.Timeout},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fetching{asked: make(chan *gantryv1.PullRequest, 1), do: c.do}
			mux := http.NewServeMux()
			mux.Handle(gantryv1connect.NewImageServiceHandler(f))
			srv := httptest.NewServer(mux)
			defer srv.Close()
			way := gantryv1connect.NewImageServiceClient(srv.Client(), srv.URL)
			err := fetchAhead(t.Context(), way, replicate.Image{Reference: "app:1@sha256:1", Platform: "linux/arm64"}, c.patience)
			if got := fault.KindOf(err); got != c.want || c.want == fault.Unknown && err != nil {
				t.Errorf("%v (%s), want %q", err, got, c.want)
			}
			r := <-f.asked
			if !r.Ahead || r.Policy != gantryv1.PullPolicy_PULL_POLICY_NEVER || r.Image != "app:1@sha256:1" || r.Platform != "linux/arm64" {
				t.Errorf("asked for %v", r)
			}
		})
	}
}
