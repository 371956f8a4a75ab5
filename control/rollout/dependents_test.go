package rollout

import (
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// page is a service that is restarted with web.
func page(t testing.TB, s *store.Store, restart bool) {
	t.Helper()
	dependent(t, s, "page", "web", restart)
}

func dependent(t testing.TB, s *store.Store, name, on string, restart bool) {
	t.Helper()
	spec := &gantryv1.ServiceSpec{
		Container: &gantryv1.ContainerSpec{},
		DependsOn: []*gantryv1.Dependency{{Service: on, Restart: restart, Required: true}},
	}
	put(t, s,
		&gantryv1.Service{Meta: store.NewMeta("p/a/" + name), Environment: "p", App: "a", Name: name, Replicas: 1, Release: 1, Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(ReleaseKey("p/a/"+name, 1)), Service: "p/a/" + name, Number: 1, Spec: spec})
}

// generation is how often the only instance of page has been asked to restart.
func generation(t testing.TB, s *store.Store) int64 {
	t.Helper()
	return generationOf(t, s, "page")
}

func generationOf(t testing.TB, s *store.Store, name string) int64 {
	t.Helper()
	var found []*gantryv1.Instance
	for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
		if i.Service == name {
			found = append(found, i)
		}
	}
	if len(found) != 1 || found[0].Desired != running {
		t.Fatalf("instances of %s: %v", name, found)
	}
	return found[0].RestartGeneration
}

func TestARolloutRestartsDependents(t *testing.T) {
	for name, test := range map[string]struct {
		restart bool
		bad     int64
		want    int64
	}{"asked for": {restart: true, want: 1}, "not asked for": {}, "gone back": {restart: true, bad: 2, want: 1}} {
		t.Run(name, func(t *testing.T) {
			s := storetest.New(t)
			web(t, s, 3)
			page(t, s, test.restart)
			c, sub := leader(t, s)
			settle(t, s, c, sub, 0)
			if got := generation(t, s); got != 0 {
				t.Fatalf("restarted %d times by the first rollout", got)
			}
			release(t, s, 2)
			for range 60 { // what failed is kept for a moment
				pass(t, c, sub)
				agents(t, s, test.bad)
				later(c, time.Second)
			}
			if op := operation.Last(s.Snapshot(), "p/a/web"); operation.Active(op) {
				t.Fatal(op)
			}
			if got := generation(t, s); got != test.want {
				t.Errorf("restarted %d times, want %d", got, test.want)
			}
		})
	}
}

// What is restarted with a dependent is restarted too, once.
func TestARolloutRestartsDependentsOfDependents(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 2)
	page(t, s, true)
	dependent(t, s, "proxy", "page", true)
	dependent(t, s, "log", "page", false)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	release(t, s, 2)
	settle(t, s, c, sub, 0)
	for name, want := range map[string]int64{"page": 1, "proxy": 1, "log": 0} {
		if got := generationOf(t, s, name); got != want {
			t.Errorf("%s restarted %d times, want %d", name, got, want)
		}
	}
}

// A dependent whose own rollout has waited for the same one is not restarted on top.
func TestADependentThatMovesItselfIsNotRestarted(t *testing.T) {
	for _, together := range []bool{true, false} {
		s := storetest.New(t)
		web(t, s, 2)
		page(t, s, true)
		c, sub := leader(t, s)
		settle(t, s, c, sub, 0)
		release(t, s, 2)
		if !together {
			pass(t, c, sub)
			later(c, time.Second)
		}
		releaseOf(t, s, "p/a/page", 2)
		settle(t, s, c, sub, 0)
		if op := operation.Last(s.Snapshot(), "p/a/page"); op.GetState() != operation.Done || op.Number != 2 {
			t.Fatal(op)
		}
		if got := generation(t, s); got != 0 {
			t.Errorf("begun together: %v, restarted %d times", together, got)
		}
	}
}

func TestARestartComesAfterThatOfADependency(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 1)
	page(t, s, true)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	update(t, s, func(tx *store.Tx) error {
		for _, key := range []string{"p/a/web", "p/a/page"} {
			if err := store.Modify(tx, key, func(o *gantryv1.Service) error { o.RestartGeneration++; return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	observe := func(generation int64, phase gantryv1.InstanceStatus_Phase) {
		for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
			if i.Service == "web" {
				s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta(i.Meta.Key), Node: i.Node, Phase: phase, RestartGeneration: generation}}, nil)
			}
		}
	}
	for _, step := range []struct {
		generation int64
		phase      gantryv1.InstanceStatus_Phase
		want       int64
	}{
		{0, gantryv1.InstanceStatus_PHASE_RUNNING, 0}, // the process before
		{0, gantryv1.InstanceStatus_PHASE_EXITED, 0},
		{1, gantryv1.InstanceStatus_PHASE_CREATING, 0},
		{1, gantryv1.InstanceStatus_PHASE_RUNNING, 1},
	} {
		observe(step.generation, step.phase)
		pass(t, c, sub)
		pass(t, c, sub)
		if got := generation(t, s); got != step.want {
			t.Fatalf("web is %v of run %d, page has been asked %d times", step.phase, step.generation, got)
		}
	}
}
