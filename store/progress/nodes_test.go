package progress_test

import (
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
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

// TestInstancesOfANodeThatIsDownAreLost: what was last heard of them no longer holds, and those that cannot run elsewhere say
// so.
func TestInstancesOfANodeThatIsDownAreLost(t *testing.T) {
	s := storetest.New(t)
	release := func(number int64, mounts ...*gantryv1.Mount) *gantryv1.Release {
		return &gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey("p/a/db", number)), Spec: &gantryv1.ServiceSpec{
			Container: &gantryv1.ContainerSpec{Mounts: mounts},
		}}
	}
	put(t, s, &gantryv1.Node{Meta: store.NewMeta("n"), Name: "west"}, &gantryv1.Volume{Meta: store.NewMeta("p/a/data"), Node: "n"},
		release(1), release(2, &gantryv1.Mount{Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/a/data"}))
	for name, test := range map[string]struct {
		release int64
		failure string
	}{
		"free": {1, ""}, "with its data there": {2, "db.1 is on node west, which is down, and so is its volume p/a/data"},
	} {
		t.Run(name, func(t *testing.T) {
			i := view(nil).Instance
			i.Node, i.Release = "n", test.release
			s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("i"), Node: "n", Phase: running}}, nil)
			for _, state := range []string{"suspect", "ready", "down"} {
				s.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n"), State: state}}, nil)
				v := progress.View(s.Snapshot(), i)
				if progress.Ready(v.Status) != (state != "down") {
					t.Fatalf("%s: %v", state, v.Status)
				}
				if got := progress.Failure(v); state == "down" && got != test.failure {
					t.Fatalf("%q", got)
				}
			}
		})
	}
}

func TestAGlobalServiceWantsOneOnEachNode(t *testing.T) {
	s := storetest.New(t)
	spec := &gantryv1.ServiceSpec{Mode: "global", Container: &gantryv1.ContainerSpec{}}
	web := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Spec: spec, Release: 1, Replicas: 1}
	put(t, s, &gantryv1.Node{Meta: store.NewMeta("n1")}, &gantryv1.Node{Meta: store.NewMeta("n2")},
		&gantryv1.Node{Meta: store.NewMeta("n3"), Availability: "drain"})
	if n := progress.Wanted(s.Snapshot(), web); n != 2 {
		t.Fatalf("%d are wanted", n)
	}
}

func TestARolloutSpeaksForItsService(t *testing.T) {
	s := &gantryv1.Service{Release: 2, Replicas: 1}
	fails := view(&gantryv1.InstanceStatus{Phase: failed, Error: "no such image"})
	works := view(&gantryv1.InstanceStatus{Phase: running})
	fails.Instance.Release, works.Instance.Release = 2, 2
	keep := []*gantryv1.OperationStep{{Action: "keep", State: gantryv1.Operation_STATE_RUNNING}}
	back := &gantryv1.Rollout{From: 1, To: 2, Back: true}
	forth := &gantryv1.Rollout{From: 1, To: 2}
	for name, test := range map[string]struct {
		op               *gantryv1.Operation
		instance         *gantryv1.InstanceView
		converged        bool
		failure, waiting string
	}{
		"judged by the rollout": {&gantryv1.Operation{State: gantryv1.Operation_STATE_RUNNING, Rollout: forth}, fails, false, "", ""},
		"nothing to return to":  {&gantryv1.Operation{State: gantryv1.Operation_STATE_RUNNING, Rollout: &gantryv1.Rollout{To: 2}}, fails, false, "no such image", ""},
		"on its way back":       {&gantryv1.Operation{State: gantryv1.Operation_STATE_RUNNING, Rollout: back, Error: "it broke"}, fails, false, "", "goes back to release 1: it broke"},
		"stopped by a failure":  {&gantryv1.Operation{State: gantryv1.Operation_STATE_PAUSED, Rollout: forth, Error: "it broke"}, fails, false, "it broke", ""},
		"waits for approval":    {&gantryv1.Operation{State: gantryv1.Operation_STATE_PAUSED, Rollout: forth, Waiting: "approval"}, works, false, "", "paused, waits for approval"},
		"still watching":        {&gantryv1.Operation{State: gantryv1.Operation_STATE_RUNNING, Rollout: forth}, works, false, "", ""},
		"keeps the old set":     {&gantryv1.Operation{State: gantryv1.Operation_STATE_RUNNING, Rollout: forth, Steps: keep}, works, true, "", ""},
		"done":                  {&gantryv1.Operation{State: gantryv1.Operation_STATE_DONE, Rollout: forth}, works, true, "", ""},
		"fails later":           {&gantryv1.Operation{State: gantryv1.Operation_STATE_DONE, Rollout: forth}, fails, false, "no such image", ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := progress.Service(s, progress.Facts{Wanted: 1, Rollout: test.op, Instances: []*gantryv1.InstanceView{test.instance}})
			if v.Converged != test.converged || !strings.Contains(v.Failure, test.failure) || (test.failure == "") != (v.Failure == "") || v.Waiting != test.waiting {
				t.Fatalf("converged %v, failure %q, waiting %q", v.Converged, v.Failure, v.Waiting)
			}
		})
	}
}

