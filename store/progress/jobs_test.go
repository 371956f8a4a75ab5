package progress_test

import (
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

func record(release int64, runs ...*gantryv1.JobRun) *gantryv1.Job {
	return &gantryv1.Job{Meta: store.NewMeta("p/a/task"), Release: release, Runs: runs}
}

func run(release int64, state string) *gantryv1.JobRun {
	return &gantryv1.JobRun{Number: 1, Release: release, State: state, Completions: 3, Succeeded: 2, Error: map[string]string{"failed": "task.1 exited with code 3"}[state]}
}

func TestJobsAreJudged(t *testing.T) {
	for name, test := range map[string]struct {
		job       *gantryv1.Job
		schedule  string
		stopped   bool
		instances []*gantryv1.InstanceView
		converged bool
		ready     int32
		wanted    int32
		failure   string
		waiting   string
	}{
		"not begun":          {wanted: 1, waiting: "waits for db"},
		"running":            {job: record(2, run(2, "running")), ready: 2, wanted: 3},
		"succeeded":          {job: record(2, run(2, "succeeded")), converged: true, ready: 2, wanted: 3},
		"failed":             {job: record(2, run(2, "failed")), ready: 2, wanted: 3, failure: "exited with code 3"},
		"of another release": {job: record(1, run(1, "succeeded")), wanted: 1, waiting: "waits for db"},
		"skipped after it":   {job: record(2, run(2, "succeeded"), run(2, "skipped")), converged: true, ready: 2, wanted: 3},
		"scheduled":          {job: record(2), schedule: "@daily", converged: true, waiting: "waits for db"},
		"schedule unknown":   {schedule: "@daily", waiting: "waits for db"},
		"scheduled, failed":  {job: record(2, run(1, "failed")), schedule: "@daily", converged: true, ready: 2, wanted: 3},
		"stopped":            {job: record(2, run(2, "stopped")), stopped: true, converged: true},
		"stopping":           {job: record(2, run(2, "stopped")), stopped: true, instances: []*gantryv1.InstanceView{view(&gantryv1.InstanceStatus{Phase: running})}},
		"nowhere to be placed": {job: record(2, run(2, "running")), ready: 2, wanted: 3, waiting: "no node fits",
			instances: []*gantryv1.InstanceView{view(&gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_PENDING, Error: "no node fits"})}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &gantryv1.Service{
				Meta: store.NewMeta("p/a/task"), Release: 2, Replicas: 1, Stopped: test.stopped,
				Spec: &gantryv1.ServiceSpec{Mode: "replicated-job", Job: &gantryv1.JobSpec{Schedule: test.schedule}},
			}
			v := progress.Service(s, progress.Facts{Job: test.job, Instances: test.instances, Waits: "waits for db"})
			if v.Converged != test.converged || v.Ready != test.ready || v.Wanted != test.wanted {
				t.Errorf("converged %v, %d of %d", v.Converged, v.Ready, v.Wanted)
			}
			if (test.failure == "") != (v.Failure == "") || !strings.Contains(v.Failure, test.failure) {
				t.Errorf("failure %q", v.Failure)
			}
			if !strings.Contains(v.Waiting, test.waiting) || test.waiting == "" && v.Waiting != "" {
				t.Errorf("waits: %q", v.Waiting)
			}
		})
	}
}

func TestDependenciesOnJobs(t *testing.T) {
	const (
		started   = gantryv1.Dependency_CONDITION_STARTED
		isHealthy = gantryv1.Dependency_CONDITION_HEALTHY
		completed = gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY
	)
	for name, test := range map[string]struct {
		job       *gantryv1.Job
		condition gantryv1.Dependency_Condition
		waits     bool
		failure   string
	}{
		"nothing recorded":   {nil, completed, true, ""},
		"running":            {record(2, run(2, "running")), completed, true, ""},
		"started":            {record(2, run(2, "running")), started, false, ""},
		"succeeded":          {record(2, run(2, "succeeded")), completed, false, ""},
		"failed":             {record(2, run(2, "failed")), completed, true, "exited with code 3"},
		"the release before": {record(1, run(1, "succeeded")), completed, true, ""},
		"never healthy":      {record(2, run(2, "running")), isHealthy, true, "can never be healthy"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &gantryv1.Service{Meta: store.NewMeta("p/a/web"), Environment: "p", App: "a", Name: "web", Spec: &gantryv1.ServiceSpec{
				DependsOn: []*gantryv1.Dependency{{Service: "task", Condition: test.condition, Required: true}},
			}}
			task := &gantryv1.Service{Meta: store.NewMeta("p/a/task"), Environment: "p", App: "a", Name: "task", Release: 2, Spec: &gantryv1.ServiceSpec{Mode: "replicated-job"}}
			objects := []store.Object{s, task}
			if test.job != nil {
				objects = append(objects, test.job)
			}
			waits, failure := progress.Blocked(store.Fixed(objects...), s, nil)
			if (waits != "") != test.waits || (failure == "") != (test.failure == "") || !strings.Contains(failure, test.failure) {
				t.Errorf("waits %q, failure %q", waits, failure)
			}
		})
	}
}
