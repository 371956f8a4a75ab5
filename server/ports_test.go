package server_test

import (
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestRandomPortsAreTheServices: every node is told the same, over updates, restarts and the way back.
func TestRandomPortsAreTheServices(t *testing.T) {
	p := start(t)
	ports := func(image string, container ...uint32) *gantryv1.ApplyRequest {
		return app(func(a *gantryv1.AppSpec) {
			c := a.Services["web"].Container
			c.Image = image
			for _, n := range container {
				c.Ports = append(c.Ports, &gantryv1.PortPublish{ContainerPort: n, Protocol: "tcp", Mode: "ingress"})
			}
			other := proto.CloneOf(a.Services["web"])
			other.Container.Image = "other"
			a.Services["other"] = other
		})
	}
	p.apply(t, ports("one", 80))
	web, other := p.service(t, "web").Published, p.service(t, "other").Published
	if len(web) != 1 || len(other) != 1 || web[0].HostPort == 0 || web[0].HostPort == other[0].HostPort {
		t.Fatalf("%v and %v", web, other)
	}
	p.apply(t, ports("two", 80, 81))
	got := p.service(t, "web").Published
	if len(got) != 2 || !proto.Equal(got[0], web[0]) || got[1].ContainerPort != 81 {
		t.Fatalf("after an update: %v, before %v", got, web)
	}
	p.apply(t, ports("three"))
	if again := p.service(t, "web").Published; len(again) != 2 {
		t.Fatalf("what release 2 needs is gone: %v", again)
	}
	back := &gantryv1.RollbackRequest{Environment: "production", App: "shop", Service: "web", Release: 2}
	if _, err := p.apps.Rollback(t.Context(), connect.NewRequest(back)); err != nil {
		t.Fatal(err)
	}
	if again := p.service(t, "web").Published; !proto.Equal(again[0], got[0]) || !proto.Equal(again[1], got[1]) {
		t.Fatalf("after the way back: %v, before %v", again, got)
	}
	plan, err := p.apps.Plan(t.Context(), connect.NewRequest(ports("three")))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range plan.Msg.Changes {
		for _, f := range c.Fields {
			if f.Path == "published" {
				t.Errorf("a plan speaks of what nobody wrote: %v", f)
			}
		}
	}
}
