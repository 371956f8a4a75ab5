package rollout

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
	"github.com/gantryd/gantry/store/storetest"
)

func put(t testing.TB, s *store.Store, objects ...store.Object) {
	t.Helper()
	update(t, s, func(tx *store.Tx) error {
		for _, o := range objects {
			store.Put(tx, o)
		}
		return nil
	})
}

func update(t testing.TB, s *store.Store, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// leader is a controller that has just come to lead.
func leader(t testing.TB, s *store.Store) (*Controller, *store.Subscription) {
	t.Helper()
	c := New(s, slog.New(slog.DiscardHandler))
	c.slow = time.Hour // a machine that is busy elsewhere must not hold up what is awaited here
	sub, err := c.start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.Close)
	return c, sub
}

func pass(t testing.TB, c *Controller, sub *store.Subscription) (again time.Time) {
	t.Helper()
	events, err := sub.Take()
	if err != nil {
		t.Fatal(err)
	}
	again, err = c.pass(t.Context(), events)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// later moves the controller's clock.
func later(c *Controller, d time.Duration) {
	now := c.now
	c.now = func() time.Time { return now().Add(d) }
}

// web is a service with so many replicas on node n1.
func web(t testing.TB, s *store.Store, replicas int32) {
	t.Helper()
	spec := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}, Update: &gantryv1.UpdateConfig{Parallelism: 2, FailureAction: "rollback"}}
	put(t, s,
		&gantryv1.Node{Meta: store.NewMeta("n1")}, &gantryv1.Node{Meta: store.NewMeta("n2")},
		&gantryv1.App{Meta: store.NewMeta("p/a")}, &gantryv1.Network{Meta: store.NewMeta("p/a/default")},
		&gantryv1.Service{Meta: store.NewMeta("p/a/web"), Environment: "p", App: "a", Name: "web", Replicas: replicas, Release: 1, Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(ReleaseKey("p/a/web", 1)), Service: "p/a/web", Number: 1, Spec: spec})
}

// release has web move to another release, as the API does.
func release(t testing.TB, s *store.Store, number int64) {
	t.Helper()
	releaseOf(t, s, "p/a/web", number)
}

func releaseOf(t testing.TB, s *store.Store, key string, number int64) {
	t.Helper()
	update(t, s, func(tx *store.Tx) error {
		old, _ := store.Get[*gantryv1.Release](tx, ReleaseKey(key, 1))
		store.Put(tx, &gantryv1.Release{Meta: store.NewMeta(ReleaseKey(key, number)), Service: key, Number: number, Spec: old.Spec})
		return store.Modify(tx, key, func(o *gantryv1.Service) error {
			o.PreviousRelease, o.Release = o.Release, number
			rollouts.Begin(tx, o, "me", rollouts.CauseUp, time.Now())
			return nil
		})
	})
}

// agents brings every instance as far as it is wanted; those of the release bad fail. It reports whether anything changed.
func agents(t testing.TB, s *store.Store, bad int64) bool {
	t.Helper()
	snap, changed := s.Snapshot(), false
	var said []store.Object
	update(t, s, func(tx *store.Tx) error {
		said, changed = nil, false
		for n, i := range store.List[*gantryv1.Instance](snap, "") {
			switch {
			case i.Node == "":
				if err := store.Modify(tx, i.Meta.Key, func(o *gantryv1.Instance) error { o.Node = fmt.Sprint("n", n%2+1); return nil }); err != nil {
					return err
				}
				changed = true
			case i.Desired == removed:
				store.Delete[*gantryv1.Instance](tx, i.Meta.Key)
				changed = true
			default:
				said = append(said, &gantryv1.InstanceStatus{Meta: store.NewMeta(i.Meta.Key), Node: i.Node, Phase: phaseOf(i, bad), RestartGeneration: i.RestartGeneration})
			}
		}
		return nil
	})
	for _, st := range said {
		old, ok := store.Get[*gantryv1.InstanceStatus](snap, st.GetMeta().Key)
		now := st.(*gantryv1.InstanceStatus)
		changed = changed || !ok || old.Phase != now.Phase || old.RestartGeneration != now.RestartGeneration
	}
	s.Observe(said, nil)
	return changed
}

func phaseOf(i *gantryv1.Instance, bad int64) gantryv1.InstanceStatus_Phase {
	switch {
	case i.Desired == stopped:
		return gantryv1.InstanceStatus_PHASE_EXITED
	case i.Release == bad:
		return gantryv1.InstanceStatus_PHASE_FAILED
	}
	return gantryv1.InstanceStatus_PHASE_RUNNING
}

// settle passes and lets agents work until neither changes anything, and nothing waits for a time.
func settle(t testing.TB, s *store.Store, c *Controller, sub *store.Subscription, bad int64) {
	t.Helper()
	for range 200 {
		before := s.Revision()
		again := pass(t, c, sub)
		if agents(t, s, bad) || s.Revision() != before {
			continue
		}
		if again.IsZero() {
			return
		}
		later(c, again.Sub(c.now()))
	}
	t.Fatalf("does not settle: %v", store.List[*gantryv1.Operation](s.Snapshot(), ""))
}

