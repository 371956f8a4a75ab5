package job

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/storetest"
)

func put(t *testing.T, s *store.Store, objects ...store.Object) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		for _, o := range objects {
			store.Put(tx, o)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lead runs a controller whose clock is now's, until the function it returns is called.
func lead(t *testing.T, s *store.Store, now func() time.Time) (resign func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := New(s, slog.New(slog.DiscardHandler))
	c.now = now
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the controller ended: %v", err)
		}
	}
}

func await(t *testing.T, s *store.Store, what string, ok func(r *store.ReadTx) bool) {
	t.Helper()
	sub, err := s.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok(s.Snapshot()) {
		if _, err := sub.Next(ctx); err != nil {
			t.Fatalf("%s: %v: %v", what, err, store.List[*gantryv1.Job](s.Snapshot(), ""))
		}
	}
}

func task(spec *gantryv1.JobSpec) *gantryv1.Service {
	return &gantryv1.Service{
		Meta: store.NewMeta("p/a/task"), Environment: "p", App: "a", Name: "task", Replicas: 1, Release: 1,
		Spec: &gantryv1.ServiceSpec{Mode: placement.ModeReplicatedJob, Job: spec, Container: &gantryv1.ContainerSpec{}},
	}
}

func runsOf(r store.Reader) []*gantryv1.JobRun {
	j, _ := store.Get[*gantryv1.Job](r, "p/a/task")
	return j.GetRuns()
}

// finish has every instance that is to run end well, as its node would say.
func finish(s *store.Store) {
	for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
		if i.Outcome == "" && i.Desired == wantRunning {
			s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta(i.Meta.Key), Phase: exited, RestartGeneration: i.RestartGeneration}}, nil)
		}
	}
}

// TestLeadersComeAndGo has every start of a schedule fall into the time of another leader, and some into no leader's.
func TestLeadersComeAndGo(t *testing.T) {
	s := storetest.New(t)
	put(t, s, task(&gantryv1.JobSpec{Schedule: "* * * * *"}))
	at := time.Date(2026, 11, 21, 10, 0, 30, 0, time.UTC)
	resign := lead(t, s, func() time.Time { return at })
	await(t, s, "recorded", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.Job](r, "p/a/task"); return ok })
	resign()
	for n := range 10 {
		now := at.Add(time.Duration(n+1) * time.Minute)
		for range 3 { // leaders that follow one another within the minute
			resign := lead(t, s, func() time.Time { return now })
			await(t, s, "run", func(r *store.ReadTx) bool { return len(runsOf(r)) == n+1 })
			resign()
		}
		resign := lead(t, s, func() time.Time { return now })
		finish(s)
		await(t, s, "ended", func(r *store.ReadTx) bool { return runsOf(r)[n].State == Succeeded })
		resign()
	}
	for n, r := range runsOf(s.Snapshot()) {
		if r.Number != int64(n+1) || r.ScheduledAt.AsTime().Minute() != n+1 || r.State != Succeeded {
			t.Errorf("run %d: %v", n+1, r)
		}
	}
}

func TestAServiceThatIsNoJobAnyMore(t *testing.T) {
	s := storetest.New(t)
	put(t, s, task(nil))
	defer lead(t, s, time.Now)()
	await(t, s, "run", func(r *store.ReadTx) bool { return len(store.List[*gantryv1.Instance](r, "")) == 1 })
	o := task(nil)
	o.Spec.Mode = placement.ModeReplicated
	put(t, s, o)
	await(t, s, "its record is gone", func(r *store.ReadTx) bool { return len(store.List[*gantryv1.Job](r, "")) == 0 })
}

// TestAServiceThatBecomesAJob: the instances that the rollout has made for it are removed by the leader that sees the change too.
func TestAServiceThatBecomesAJob(t *testing.T) {
	s := storetest.New(t)
	o := task(nil)
	o.Spec.Mode = placement.ModeReplicated
	put(t, s, o,
		&gantryv1.Instance{Meta: store.NewMeta("old"), Environment: "p", App: "a", Service: "task", Slot: 1, Release: 1, Node: "n", Desired: wantRunning},
		&gantryv1.Instance{Meta: store.NewMeta("other"), Environment: "p", App: "a", Service: "db", Slot: 1, Release: 1, Node: "n", Desired: wantRunning})
	put(t, s, &gantryv1.Node{Meta: store.NewMeta("n")})
	c := New(s, slog.New(slog.DiscardHandler))
	sub, err := s.ViewAndWatch(c.read)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	put(t, s, task(nil))
	events, err := sub.Take()
	if err != nil {
		t.Fatal(err)
	}
	c.absorb(events)
	if err := c.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]gantryv1.Instance_Desired{"old": wantRemoved, "other": wantRunning} {
		if i, _ := store.Get[*gantryv1.Instance](s.Snapshot(), id); i.GetDesired() != want {
			t.Errorf("%s is to be %s", id, i.GetDesired())
		}
	}
}

func TestWaitsForWhatItDependsOn(t *testing.T) {
	s := storetest.New(t)
	o := task(nil)
	o.Spec.DependsOn = []*gantryv1.Dependency{{Service: "db", Condition: gantryv1.Dependency_CONDITION_STARTED, Required: true}}
	db := &gantryv1.Service{Meta: store.NewMeta("p/a/db"), Environment: "p", App: "a", Name: "db", Replicas: 1, Release: 1, Spec: &gantryv1.ServiceSpec{}}
	put(t, s, o, db)
	defer lead(t, s, time.Now)()
	await(t, s, "recorded", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.Job](r, "p/a/task"); return ok })
	if n := len(runsOf(s.Snapshot())); n != 0 {
		t.Fatalf("%d runs before the dependency is there", n)
	}
	put(t, s, &gantryv1.Instance{Meta: store.NewMeta("db1"), Environment: "p", App: "a", Service: "db", Slot: 1, Release: 1, Desired: wantRunning})
	s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("db1"), Phase: phase}}, nil)
	await(t, s, "run", func(r *store.ReadTx) bool { return len(runsOf(r)) == 1 })
}

// TestManyInstances makes more than one transaction takes.
func TestManyInstances(t *testing.T) {
	s := storetest.New(t)
	put(t, s, task(&gantryv1.JobSpec{Completions: maxChanges + 500}))
	defer lead(t, s, time.Now)()
	await(t, s, "all made", func(r *store.ReadTx) bool {
		return len(store.List[*gantryv1.Instance](r, "")) == maxChanges+500
	})
	slots := map[int32]bool{}
	for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
		if slots[i.Slot] {
			t.Fatal(fmt.Sprint("slot ", i.Slot, " twice"))
		}
		slots[i.Slot] = true
	}
}
