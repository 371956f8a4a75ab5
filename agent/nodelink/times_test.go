package nodelink

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
)

func options(server gantryv1connect.NodeSessionServiceClient) Options {
	return Options{
		Server: server, Outbox: NewOutbox(), Logger: slog.New(slog.DiscardHandler),
		Hello:  func() *gantryv1.NodeReport { return &gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: "n1"}} },
		Status: func() *gantryv1.NodeStatus { return &gantryv1.NodeStatus{Meta: &gantryv1.Meta{Key: "n1"}} },
		Take:   func(context.Context, *gantryv1.NodeUpdate) {},
	}
}

// TestHeartbeatsFollowTheCluster: three of them are sent before the node would be suspect, and one at once when the times change.
func TestHeartbeatsFollowTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(options(nil))
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var beats []time.Duration
		done := make(chan error, 1)
		go func() {
			done <- l.report(ctx, func(r *gantryv1.NodeReport) error {
				if r.Status != nil {
					beats = append(beats, time.Since(began).Truncate(time.Millisecond))
				}
				return nil
			})
		}()
		wait := func(until time.Duration) {
			<-time.After(until - time.Since(began))
			synctest.Wait()
		}
		wait(1500 * time.Millisecond)
		l.learn(nil)
		l.learn(&gantryv1.Cluster{SuspectAfter: durationpb.New(600 * time.Millisecond)})
		wait(2000 * time.Millisecond)
		l.learn(&gantryv1.Cluster{SuspectAfter: durationpb.New(time.Minute)})
		wait(4500 * time.Millisecond)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		const ms = time.Millisecond
		want := []time.Duration{666 * ms, 1333 * ms, 1500 * ms, 1700 * ms, 1900 * ms, 2000 * ms, 3000 * ms, 4000 * ms}
		if !slices.Equal(beats, want) {
			t.Errorf("heartbeats after %v, want %v", beats, want)
		}
	})
}

// TestASilentServerIsGivenUp: soon if it has never said anything, later with every server in a row that does not, and after the
// cluster's patience if it has.
func TestASilentServerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := &mute{}
		l := New(options(gantryv1connect.NewNodeSessionServiceClient(&http.Client{Transport: servers}, "http://server")))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		<-time.After(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(servers.waited) < 8 {
			t.Fatalf("in a minute the node tried %v", servers.waited)
		}
		for n, want := range []time.Duration{2, 3, 4, 5, 0, 2, 3, 4} { // the fifth is refused
			if got := servers.waited[n]; got != want*time.Second {
				t.Errorf("try %d was given up after %s, not %d s: %v", n, got, want, servers.waited)
			}
		}
	})
}

// mute is servers that say nothing, but for the fifth of them, which refuses.
type mute struct{ waited []time.Duration }

func (m *mute) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(m.waited) == 4 {
		m.waited = append(m.waited, 0)
		return nil, errors.New("connection refused")
	}
	began := time.Now()
	<-r.Context().Done()
	m.waited = append(m.waited, time.Since(began))
	return nil, r.Context().Err()
}

// TestATakenSessionHasThePatienceOfTheCluster: the first message, however small, says that the server has taken it.
func TestATakenSessionHasThePatienceOfTheCluster(t *testing.T) {
	ended := make(chan struct{}, 100)
	silent := serve(t, relay{func(ctx context.Context, s *connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]) error {
		if err := s.Send(&gantryv1.NodeUpdate{}); err != nil {
			return err
		}
		short := &gantryv1.Cluster{SuspectAfter: durationpb.New(10 * time.Millisecond)}
		if err := s.Send(&gantryv1.NodeUpdate{Full: true, Cluster: short}); err != nil {
			return err
		}
		<-ctx.Done()
		ended <- struct{}{}
		return nil
	}})
	l := New(options(silent))
	heard, err := l.session(t.Context(), time.Hour)
	if !heard || !fault.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "said nothing for 2s") {
		t.Errorf("heard %t, and the session ended with %v", heard, err)
	}
	<-ended
}

// guided is a server that is told who leads.
type guided struct {
	gantryv1connect.NodeSessionServiceClient
	told chan string
}

// Refer is part of Guide.
func (g guided) Refer(to string) { g.told <- to }

// TestWhoLeadsIsPassedOn: a server that refuses says who leads.
func TestWhoLeadsIsPassedOn(t *testing.T) {
	refuses := serve(t, relay{func(context.Context, *connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]) error {
		return fault.New(fault.Unavailable, "this server does not lead").WithHint("192.0.2.7:7450")
	}})
	g := guided{refuses, make(chan string, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(options(g)).Run(ctx) }()
	if got := <-g.told; got != "192.0.2.7:7450" {
		t.Errorf("told of %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