// TestNobodyWaitsForAGlobalInstanceOnANodeThatIsDown: neither whoever runs gantry up nor the services that depend on it, whatever
// release that node was left with.
func TestNobodyWaitsForAGlobalInstanceOnANodeThatIsDown(t *testing.T) {
	for release := int64(1); release <= 2; release++ {
		spec := &gantryv1.ServiceSpec{Mode: "global", Container: &gantryv1.ContainerSpec{
			Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/a/data"}},
		}}
		db := &gantryv1.Service{Meta: store.NewMeta("p/a/db"), Environment: "p", App: "a", Name: "db", Spec: spec, Release: 2, Replicas: 1}
		web := &gantryv1.Service{Environment: "p", App: "a", Name: "web", Spec: &gantryv1.ServiceSpec{
			DependsOn: []*gantryv1.Dependency{{Service: "db", Condition: gantryv1.Dependency_CONDITION_STARTED, Required: true}},
		}}
		instance := func(node string, release int64) *gantryv1.Instance {
			return &gantryv1.Instance{Meta: store.NewMeta("on-" + node), Environment: "p", App: "a", Service: "db", Slot: 1, Node: node, Release: release,
				Desired: gantryv1.Instance_DESIRED_RUNNING}
		}
		r := func(first, second string) store.Reader {
			return store.Fixed(db, &gantryv1.Node{Meta: store.NewMeta("n1")}, &gantryv1.Node{Meta: store.NewMeta("n2")},
				&gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey("p/a/db", 1)), Spec: spec},
				&gantryv1.Volume{Meta: store.NewMeta("p/a/data"), Node: "n2"}, instance("n1", 2), instance("n2", release),
				&gantryv1.InstanceStatus{Meta: store.NewMeta("on-n1"), Phase: running},
				&gantryv1.NodeStatus{Meta: store.NewMeta("n1"), State: first}, &gantryv1.NodeStatus{Meta: store.NewMeta("n2"), State: second})
		}
		for _, test := range []struct {
			first, second string
			there         bool
		}{{"ready", "down", true}, {"ready", "ready", false}, {"down", "down", false}} {
			r := r(test.first, test.second)
			by := progress.ByService(r, "p/a/")
			v := progress.Service(db, progress.Gather(r, db, by))
			waits, _ := progress.Blocked(r, web, by)
			if v.Converged != test.there || (waits == "") != test.there || v.Failure != "" {
				t.Errorf("%s and %s, release %d there: converged %v, %d wanted, failure %q, web %s", test.first, test.second, release, v.Converged, v.Wanted,
					v.Failure, waits)
			}
		}
	}
}

// TestWhatKeepsAnOldInstanceIsSaid: its node is down and has its data, so the rollout has ended without it.
func TestWhatKeepsAnOldInstanceIsSaid(t *testing.T) {
	db := &gantryv1.Service{Meta: store.NewMeta("p/a/db"), Environment: "p", App: "a", Name: "db", Release: 2, Replicas: 1, Spec: &gantryv1.ServiceSpec{}}
	old := view(nil).Instance
	old.Node = "n"
	data := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/a/data"}}}}
	op := &gantryv1.Operation{Meta: store.NewMeta("p/a/db/00000002"), State: gantryv1.Operation_STATE_DONE, Rollout: &gantryv1.Rollout{From: 1, To: 2}}
	r := store.Fixed(db, op, old, &gantryv1.Node{Meta: store.NewMeta("n"), Name: "west"}, &gantryv1.Volume{Meta: store.NewMeta("p/a/data"), Node: "n"},
		&gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey("p/a/db", 1)), Spec: data}, &gantryv1.NodeStatus{Meta: store.NewMeta("n"), State: "down"})
	v := progress.Service(db, progress.Gather(r, db, progress.ByService(r, "p/a/")))
	if v.Converged || v.Failure != "db.1 is on node west, which is down, and so is its volume p/a/data" {
		t.Fatalf("converged %v, failure %q", v.Converged, v.Failure)
	}
}

// TestAStoppedServiceWaitsForNoNodeThatIsDown: what was there goes when the node is back.
func TestAStoppedServiceWaitsForNoNodeThatIsDown(t *testing.T) {
	s := &gantryv1.Service{Release: 1, Replicas: 2, Stopped: true}
	ended, lost := view(&gantryv1.InstanceStatus{Phase: exited}), view(&gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_LOST})
	for desired, want := range map[gantryv1.Instance_Desired]bool{gantryv1.Instance_DESIRED_REMOVED: true, gantryv1.Instance_DESIRED_STOPPED: false} {
		lost.Instance.Desired = desired
		if v := progress.Service(s, progress.Facts{Instances: []*gantryv1.InstanceView{ended, lost}}); v.Converged != want {
			t.Errorf("%s: converged %v", desired, v.Converged)
		}
	}
}
