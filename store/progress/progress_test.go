package progress_test

import (
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
	"github.com/gantryd/gantry/store/storetest"
)

const (
	running    = gantryv1.InstanceStatus_PHASE_RUNNING
	exited     = gantryv1.InstanceStatus_PHASE_EXITED
	restarting = gantryv1.InstanceStatus_PHASE_RESTARTING
	failed     = gantryv1.InstanceStatus_PHASE_FAILED

	healthy   = gantryv1.InstanceStatus_HEALTH_HEALTHY
	starting  = gantryv1.InstanceStatus_HEALTH_STARTING
	unhealthy = gantryv1.InstanceStatus_HEALTH_UNHEALTHY
)

func view(st *gantryv1.InstanceStatus) *gantryv1.InstanceView {
	return &gantryv1.InstanceView{
		Instance: &gantryv1.Instance{
			Meta: store.NewMeta("i"), Environment: "p", App: "a", Service: "db", Slot: 1, Release: 1, Desired: gantryv1.Instance_DESIRED_RUNNING,
		},
		Status: st,
	}
}

func TestServiceIsJudged(t *testing.T) {
	for name, test := range map[string]struct {
		status    *gantryv1.InstanceStatus
		ready     int32
		converged bool
		failure   string
	}{
		"running":             {&gantryv1.InstanceStatus{Phase: running}, 1, true, ""},
		"healthy":             {&gantryv1.InstanceStatus{Phase: running, Health: healthy}, 1, true, ""},
		"not healthy yet":     {&gantryv1.InstanceStatus{Phase: running, Health: starting}, 0, false, ""},
		"unhealthy":           {&gantryv1.InstanceStatus{Phase: running, Health: unhealthy, HealthOutput: "no answer"}, 0, false, "no answer"},
		"completed":           {&gantryv1.InstanceStatus{Phase: exited}, 0, true, ""},
		"ended with an error": {&gantryv1.InstanceStatus{Phase: exited, ExitCode: 3}, 0, false, "exited with code 3"},
		"out of memory":       {&gantryv1.InstanceStatus{Phase: exited, ExitCode: 137, OomKilled: true}, 0, false, "out of memory"},
		"out of processes":    {&gantryv1.InstanceStatus{Phase: exited, ExitCode: 2, PidsLimitReached: 50}, 0, false, "reached its limit of 50 processes"},
		"restarted once":      {&gantryv1.InstanceStatus{Phase: restarting, Restarts: 1, ExitCode: 1}, 0, false, ""},
		"crash loop":          {&gantryv1.InstanceStatus{Phase: restarting, Restarts: 3, Streak: 3, ExitCode: 1}, 0, false, "keeps exiting"},
		"many good runs":      {&gantryv1.InstanceStatus{Phase: restarting, Restarts: 30, Streak: 1, ExitCode: 1}, 0, false, ""},
		"cannot be made":      {&gantryv1.InstanceStatus{Phase: failed, Error: "no such image"}, 0, false, "no such image"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &gantryv1.Service{Release: 1, Replicas: 1}
			v := progress.Service(s, progress.Facts{Wanted: 1, Instances: []*gantryv1.InstanceView{view(test.status)}})
			if v.Ready != test.ready || v.Converged != test.converged {
				t.Fatalf("ready %d, converged %v", v.Ready, v.Converged)
			}
			if (test.failure == "") != (v.Failure == "") || !strings.Contains(v.Failure, test.failure) {
				t.Fatalf("failure %q", v.Failure)
			}
		})
	}
}

func TestWhatWasSaidBeforeARestartDoesNotCount(t *testing.T) {
	s := &gantryv1.Service{Release: 1, Replicas: 1, RestartGeneration: 1}
	v := view(&gantryv1.InstanceStatus{Phase: exited, ExitCode: 137})
	v.Instance.RestartGeneration = 1
	if got := progress.Service(s, progress.Facts{Wanted: 1, Instances: []*gantryv1.InstanceView{v}}); got.Converged || got.Failure != "" {
		t.Fatalf("%v", got)
	}
	v.Status = &gantryv1.InstanceStatus{Phase: running, RestartGeneration: 1}
	if got := progress.Service(s, progress.Facts{Wanted: 1, Instances: []*gantryv1.InstanceView{v}}); !got.Converged {
		t.Fatalf("%v", got)
	}
}

