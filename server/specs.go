package server

import (
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/constraint"
	"github.com/gantryd/gantry/internal/cron"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store/placement"
)

// specValid refuses what no controller could follow. The reader of Compose files refuses most of it, with its line; but others
// call the API too, and what is stored every server that leads has to live with.
func specValid(name string, s *gantryv1.ServiceSpec) error {
	if s.GetContainer() == nil || s.Container.Image == "" && s.Container.Rootfs == "" {
		return fault.New(fault.Invalid, "the service %q has neither an image nor a rootfs", name).
			WithHint("set image: or build: in the Compose file")
	}
	if err := countValid(name, s.Replicas); err != nil {
		return err
	}
	modes := []string{"", placement.ModeReplicated, placement.ModeGlobal, placement.ModeReplicatedJob, placement.ModeGlobalJob}
	if !slices.Contains(modes, s.Mode) {
		return fault.New(fault.Invalid, "the service %q has the unknown mode %q", name, s.Mode).
			WithHint("use replicated, global, replicated-job or global-job")
	}
	for _, check := range []func(string, *gantryv1.ServiceSpec) error{rollouts.Check, jobValid, placementValid} {
		if err := check(name, s); err != nil {
			return err
		}
	}
	return nil
}

// countValid checks a number of instances.
func countValid(service string, n int32) error {
	if n < 0 || n > maxReplicas {
		return fault.New(fault.Invalid, "the service %q cannot have %d instances", service, n).WithHint("use a number from 0 to %d", maxReplicas)
	}
	return nil
}

func jobValid(name string, s *gantryv1.ServiceSpec) error {
	j := s.GetJob()
	numbers := j.GetCompletions() < 0 || j.GetCompletions() > maxReplicas || j.GetParallelism() < 0 || j.GetRetries() < -1
	if numbers || !durationValid(j.GetTimeout()) {
		return fault.New(fault.Invalid, "the job %q has %d completions, %d at a time, with %d retries within %s", name,
			j.GetCompletions(), j.GetParallelism(), j.GetRetries(), j.GetTimeout().AsDuration()).
			WithHint("completions are from 0 to %d, retries -1 or more, and nothing else is negative", maxReplicas)
	}
	if !slices.Contains([]string{"", "skip", "once"}, j.GetMissed()) || !slices.Contains([]string{"", "forbid", "allow", "replace"}, j.GetOverlap()) {
		return fault.New(fault.Invalid, "the job %q has the unknown rule %q for missed starts, or %q for overlaps", name, j.GetMissed(), j.GetOverlap()).
			WithHint("missed is skip or once; overlap is forbid, allow or replace")
	}
	if j.GetSchedule() == "" {
		return nil
	}
	if _, err := cron.Parse(j.Schedule, j.TimeZone); err != nil {
		return fault.Wrap(fault.Invalid, err, "the job %q has a schedule that never comes", name).WithHint("write five fields: schedule: \"30 2 * * *\"")
	}
	return nil
}

func durationValid(d *durationpb.Duration) bool {
	return d == nil || d.IsValid() && d.AsDuration() >= 0
}

func placementValid(name string, s *gantryv1.ServiceSpec) error {
	p := s.GetPlacement()
	if p.GetMaxReplicasPerNode() < 0 || !slices.Contains([]string{"", "spread", "binpack"}, p.GetStrategy()) {
		return fault.New(fault.Invalid, "the service %q is to be placed by %q, %d on each node", name, p.GetStrategy(), p.GetMaxReplicasPerNode()).
			WithHint("the strategy is spread or binpack, and max_replicas_per_node 0 for any number")
	}
	for _, text := range p.GetConstraints() {
		if _, err := constraint.Parse(text); err != nil {
			return fault.Wrap(fault.Invalid, err, "the service %q has a constraint that cannot be read", name).
				WithHint(`write it as "node.labels.rack == r1"`)
		}
	}
	for _, text := range p.GetPreferences() {
		if _, err := constraint.ParseAttribute(text); err != nil {
			return fault.Wrap(fault.Invalid, err, "the service %q is spread over what cannot be read", name).
				WithHint(`write it as "node.labels.rack"`)
		}
	}
	return nil
}
