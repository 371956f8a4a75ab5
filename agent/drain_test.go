package agent

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestLeaving looks at what others know of an instance that stops.
func TestLeaving(t *testing.T) {
	node := func(id string) *gantryv1.Node { return &gantryv1.Node{Meta: &gantryv1.Meta{Key: id}} }
	web := func(endpoints ...*gantryv1.Endpoint) *gantryv1.NodeUpdate {
		return &gantryv1.NodeUpdate{Nodes: []*gantryv1.Node{node("n1"), node("n2")}, Endpoints: []*gantryv1.ServiceEndpoints{
			{Service: "production/shop/web", Endpoints: endpoints}}}
	}
	mine := &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "a"}, Environment: "production", App: "shop", Service: "web", Slot: 1, Node: "n1"}
	status := func(phase gantryv1.InstanceStatus_Phase) *gantryv1.InstanceStatus {
		return &gantryv1.InstanceStatus{Phase: phase, Address: "10.0.0.2"}
	}
	ready := func(id string, is bool) *gantryv1.Endpoint { // without an address the server would not have heard its node
		return &gantryv1.Endpoint{Instance: id, Address: "10.0.0.2", Ready: is}
	}
	running, stopping := gantryv1.InstanceStatus_PHASE_RUNNING, gantryv1.InstanceStatus_PHASE_STOPPING

	e := newEndpointState(nil, nil, "n1")
	check := func(what string, missed, told bool) leaving {
		t.Helper()
		l := e.leaving(mine)
		if l.missed != missed || l.told != told {
			t.Errorf("%s: missed %v, told %v, want %v, %v", what, l.missed, l.told, missed, told)
		}
		return l
	}
	e.update(web(ready("a", true), ready("b", true)))
	check("unknown here", false, true)
	e.setLocal(mine, status(running))
	check("it serves", false, true)
	e.setLocal(mine, status(stopping))
	before := check("nobody has been told", true, false)
	e.update(web(ready("a", false), ready("b", true)))
	select {
	case <-before.news:
	default:
		t.Error("the server's word is no news")
	}
	check("they have been told", true, true)
	e.update(web(ready("a", true), ready("b", false)))
	check("no other would take it", false, false)
	e.update(web(ready("a", true), ready("b", true)))
	e.update(&gantryv1.NodeUpdate{RemovedNodes: []string{"n2"}})
	check("there is no other machine", false, true)

	e = newEndpointState(nil, nil, "n1")
	e.update(web(ready("a", true), ready("b", true)))
	e.setLocal(mine, status(stopping))
	check("it has not served", false, true)
}
