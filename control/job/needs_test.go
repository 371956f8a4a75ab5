package job

import (
	"log/slog"
	"maps"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// hand is a controller whose passes and clock are the test's.
type hand struct {
	*Controller
	sub *store.Subscription
	at  time.Time
}

func byHand(t *testing.T, s *store.Store) *hand {
	t.Helper()
	h := &hand{Controller: New(s, slog.New(slog.DiscardHandler)), at: time.Date(2026, 11, 21, 10, 0, 30, 0, time.UTC)}
	h.now = func() time.Time { return h.at }
	sub, err := s.ViewAndWatch(h.read)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.Close)
	h.sub = sub
	return h
}

func (h *hand) step(t *testing.T) {
	t.Helper()
	events, err := h.sub.Take()
	if err != nil {
		t.Fatal(err)
	}
	h.absorb(events)
	if err := h.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func needy(spec *gantryv1.JobSpec) *gantryv1.Service {
	o := task(spec)
	o.Spec.DependsOn = []*gantryv1.Dependency{{Service: "db", Condition: gantryv1.Dependency_CONDITION_STARTED, Required: true}}
	return o
}

func dbComes(t *testing.T, s *store.Store) {
	t.Helper()
	put(t, s,
		&gantryv1.Service{Meta: store.NewMeta("p/a/db"), Environment: "p", App: "a", Name: "db", Replicas: 1, Release: 1, Spec: &gantryv1.ServiceSpec{}},
		&gantryv1.Instance{Meta: store.NewMeta("db1"), Environment: "p", App: "a", Service: "db", Slot: 1, Release: 1, Desired: wantRunning},
		&gantryv1.Instance{Meta: store.NewMeta("web1"), Environment: "p", App: "a", Service: "web", Slot: 1, Release: 1, Desired: wantRunning})
	s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("db1"), Phase: phase}}, nil)
}

// TestStartsThatWaitedForADependency are not said to have been missed because no server led, which is true only of those before.
func TestStartsThatWaitedForADependency(t *testing.T) {
	s := storetest.New(t)
	put(t, s, needy(&gantryv1.JobSpec{Schedule: "* * * * *"}))
	h := byHand(t, s)
	h.step(t)
	for range 16 { // until 10:04:30
		h.at = h.at.Add(15 * time.Second)
		h.step(t)
	}
	if got := runsOf(s.Snapshot()); len(got) != 0 {
		t.Fatalf("%v before the dependency is there", got)
	}
	dbComes(t, s)
	h.at = h.at.Add(time.Second)
	h.step(t)
	got := runsOf(s.Snapshot())
	if len(got) != 2 || got[0].Error != "3 starts were missed while it waited for what it depends on" || got[1].State != Running {
		t.Fatalf("%v", got)
	}
	h.at = h.at.Add(10 * time.Minute) // in which this controller did not lead
	finish(s)
	h.step(t)
	if got = runsOf(s.Snapshot()); got[2].Error != "9 starts were missed while no server led" {
		t.Fatalf("%v", got[2:])
	}
}

// TestWaitedAndNobodyLed has a leader come when starts were missed already, and find that a dependency is not there.
func TestWaitedAndNobodyLed(t *testing.T) {
	w := newWorld("replicated-job", 1, &gantryv1.JobSpec{Schedule: "0 * * * *"})
	w.settle(nil)
	in := Input{Service: w.service, Job: w.job}
	for name, c := range map[string]struct {
		waited time.Duration // since when, after the start
		want   string
	}{
		"from the first start on": {time.Hour + late, "it waited for what it depends on"},
		"from the second on":      {2 * time.Hour, "no server led, or it waited for what it depends on"},
		"from the last on":        {3 * time.Hour, "no server led, or it waited for what it depends on"},
		"later":                   {3*time.Hour + 2*late, "no server led"},
	} {
		in.Waited, in.Now = w.now.Add(c.waited), w.now.Add(3*time.Hour+5*late)
		if got := Decide(in).Job.GetRuns(); len(got) != 1 || got[0].Error != "3 starts were missed while "+c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestADependencyThatWasThereBefore the job: its instances are found, and no other service's are looked at.
func TestADependencyThatWasThereBefore(t *testing.T) {
	s := storetest.New(t)
	dbComes(t, s)
	h := byHand(t, s)
	put(t, s, needy(nil))
	h.step(t)
	if got := runsOf(s.Snapshot()); len(got) != 1 {
		t.Fatalf("%v", got)
	}
	if got := h.needs["p/a/db"]; len(h.needs) != 1 || !maps.Equal(got, map[string]bool{"db1": true}) {
		t.Errorf("looked at: %v", h.needs)
	}
}
