package agent

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// What a server says and what happens here counts as a change that waits until the kernel has it.
func TestChangesThatWaitAreCounted(t *testing.T) {
	e := newEndpointState(nil, nil, "n1")
	if n := e.lag(); n != 0 {
		t.Errorf("%d changes wait, and none was made", n)
	}
	e.update(&gantryv1.NodeUpdate{Full: true})
	i := &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "i1"}, Environment: "p", App: "a", Service: "web"}
	running := &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Address: "10.64.0.2"}
	e.setLocal(i, running)
	e.setLocal(i, running) // which is no change
	if n := e.lag(); n != 2 {
		t.Errorf("%d changes wait, want 2", n)
	}
	e.mu.Lock()
	e.done = e.asked // as apply does
	e.mu.Unlock()
	if n := e.lag(); n != 0 {
		t.Errorf("%d changes wait, and the kernel has them", n)
	}
}
