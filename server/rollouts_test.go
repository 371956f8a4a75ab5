package server_test

import (
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store"
)

// kindOf is the kind of an error that came over the wire.
func kindOf(err error) fault.Kind { return fault.KindOf(wire.Decode(err)) }

func TestAStalePlanIsRefused(t *testing.T) {
	p := start(t)
	plan, err := p.apps.Plan(t.Context(), connect.NewRequest(app(nil)))
	if err != nil || plan.Msg.Index == 0 {
		t.Fatal(plan, err)
	}
	req := app(nil)
	req.CheckIndex = plan.Msg.Index
	if _, err := p.apps.Apply(t.Context(), connect.NewRequest(req)); err != nil {
		t.Fatalf("nothing has changed: %v", err)
	}
	index := func() int64 {
		t.Helper()
		plan, err := p.apps.Plan(t.Context(), connect.NewRequest(app(nil)))
		if err != nil {
			t.Fatal(err)
		}
		return plan.Msg.Index
	}
	if _, err := p.apps.Apply(t.Context(), connect.NewRequest(req)); kindOf(err) != fault.Conflict || fault.HintOf(wire.Decode(err)) == "" {
		t.Fatalf("a plan of the time before was applied: %v", err)
	}
	now := index()
	for name, change := range map[string]func(tx *store.Tx) error{
		"a service is scaled": func(tx *store.Tx) error {
			return store.Modify(tx, "production/shop/web", func(s *gantryv1.Service) error { s.Replicas++; return nil })
		},
		"a secret has gone":  func(tx *store.Tx) error { store.Delete[*gantryv1.Secret](tx, "production/shop/pw"); return nil },
		"a network has gone": func(tx *store.Tx) error { store.Delete[*gantryv1.Network](tx, "production/shop/default"); return nil },
	} {
		if err := p.store.Update(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if next := index(); next == now {
			t.Fatalf("%s, and the index is the same", name)
		} else {
			now = next
		}
	}
	for name, change := range map[string]func(tx *store.Tx) error{
		"another app": func(tx *store.Tx) error {
			store.Put(tx, &gantryv1.Service{Meta: store.NewMeta("production/other/web")})
			return nil
		},
		"a rollout's weights": func(tx *store.Tx) error {
			return store.Modify(tx, "production/shop/web", func(s *gantryv1.Service) error { s.Weights = map[int64]int32{1: 5}; return nil })
		},
	} {
		if err := p.store.Update(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if next := index(); next != now {
			t.Fatalf("%s changes the index", name)
		}
	}
}

func TestAnApplyBeginsRolloutsOfWhatChanges(t *testing.T) {
	p := start(t)
	first, err := p.apps.Apply(t.Context(), connect.NewRequest(app(nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := first.Msg.Operations; len(got) != 1 || got[0] != operation.Key("production/shop/web", 1) {
		t.Fatal(got)
	}
	op, _ := store.Get[*gantryv1.Operation](p.store.Snapshot(), first.Msg.Operations[0])
	if op.GetWho() != "ann" || op.Cause != "up" {
		t.Fatal(op)
	}
	again, err := p.apps.Apply(t.Context(), connect.NewRequest(app(nil)))
	if err != nil || len(again.Msg.Operations) != 0 {
		t.Fatal(again, err)
	}
}

// A change of constraints moves what stands where they do not allow it, but nothing that has its data there.
func TestConstraintsThatExcludeAnInstanceMoveIt(t *testing.T) {
	constrained := func(constraint, volume string) *gantryv1.ApplyRequest {
		return app(func(a *gantryv1.AppSpec) {
			a.Services["web"].Placement = &gantryv1.Placement{Constraints: []string{constraint}}
			if volume != "" {
				a.Services["web"].Container.Mounts = []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: volume, Target: "/data"}}
			}
		})
	}
	for name, test := range map[string]struct {
		constraint, volume string
		want               int64
	}{
		"still allowed":        {"node.labels.disk == ssd", "", 1},
		"excluded":             {"node.labels.disk == hdd", "", 2},
		"excluded, has volume": {"node.labels.disk == hdd", "production/shop/data", 1},
		"not known yet":        {"node.platform.arch == arm64", "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			err := p.store.Update(t.Context(), func(tx *store.Tx) error {
				store.Put(tx, &gantryv1.Node{Meta: &gantryv1.Meta{Key: "n1", Labels: map[string]string{"disk": "ssd"}}})
				store.Put(tx, &gantryv1.Volume{Meta: store.NewMeta("production/shop/data"), Node: "n1"})
				store.Put(tx, &gantryv1.Instance{
					Meta: store.NewMeta("i1"), Environment: "production", App: "shop", Service: "web", Slot: 1, Release: 1, Node: "n1",
				})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			p.apply(t, constrained("node.labels.disk != tape", test.volume))
			p.apply(t, constrained(test.constraint, test.volume))
			p.apply(t, constrained(test.constraint, test.volume)) // nothing has changed
			if got := p.service(t, "web").Release; got != test.want {
				t.Errorf("release %d, want %d", got, test.want)
			}
		})
	}
}

func TestWhatCannotBeRolledOutIsRefused(t *testing.T) {
	p := start(t)
	for name, spoil := range map[string]func(*gantryv1.ServiceSpec){
		"strategy": func(s *gantryv1.ServiceSpec) { s.Update.Strategy = "yolo" },
		"no steps": func(s *gantryv1.ServiceSpec) { s.Update.Strategy = "canary" },
		"an empty step": func(s *gantryv1.ServiceSpec) {
			s.Update.Strategy, s.Update.Canary = "canary", []*gantryv1.CanaryStep{{Weight: 5}}
		},
		"a share": func(s *gantryv1.ServiceSpec) { s.Update.MaxFailureRatio = 2 },
		"two sets that share files": func(s *gantryv1.ServiceSpec) {
			s.Update.Strategy = "blue-green"
			s.Container.Mounts = []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Target: "/data"}}
		},
	} {
		_, err := p.apps.Plan(t.Context(), connect.NewRequest(app(func(a *gantryv1.AppSpec) {
			a.Services["web"].Update = &gantryv1.UpdateConfig{}
			spoil(a.Services["web"])
		})))
		if kindOf(err) != fault.Invalid || fault.HintOf(wire.Decode(err)) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRollbackIsARollout(t *testing.T) {
	p := start(t)
	for _, image := range []string{"one", "two"} {
		_, err := p.apps.Apply(t.Context(), connect.NewRequest(app(func(a *gantryv1.AppSpec) { a.Services["web"].Container.Image = image })))
		if err != nil {
			t.Fatal(err)
		}
	}
	back := &gantryv1.RollbackRequest{Environment: "production", App: "shop", Service: "web"}
	got, err := p.apps.Rollback(t.Context(), connect.NewRequest(back))
	if err != nil || got.Msg.Release != 1 {
		t.Fatal(got, err)
	}
	op, _ := store.Get[*gantryv1.Operation](p.store.Snapshot(), got.Msg.Operation)
	if op.GetCause() != "rollback" || op.Rollout.To != 1 {
		t.Fatal(op)
	}
	back.Release = 1
	if got, err = p.apps.Rollback(t.Context(), connect.NewRequest(back)); err != nil || got.Msg.Operation != "" {
		t.Fatalf("it has that release: %v %v", got, err)
	}
}

func TestAGracePeriodOfAServiceHoldsOnce(t *testing.T) {
	p := start(t)
	if _, err := p.apps.Apply(t.Context(), connect.NewRequest(app(nil))); err != nil {
		t.Fatal(err)
	}
	web := func() *gantryv1.Service {
		s, _ := store.Get[*gantryv1.Service](p.store.Snapshot(), "production/shop/web")
		return s
	}
	stop := &gantryv1.SetStoppedRequest{Environment: "production", App: "shop", Stopped: true, GracePeriod: durationpb.New(3 * time.Second)}
	if _, err := p.apps.SetStopped(t.Context(), connect.NewRequest(stop)); err != nil || web().StopGrace.AsDuration() != 3*time.Second {
		t.Fatal(err, web())
	}
	if _, err := p.apps.Restart(t.Context(), connect.NewRequest(&gantryv1.RestartRequest{Environment: "production", App: "shop"})); err != nil || web().StopGrace != nil {
		t.Fatal(err, web())
	}
}

func TestAGlobalServiceIsNotScaled(t *testing.T) {
	p := start(t)
	_, err := p.apps.Apply(t.Context(), connect.NewRequest(app(func(a *gantryv1.AppSpec) { a.Services["web"].Mode = "global" })))
	if err != nil {
		t.Fatal(err)
	}
	scale := &gantryv1.ScaleRequest{Environment: "production", App: "shop", Replicas: map[string]int32{"web": 3}}
	if _, err := p.apps.Scale(t.Context(), connect.NewRequest(scale)); kindOf(err) != fault.Conflict {
		t.Fatal(err)
	}
}

func TestARestartTakesDependentsAlong(t *testing.T) {
	p := start(t)
	p.apply(t, app(func(a *gantryv1.AppSpec) {
		for name, deps := range map[string][]*gantryv1.Dependency{
			"page": {{Service: "web", Restart: true}}, "calm": {{Service: "web"}}, "idle": {{Service: "web", Restart: true}},
		} {
			a.Services[name] = &gantryv1.ServiceSpec{Replicas: 1, Container: container(name), DependsOn: deps}
		}
	}))
	stop := &gantryv1.SetStoppedRequest{Environment: "production", App: "shop", Services: []string{"idle"}, Stopped: true}
	if _, err := p.apps.SetStopped(t.Context(), connect.NewRequest(stop)); err != nil {
		t.Fatal(err)
	}
	got, err := p.apps.Restart(t.Context(), connect.NewRequest(&gantryv1.RestartRequest{Environment: "production", App: "shop", Services: []string{"web"}}))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"web": true, "page": true, "calm": false, "idle": false} {
		s, _ := store.Get[*gantryv1.Service](p.store.Snapshot(), "production/shop/"+name)
		if (s.RestartGeneration > 0) != want || slices.Contains(got.Msg.Services, name) != want || s.Stopped != (name == "idle") {
			t.Errorf("%s: generation %d, stopped %v; restarted are %v", name, s.RestartGeneration, s.Stopped, got.Msg.Services)
		}
	}
}