func TestOldInstancesKeepAServiceFromBeingThere(t *testing.T) {
	s := &gantryv1.Service{Release: 2, Replicas: 1}
	old, now := view(&gantryv1.InstanceStatus{Phase: running}), view(&gantryv1.InstanceStatus{Phase: running})
	now.Instance.Release = 2
	if v := progress.Service(s, progress.Facts{Wanted: 1, Instances: []*gantryv1.InstanceView{old, now}}); v.Converged || v.Ready != 1 {
		t.Fatalf("%v", v)
	}
}

func TestDependencies(t *testing.T) {
	for name, test := range map[string]struct {
		condition      gantryv1.Dependency_Condition
		status         *gantryv1.InstanceStatus
		waits, failure string
	}{
		"started":          {gantryv1.Dependency_CONDITION_STARTED, &gantryv1.InstanceStatus{Phase: running, Health: starting}, "", ""},
		"not started":      {gantryv1.Dependency_CONDITION_STARTED, &gantryv1.InstanceStatus{}, "db to start", ""},
		"healthy":          {gantryv1.Dependency_CONDITION_HEALTHY, &gantryv1.InstanceStatus{Phase: running, Health: healthy}, "", ""},
		"not healthy":      {gantryv1.Dependency_CONDITION_HEALTHY, &gantryv1.InstanceStatus{Phase: running, Health: starting}, "db to be healthy", ""},
		"never healthy":    {gantryv1.Dependency_CONDITION_HEALTHY, &gantryv1.InstanceStatus{Phase: running}, "db to be healthy", "no health check"},
		"completed":        {gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY, &gantryv1.InstanceStatus{Phase: exited}, "", ""},
		"completed, badly": {gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY, &gantryv1.InstanceStatus{Phase: exited, ExitCode: 1}, "db to complete", "code 1"},
		"still at it":      {gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY, &gantryv1.InstanceStatus{Phase: running}, "db to complete", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := storetest.New(t)
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				store.Put(tx, &gantryv1.Service{
					Meta: store.NewMeta("p/a/db"), Environment: "p", App: "a", Name: "db", Release: 1, Replicas: 1,
				})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			web := &gantryv1.Service{Environment: "p", App: "a", Name: "web", Spec: &gantryv1.ServiceSpec{
				DependsOn: []*gantryv1.Dependency{{Service: "db", Condition: test.condition, Required: true}},
			}}
			by := map[string][]*gantryv1.InstanceView{"p/a/db": {view(test.status)}}
			waits, failure := progress.Blocked(s.Snapshot(), web, by)
			if (test.waits == "") != (waits == "") || !strings.Contains(waits, test.waits) {
				t.Fatalf("waits %q", waits)
			}
			if (test.failure == "") != (failure == "") || !strings.Contains(failure, test.failure) {
				t.Fatalf("failure %q", failure)
			}
		})
	}
}

// TestNobodyWaitsForWhatIsLeftOnANodeThatIsDown: the slot has another instance already.
func TestNobodyWaitsForWhatIsLeftOnANodeThatIsDown(t *testing.T) {
	s := &gantryv1.Service{Meta: &gantryv1.Meta{Key: "p/a/web"}, Spec: &gantryv1.ServiceSpec{}, Release: 1, Replicas: 1}
	lost := &gantryv1.InstanceView{
		Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "old"}, Slot: 1, Release: 1, Desired: gantryv1.Instance_DESIRED_REMOVED},
		Status:   &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_LOST},
	}
	runs := &gantryv1.InstanceView{
		Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "new"}, Slot: 1, Release: 1, Desired: gantryv1.Instance_DESIRED_RUNNING},
		Status:   &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RUNNING},
	}
	f := progress.Facts{Wanted: 1, Instances: []*gantryv1.InstanceView{lost, runs}}
	if got := progress.Service(s, f); !got.Converged || got.Ready != 1 {
		t.Errorf("converged %v, %d ready", got.Converged, got.Ready)
	}
	lost.Status.Phase = gantryv1.InstanceStatus_PHASE_STOPPING
	if got := progress.Service(s, f); got.Converged {
		t.Error("an instance that is being stopped is not waited for")
	}
}
