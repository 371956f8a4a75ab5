package progress

import (
	"fmt"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// JobRun is the run that says how a job is: the newest that was begun; nil if there is none.
func JobRun(j *gantryv1.Job) *gantryv1.JobRun {
	var last *gantryv1.JobRun
	for _, r := range j.GetRuns() {
		if r.State != "skipped" {
			last = r
		}
	}
	return last
}

// job judges a service that ends by itself. One with a schedule is there as soon as it is known when it comes.
func job(s *gantryv1.Service, f Facts) *gantryv1.ServiceView {
	v := &gantryv1.ServiceView{Service: s, Instances: f.Instances}
	run := JobRun(f.Job)
	switch {
	case s.Stopped || s.Removing:
		v.Converged = ended(f.Instances)
		return v
	case s.Spec.GetJob().GetSchedule() != "":
		v.Converged = f.Job != nil
	case run == nil || run.Release != s.Release || f.Job.Generation < s.RestartGeneration:
		run = nil
		v.Wanted = max(1, f.Wanted)
	}
	if run == nil {
		v.Waiting, v.Failure = f.Waits, f.Blocked
		return v
	}
	v.Wanted, v.Ready = run.Completions, run.Succeeded
	switch run.State {
	case "succeeded":
		v.Converged = true
	case "failed":
		v.Failure = run.Error
	default:
		v.Waiting = unplaced(f.Instances)
	}
	if s.Spec.Job.GetSchedule() != "" {
		v.Failure = "" // the next run may do better; gantry explain tells of this one
	}
	return v
}

func ended(instances []*gantryv1.InstanceView) bool {
	for _, i := range instances {
		if i.Instance.Outcome == "" {
			return false
		}
	}
	return true
}

// unplaced is why an instance waits for a node, "" if none does.
func unplaced(instances []*gantryv1.InstanceView) string {
	for _, i := range instances {
		if i.Instance.Node == "" && i.Status.GetPhase() == gantryv1.InstanceStatus_PHASE_PENDING && i.Status.Error != "" {
			return i.Status.Error
		}
	}
	return ""
}

// jobDependency is dependency for one that ends by itself.
func jobDependency(r store.Reader, d *gantryv1.Dependency, dep *gantryv1.Service) (waits, failure string) {
	record, _ := store.Get[*gantryv1.Job](r, dep.Meta.Key)
	run := JobRun(record)
	if run != nil && run.Release != dep.Release && dep.Spec.GetJob().GetSchedule() == "" {
		run = nil // the one before; that of this release is about to begin
	}
	switch d.Condition {
	case gantryv1.Dependency_CONDITION_HEALTHY:
		return d.Service + " to be healthy", fmt.Sprintf("its dependency %s is a job, which can never be healthy", d.Service)
	case gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY:
		if run.GetState() == "succeeded" {
			return "", ""
		}
		if run.GetState() == "failed" {
			return d.Service + " to complete", fmt.Sprintf("its dependency %s has failed: %s", d.Service, run.Error)
		}
		return d.Service + " to complete", ""
	}
	if run == nil {
		return d.Service + " to start", ""
	}
	return "", ""
}
