package server_test

import (
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/operation"
)

// TestARolloutOfWhatIsAJobNow: with the mode alone changed, the release stays and nobody drives its rollout any more.
func TestARolloutOfWhatIsAJobNow(t *testing.T) {
	p := start(t)
	p.apply(t, app(nil))
	if op := operation.Last(p.store.Snapshot(), "production/shop/web"); !operation.Active(op) {
		t.Fatalf("nothing can have ended it: %v", op)
	}
	p.apply(t, app(func(s *gantryv1.AppSpec) { s.Services["web"].Mode = "replicated-job" }))
	if s := p.service(t, "web"); s.Release != 1 || s.Spec.Mode != "replicated-job" {
		t.Fatal(s)
	}
	if op := operation.Last(p.store.Snapshot(), "production/shop/web"); op.State != operation.Aborted || op.Error == "" {
		t.Errorf("%v", op)
	}
}

func TestScaleOfNothingIsRefused(t *testing.T) {
	p := start(t)
	p.apply(t, app(nil))
	_, err := p.apps.Scale(t.Context(), connect.NewRequest(&gantryv1.ScaleRequest{Environment: "production", App: "shop"}))
	if kindOf(err) != fault.Invalid || fault.HintOf(wire.Decode(err)) == "" {
		t.Errorf("%v", err)
	}
	if s := p.service(t, "web"); s.Replicas != 2 {
		t.Errorf("%d replicas are wanted", s.Replicas)
	}
}
