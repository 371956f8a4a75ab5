package rollout_test

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/store"
)

// TestInstancesOfAFormerJobGo changes the mode of a service that has run as a job.
func TestInstancesOfAFormerJobGo(t *testing.T) {
	spec := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}}
	plan := rollout.Decide(rollout.Input{
		Service: &gantryv1.Service{Meta: store.NewMeta("p/a/task"), Environment: "p", App: "a", Name: "task", Replicas: 1, Release: 1, Spec: spec},
		Release: &gantryv1.Release{Number: 1, Spec: spec},
		Instances: []*gantryv1.InstanceView{{
			Instance: &gantryv1.Instance{Meta: store.NewMeta("i1"), Slot: 1, Release: 1, Job: 3, Node: "n", Outcome: "succeeded", Desired: gantryv1.Instance_DESIRED_STOPPED},
			Status:   &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_EXITED},
		}},
	})
	for _, c := range plan.Changes {
		if c.Instance == "i1" && c.Action == rollout.SetDesired && c.Desired == gantryv1.Instance_DESIRED_REMOVED {
			return
		}
	}
	t.Errorf("%+v", plan.Changes)
}
