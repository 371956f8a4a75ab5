package nodelink

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

func TestOutboxKeepsTheNewestAndPutsBackTheUnsent(t *testing.T) {
	o := NewOutbox()
	st := func(pid uint32) *gantryv1.InstanceStatus {
		return &gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: "a"}, Pid: pid}
	}
	o.Status(st(1))
	o.Status(st(2))
	if o.Len() != 1 {
		t.Errorf("%d observations wait, of one instance", o.Len())
	}
	r := o.take()
	if o.Len() != 0 {
		t.Errorf("%d observations wait after all were taken", o.Len())
	}
	if len(r.Statuses) != 1 || r.Statuses[0].Pid != 2 {
		t.Fatalf("%v", r)
	}
	o.Status(st(3))
	o.putBack(r)
	if r = o.take(); len(r.Statuses) != 1 || r.Statuses[0].Pid != 3 {
		t.Fatalf("an older one replaced a newer: %v", r)
	}
	o.Gone("a")
	if r = o.take(); len(r.Removed) != 1 || len(r.Statuses) != 0 {
		t.Fatalf("%v", r)
	}
}

func endpoint(id string, ready bool) *gantryv1.Endpoint {
	return &gantryv1.Endpoint{Instance: id, Ready: ready}
}

func TestUpdatesAreWholeAndEndpointsAreNoDifferences(t *testing.T) {
	in := newInbox()
	if u := in.add(&gantryv1.NodeUpdate{}); u != nil {
		t.Fatalf("a sign of life was acted on: %v", u)
	}
	first := &gantryv1.ServiceEndpoints{Service: "p/a/db", Name: "db", Endpoints: []*gantryv1.Endpoint{endpoint("1", false)}}
	if u := in.add(&gantryv1.NodeUpdate{Full: true, More: true, Endpoints: []*gantryv1.ServiceEndpoints{first}}); u != nil {
		t.Fatalf("half an update was acted on: %v", u)
	}
	u := in.add(&gantryv1.NodeUpdate{
		Assignments: []*gantryv1.Assignment{{}},
		Endpoints:   []*gantryv1.ServiceEndpoints{{Service: "p/a/db", Delta: true, Endpoints: []*gantryv1.Endpoint{endpoint("2", true)}}},
	})
	if u == nil || !u.Full || u.More || len(u.Assignments) != 1 || len(u.Endpoints) != 1 || len(u.Endpoints[0].Endpoints) != 2 {
		t.Fatalf("put together: %v", u)
	}
	u = in.add(&gantryv1.NodeUpdate{Endpoints: []*gantryv1.ServiceEndpoints{{
		Service: "p/a/db", Delta: true, Removed: []string{"2"}, Endpoints: []*gantryv1.Endpoint{endpoint("1", true)},
	}}})
	want := &gantryv1.ServiceEndpoints{Service: "p/a/db", Name: "db", Endpoints: []*gantryv1.Endpoint{endpoint("1", true)}}
	if !proto.Equal(u.Endpoints[0], want) {
		t.Fatalf("after a difference: %v", u.Endpoints[0])
	}
	other := &gantryv1.ServiceEndpoints{Service: "p/a/db", Name: "db"}
	if u = in.add(&gantryv1.NodeUpdate{Endpoints: []*gantryv1.ServiceEndpoints{other}}); len(u.Endpoints[0].Endpoints) != 0 {
		t.Fatalf("the whole did not replace what was there: %v", u.Endpoints[0])
	}
}

// relay is a server that does what a test says.
type relay struct {
	session func(context.Context, *connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]) error
}

// Session is part of the API.
func (r relay) Session(ctx context.Context, s *connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]) error {
	if err := r.session(ctx, s); err != nil {
		return wire.Encode(err)
	}
	return nil
}

// turns is two servers that are asked in turn.
type turns struct {
	clients []gantryv1connect.NodeSessionServiceClient
	asked   atomic.Int64
}

// Session is part of nodelink's way to servers.
func (s *turns) Session(ctx context.Context) *connect.BidiStreamForClient[gantryv1.NodeReport, gantryv1.NodeUpdate] {
	n := s.asked.Add(1) - 1
	return s.clients[int(n)%len(s.clients)].Session(ctx)
}

func serve(t *testing.T, r relay) gantryv1connect.NodeSessionServiceClient {
	_, h := gantryv1connect.NewNodeSessionServiceHandler(r)
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.CloseClientConnections)
	return gantryv1connect.NewNodeSessionServiceClient(s.Client(), s.URL)
}

// TestTheNextServerIsTried has one server that does not lead, and one that ends every second session after it heard a report.
func TestTheNextServerIsTried(t *testing.T) {
	refuses := serve(t, relay{func(context.Context, *connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]) error {
		return fault.New(fault.Unavailable, "this server does not lead")
	}})
	reports := make(chan *gantryv1.NodeReport, 100)
	var sessions atomic.Int64
	leads := serve(t, relay{func(_ context.Context, s *connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]) error {
		n := sessions.Add(1)
		if err := s.Send(&gantryv1.NodeUpdate{Full: true, Servers: []string{"leader"}}); err != nil {
			return err
		}
		for {
			r, err := s.Receive()
			if err != nil {
				return err
			}
			reports <- r
			if n == 1 && len(r.Statuses) > 0 && r.Hello == nil {
				return fault.New(fault.Unavailable, "this server leads no longer")
			}
		}
	}})
	box, taken := NewOutbox(), make(chan *gantryv1.NodeUpdate, 100)
	last := &gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: "a"}, Pid: 7}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	l := New(Options{
		Server: &turns{clients: []gantryv1connect.NodeSessionServiceClient{refuses, leads}}, Outbox: box,
		Hello: func() *gantryv1.NodeReport {
			return &gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: "n1"}, Statuses: []*gantryv1.InstanceStatus{last}}
		},
		Status: func() *gantryv1.NodeStatus { return &gantryv1.NodeStatus{Meta: &gantryv1.Meta{Key: "n1"}} },
		Take:   func(_ context.Context, u *gantryv1.NodeUpdate) { taken <- u },
		Logger: slog.New(slog.DiscardHandler),
	})
	go func() { done <- l.Run(ctx) }()
	if u := <-taken; !u.Full {
		t.Fatalf("the first update: %v", u)
	}
	if r := <-reports; r.GetHello().GetNode() != "n1" {
		t.Fatalf("the first report: %v", r)
	}
	box.Status(last)
	<-taken // of the second session
	for r := range reports {
		if r.Hello != nil { // it says everything again
			if len(r.Statuses) != 1 || r.Statuses[0].Pid != 7 {
				t.Fatalf("the second hello: %v", r)
			}
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
