package agent

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func TestPortsInHostModeArePublishedWhereAnInstanceRuns(t *testing.T) {
	s := &gantryv1.ServiceEndpoints{
		Endpoints: []*gantryv1.Endpoint{{Instance: "i1", Node: "n1"}},
		Ports:     []*gantryv1.PortPublish{{HostPort: 80, Mode: "host"}, {HostPort: 81, Mode: "ingress"}, {HostPort: 82}},
	}
	if got := portsHere(s, "n1"); len(got) != 3 {
		t.Errorf("on its node: %v", got)
	}
	if got := portsHere(s, "n2"); len(got) != 2 || got[0].HostPort != 81 || got[1].HostPort != 82 {
		t.Errorf("on another node: %v", got)
	}
	if len(s.Ports) != 3 {
		t.Error("the service itself was changed")
	}
}

func TestEndpointsOfThisMachineAreItsOwnWordAndTheServersWeight(t *testing.T) {
	e := newEndpointState(nil, nil, "n1")
	e.update(&gantryv1.NodeUpdate{
		Full: true, Nodes: []*gantryv1.Node{{Meta: &gantryv1.Meta{Key: "n2"}}, {Meta: &gantryv1.Meta{Key: "n3"}}},
		Endpoints: []*gantryv1.ServiceEndpoints{{Service: "e/a/s", Endpoints: []*gantryv1.Endpoint{
			{Instance: "here", Node: "n1", Address: "10.64.1.9", Ready: true, Weight: 7},
			{Instance: "gone", Node: "n1", Address: "10.64.1.8", Ready: true},
			{Instance: "there", Node: "n2", Address: "10.64.2.9", Ready: true, Weight: 3},
		}}},
	})
	e.update(&gantryv1.NodeUpdate{RemovedNodes: []string{"n3"}})
	i := &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "here"}, Environment: "e", App: "a", Service: "s", Slot: 1}
	e.setLocal(i, &gantryv1.InstanceStatus{Address: "10.64.1.9", Phase: gantryv1.InstanceStatus_PHASE_STOPPING})
	st := e.state()
	if len(st.Nodes) != 1 || st.Nodes[0].Meta.Key != "n2" {
		t.Errorf("nodes: %v", st.Nodes)
	}
	got := st.Endpoints[0].Endpoints
	if len(got) != 2 || got[0].Instance != "here" || got[0].Ready || got[0].Weight != 7 || got[1].Instance != "there" || got[1].Weight != 3 {
		t.Errorf("endpoints: %v", got)
	}
	// What does not change stays the same object, which is how the network knows; what does is another.
	again := e.state()
	if again.Endpoints[0] != st.Endpoints[0] {
		t.Error("an unchanged service is another object")
	}
	e.setLocal(i, &gantryv1.InstanceStatus{Address: "10.64.1.9", Phase: gantryv1.InstanceStatus_PHASE_RUNNING})
	if now := e.state().Endpoints[0]; now == st.Endpoints[0] || st.Endpoints[0].Endpoints[0].Ready || !now.Endpoints[0].Ready {
		t.Errorf("after a change: %v, and the one before: %v", now, st.Endpoints[0])
	}
	e.update(&gantryv1.NodeUpdate{Endpoints: []*gantryv1.ServiceEndpoints{{Service: "e/a/s", Endpoints: []*gantryv1.Endpoint{
		{Instance: "here", Node: "n1", Address: "10.64.1.9", Weight: -1},
		{Instance: "there", Node: "n2", Address: "10.64.2.9", Ready: true, Weight: 3},
	}}}})
	if now := e.state().Endpoints[0].Endpoints[0]; now.Instance != "here" || now.Ready {
		t.Errorf("traffic that a rollout withholds: %v", now)
	}
	e.dropLocal("here")
	if now := e.state().Endpoints[0].Endpoints; len(now) != 1 || now[0].Instance != "there" {
		t.Errorf("after it is gone: %v", now)
	}
	e.update(&gantryv1.NodeUpdate{RemovedEndpoints: []string{"e/a/s"}})
	if now := e.state().Endpoints; len(now) != 0 {
		t.Errorf("a removed service stays: %v", now)
	}
}

// TestAddressesOutliveTheServerThatTold has another server lead, which has not heard all nodes.
func TestAddressesOutliveTheServerThatTold(t *testing.T) {
	e := newEndpointState(nil, nil, "n1")
	say := func(full bool, endpoints ...*gantryv1.Endpoint) string {
		e.update(&gantryv1.NodeUpdate{Full: full, Endpoints: []*gantryv1.ServiceEndpoints{{Service: "e/a/s", VirtualIp: "10.1.1.1", Endpoints: endpoints}}})
		out := ""
		for _, ep := range e.state().Endpoints[0].Endpoints {
			out += fmt.Sprintf("%s %s %t; ", ep.Instance, ep.Address, ep.Ready)
		}
		return out
	}
	unheard := func(id string, ready bool) *gantryv1.Endpoint {
		return &gantryv1.Endpoint{Instance: id, Node: "n2", Ready: ready}
	}
	a := &gantryv1.Endpoint{Instance: "a", Node: "n2", Address: "10.64.2.1", Ready: true}
	b := &gantryv1.Endpoint{Instance: "b", Node: "n2", Address: "10.64.2.2"}
	c := &gantryv1.Endpoint{Instance: "c", Node: "n3", Address: "10.64.3.3", Ready: true}
	for _, step := range []struct {
		what, want, got string
	}{
		{"told", "a 10.64.2.1 true; b 10.64.2.2 false; c 10.64.3.3 true; ", say(true, a, b, c)},
		{"nothing is heard", "a 10.64.2.1 true; b 10.64.2.2 false; ", say(true, unheard("a", true), unheard("b", true), unheard("new", true))},
		{"one is, another goes", "a 10.64.2.1 false; b 10.64.2.2 false; c 10.64.3.3 true; ", say(false, unheard("a", false), unheard("b", true), c)},
		{"all is", "a 10.64.2.1 true; ", say(false, a)},
	} {
		if step.got != step.want {
			t.Errorf("%s: %s, want %s", step.what, step.got, step.want)
		}
	}
}

func TestCopiesOfServicesAreWhole(t *testing.T) {
	const known = 10 // delta and removed have done their work before
	if n := (&gantryv1.ServiceEndpoints{}).ProtoReflect().Descriptor().Fields().Len(); n != known {
		t.Errorf("ServiceEndpoints has %d fields, and withPorts knows of %d", n, known)
	}
	s := &gantryv1.ServiceEndpoints{
		Service: "e/a/s", Environment: "e", App: "a", Name: "s", VirtualIp: "10.96.0.1", Endpoints: []*gantryv1.Endpoint{{Instance: "i"}},
		Ports: []*gantryv1.PortPublish{{HostPort: 1}}, Attachments: []*gantryv1.NetworkAttachment{{Network: "n"}},
	}
	if !proto.Equal(withPorts(s, s.Ports), s) {
		t.Errorf("%v", withPorts(s, s.Ports))
	}
}