// stands checks that web has so many instances of a release and nothing else, and how its rollout ended.
func stands(t testing.TB, s *store.Store, number int64, replicas int, state gantryv1.Operation_State) {
	t.Helper()
	snap := s.Snapshot()
	all := store.List[*gantryv1.Instance](snap, "")
	for _, i := range all {
		if i.Release != number || i.Desired != running {
			t.Errorf("left over: %v", i)
		}
	}
	if op := operation.Last(snap, "p/a/web"); len(all) != replicas || op.GetState() != state {
		t.Fatalf("%d instances of %d, %v", len(all), replicas, op)
	}
}

func TestARolloutIsStoredAndEnds(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 5)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	stands(t, s, 1, 5, operation.Done)
	release(t, s, 2)
	settle(t, s, c, sub, 0)
	stands(t, s, 2, 5, operation.Done)
	if op := operation.Last(s.Snapshot(), "p/a/web"); op.Who != "me" || op.Rollout.From != 1 || op.Number != 2 {
		t.Fatal(op)
	}
}

func TestARolloutThatFailsGoesBack(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 3)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	release(t, s, 2)
	for range 60 { // what failed is kept for a moment
		pass(t, c, sub)
		agents(t, s, 2)
		later(c, time.Second)
	}
	stands(t, s, 1, 3, operation.RolledBack)
}

// TestALeaderMayDieAtAnyWrite has a rollout of eight instances made by leaders of which each dies after its first, second, …
// transaction, with one write in each.
func TestALeaderMayDieAtAnyWrite(t *testing.T) {
	for survives := 1; survives < 4; survives++ {
		t.Run(fmt.Sprint(survives), func(t *testing.T) {
			s := storetest.New(t)
			web(t, s, 8)
			c, sub := leader(t, s)
			settle(t, s, c, sub, 0)
			release(t, s, 2)
			for range 300 {
				c, sub := leader(t, s)
				c.chunk = 1
				later(c, time.Minute) // what it has seen on its arrival has run for a while
				events, err := sub.Take()
				if err != nil {
					t.Fatal(err)
				}
				work, _ := c.think(events)
				lead := 0
				for lead < len(work.writes) && work.writes[lead].lead {
					lead++
				}
				work.writes = work.writes[:min(len(work.writes), max(survives, lead))]
				if err := work.commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				sub.Close()
				if ready := serving(s); ready < 8 {
					t.Fatalf("%d of 8 serve", ready)
				}
				if !agents(t, s, 0) && !operation.Active(operation.Last(s.Snapshot(), "p/a/web")) {
					break
				}
			}
			stands(t, s, 2, 8, operation.Done)
		})
	}
}

// serving counts slots with an instance that is ready.
func serving(s *store.Store) int {
	snap, slots := s.Snapshot(), map[int32]bool{}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if progress.Ready(progress.View(snap, i).Status) {
			slots[i.Slot] = true
		}
	}
	return len(slots)
}

func TestInstancesThatWereNeverPlacedAreForgotten(t *testing.T) {
	s := storetest.New(t)
	put(t, s, &gantryv1.Instance{Meta: store.NewMeta("a"), Environment: "p", Service: "a", Desired: removed})
	c, sub := leader(t, s)
	pass(t, c, sub)
	if left := store.List[*gantryv1.Instance](s.Snapshot(), ""); len(left) != 0 {
		t.Fatalf("%v", left)
	}
}

func TestANodeThatIsLostOrRemoved(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 6)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	s.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n2"), State: "down"}}, nil)
	pass(t, c, sub)
	fresh, lost := 0, 0
	for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
		if i.Node == "" {
			fresh++
		}
		if i.Node == "n2" && i.Desired == removed {
			lost++
		}
	}
	if fresh != 3 || lost != 3 {
		t.Fatalf("%d made for %d lost", fresh, lost)
	}
	update(t, s, func(tx *store.Tx) error { store.Delete[*gantryv1.Node](tx, "n2"); return nil })
	pass(t, c, sub)
	for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
		if i.Node == "n2" {
			t.Fatalf("%v is on no node", i)
		}
	}
}

func TestRemovingLeavesNothing(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 2)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	update(t, s, func(tx *store.Tx) error {
		store.Delete[*gantryv1.App](tx, "p/a")
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error { o.Removing = true; return nil })
	})
	settle(t, s, c, sub, 0)
	snap := s.Snapshot()
	left := len(store.List[*gantryv1.Service](snap, "")) + len(store.List[*gantryv1.Release](snap, "")) +
		len(store.List[*gantryv1.Operation](snap, "")) + len(store.List[*gantryv1.Instance](snap, "")) + len(store.List[*gantryv1.Network](snap, ""))
	if left != 0 || len(c.index.entries)+len(c.index.owner) != 0 {
		t.Fatalf("%d objects are left, and %d entries", left, len(c.index.entries))
	}
}

