package nodelink

import (
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func TestOutboxKeepsTheNewestAndPutsBackTheUnsent(t *testing.T) {
	o := NewOutbox()
	st := func(pid uint32) *gantryv1.InstanceStatus {
		return &gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: "a"}, Pid: pid}
	}
	o.Status(st(1))
	o.Status(st(2))
	r := o.take()
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