func TestStopTakesItsGracePeriod(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 1)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	for _, grace := range []time.Duration{3 * time.Second, 0} {
		update(t, s, func(tx *store.Tx) error {
			return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error {
				o.Stopped, o.StopGrace = true, nil
				if grace > 0 {
					o.StopGrace = durationpb.New(grace)
				}
				return nil
			})
		})
		settle(t, s, c, sub, 0)
		i := store.List[*gantryv1.Instance](s.Snapshot(), "")[0]
		if i.Desired != stopped || i.StopGrace.AsDuration() != grace {
			t.Fatalf("%v", i)
		}
		update(t, s, func(tx *store.Tx) error {
			return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error { o.Stopped = false; return nil })
		})
		settle(t, s, c, sub, 0)
	}
}

// TestDecisionsAreMadeOnWhatTheyChange scales a service to nothing while a pass that has seen it with one waits its turn.
func TestDecisionsAreMadeOnWhatTheyChange(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 0)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	update(t, s, func(tx *store.Tx) error {
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error { o.Replicas = 1; return nil })
	})
	events, err := sub.Take()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	update(t, s, func(tx *store.Tx) error {
		go func() {
			_, err := c.pass(t.Context(), events)
			done <- err
		}()
		if err := awaitStack(t.Context(), "store.(*Store).Update", "rollout.(*Controller).pass"); err != nil {
			return err
		}
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error { o.Replicas = 0; return nil })
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if made := store.List[*gantryv1.Instance](s.Snapshot(), ""); len(made) != 0 {
		t.Fatalf("an outdated plan made %v", made)
	}
}

// awaitStack returns once some goroutine is in all the functions.
func awaitStack(ctx context.Context, functions ...string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 1<<20)
	for {
		for _, stack := range bytes.Split(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
			in := true
			for _, f := range functions {
				in = in && bytes.Contains(stack, []byte(f))
			}
			if in {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestANewLeaderEndsNothingOnNodesItHasNotHeard: a global service for an architecture, in the middle of a rollout.
func TestANewLeaderEndsNothingOnNodesItHasNotHeard(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 1)
	update(t, s, func(tx *store.Tx) error {
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error {
			o.Spec.Mode, o.Spec.Placement = "global", &gantryv1.Placement{Constraints: []string{"node.platform.arch == x86_64"}}
			return nil
		})
	})
	say := func(id, state, arch string) {
		s.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta(id), State: state, Architecture: arch}}, nil)
	}
	say("n1", "ready", "amd64")
	say("n2", "ready", "amd64")
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	stands(t, s, 1, 2, operation.Done)
	release(t, s, 2)
	pass(t, c, sub) // one slot is moved

	s.Observe(nil, []store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n1")}, &gantryv1.NodeStatus{Meta: store.NewMeta("n2")}})
	put(t, s, &gantryv1.Node{Meta: store.NewMeta("n3")})
	before := len(store.List[*gantryv1.Instance](s.Snapshot(), ""))
	c, sub = leader(t, s)
	pass(t, c, sub)
	pass(t, c, sub)
	all := store.List[*gantryv1.Instance](s.Snapshot(), "")
	for _, i := range all {
		if i.Desired != running {
			t.Errorf("%v", i)
		}
	}
	if op := operation.Last(s.Snapshot(), "p/a/web"); !operation.Active(op) || len(all) != before {
		t.Fatalf("%d of %d instances, %v", len(all), before, op)
	}
	say("n3", "ready", "arm64")
	say("n1", "ready", "amd64")
	say("n2", "ready", "x86_64")
	settle(t, s, c, sub, 0)
	stands(t, s, 2, 2, operation.Done)
}

// TestWhatMayHaveBeenMadeIsNotMadeAgain has the instances for those on a lost node be stored without an answer, and be seen late.
func TestWhatMayHaveBeenMadeIsNotMadeAgain(t *testing.T) {
	s, link := storetest.NewLinked(t)
	web(t, s, 4)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	link.Lose()
	s.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n2"), State: "down"}}, nil)
	if again, err := c.turn(t.Context(), sub); err != nil || again.IsZero() {
		t.Fatalf("the answer is lost: %v, again at %s", err, again)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.turn(t.Context(), sub)
		done <- err
	}()
	if err := awaitStack(t.Context(), "rollout.(*Controller).turn", "store.(*Store).Update"); err != nil {
		t.Fatal(err)
	}
	link.Show()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wanted := 0
	for _, i := range store.List[*gantryv1.Instance](s.Snapshot(), "") {
		if i.Desired == running {
			wanted++
		}
	}
	if wanted != 4 {
		t.Fatalf("%d instances are wanted of 4", wanted)
	}
}
