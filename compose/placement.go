package compose

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/compose-spec/compose-go/v2/types"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/constraint"
	"github.com/gantryd/gantry/internal/cron"
)

func (c *converter) placement(path []string, p types.Placement) *gantryv1.Placement {
	out := &gantryv1.Placement{Constraints: p.Constraints, MaxReplicasPerNode: int32(min(p.MaxReplicas, maxReplicas))}
	for i, text := range p.Constraints {
		if _, err := constraint.Parse(text); err != nil {
			c.wrong(append(path, "constraints", strconv.Itoa(i)), err)
		}
	}
	for i, preference := range p.Preferences {
		if _, err := constraint.ParseAttribute(preference.Spread); err != nil {
			c.wrong(append(path, "preferences", strconv.Itoa(i), "spread"), err)
		}
		out.Preferences = append(out.Preferences, preference.Spread)
	}
	if len(out.Constraints)+len(out.Preferences) == 0 && out.MaxReplicasPerNode == 0 {
		return nil
	}
	return out
}

// wrong reports what a parser said of a value.
func (c *converter) wrong(path []string, err error) {
	c.report.invalid(slices.Clone(path), fault.HintOf(err), "%s", err.Error())
}

func (c *converter) extendPlacement(x extra, out *gantryv1.ServiceSpec) {
	x.only("anti_affinity", "rebalance", "strategy")
	if out.Placement == nil {
		out.Placement = &gantryv1.Placement{}
	}
	out.Placement.Strategy = x.word("strategy", "spread", "binpack")
	out.Placement.Rebalance = x.flag("rebalance")
	out.Placement.AntiAffinity = x.list("anti_affinity")
	for _, name := range out.Placement.AntiAffinity {
		_, on := c.model.project.Services[name]
		_, off := c.model.project.DisabledServices[name]
		if !on && !off {
			x.bad("anti_affinity", "name services of this app", "there is no service %q", shorten(name))
		}
	}
}

// namedDevices are what a service reserves of the devices that nodes count.
func (c *converter) namedDevices(path []string, r *types.Resource, given bool) map[string]int32 {
	out := map[string]int32{}
	reserve := func(path []string, name string, n int64) {
		if name == "" || n < 1 || n > maxReplicas {
			c.report.invalid(slices.Clone(path), "write a name and a number from 1 on", "%d of %q cannot be reserved", n, shorten(name))
			return
		}
		out[name] += int32(n)
	}
	for i, d := range r.Devices {
		at := append(slices.Clone(path), "devices", strconv.Itoa(i))
		if len(d.IDs) > 0 {
			c.report.refuse(append(at, "device_ids"), "devices are counted, not chosen; use count, and node labels with placement.constraints")
			continue
		}
		if d.Count < 0 {
			c.report.refuse(append(at, "count"), "all devices of a node; write their number in count")
			continue
		}
		if len(d.Capabilities) == 0 {
			c.report.invalid(append(at, "capabilities"), "write the name that nodes give the device: [gpu]", "no device is named")
			continue
		}
		reserve(at, d.Capabilities[0], int64(d.Count))
		if !given {
			c.report.warn(at, "devices of the node are counted, and none is handed over; name the files below /dev in devices too")
		}
	}
	for i, g := range r.GenericResources {
		if s := g.DiscreteResourceSpec; s != nil {
			reserve(append(slices.Clone(path), "generic_resources", strconv.Itoa(i)), s.Kind, s.Value)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

const (
	modeReplicated    = "replicated"
	modeReplicatedJob = "replicated-job"
	modeGlobalJob     = "global-job"
)

func isJob(mode string) bool { return mode == modeReplicatedJob || mode == modeGlobalJob }

// job is what a job has of the keys of Compose: a run that failed is repeated as often as restart says. What its
// containers are started for once they have ended is not theirs to decide.
func (c *converter) job(path []string, s *types.ServiceConfig, out *gantryv1.ServiceSpec) {
	r := out.Container.GetRestart()
	if r.GetWindow() != nil {
		c.report.warn(slices.Concat(path, []string{"deploy", "restart_policy", "window"}), "a job has none: x-gantry.job.timeout bounds a run")
	}
	switch r.GetCondition() {
	case gantryv1.RestartPolicy_CONDITION_ALWAYS, gantryv1.RestartPolicy_CONDITION_UNLESS_STOPPED:
		at, word := append(path, "restart"), s.Restart
		if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
			at, word = append(path, "deploy", "restart_policy", "condition"), "any"
		}
		c.report.invalid(slices.Clone(at), "use on-failure, or none", "a job that has ended with 0 is done, and not started again as %q would have it", word)
	case gantryv1.RestartPolicy_CONDITION_ON_FAILURE:
		if out.Job.Retries == 0 {
			out.Job.Retries = r.MaxAttempts
			if r.MaxAttempts == 0 {
				out.Job.Retries = -1
			}
		}
	}
	out.Container.Restart = &gantryv1.RestartPolicy{Condition: gantryv1.RestartPolicy_CONDITION_NO, Delay: r.GetDelay()}
}

func (c *converter) extendJob(x extra, out *gantryv1.ServiceSpec) {
	x.only("completions", "missed", "overlap", "parallelism", "retries", "schedule", "time_zone", "timeout")
	if !isJob(out.Mode) {
		x.c.report.invalid(x.path, "set deploy.mode to replicated-job or global-job", "a service of the mode %s is no job", out.Mode)
		return
	}
	if out.Mode == modeGlobalJob && x.values["completions"] != nil {
		x.bad("completions", "remove the line", "a global job runs once on each node")
	}
	out.Job = &gantryv1.JobSpec{
		Completions: int32(x.number("completions", 1, maxReplicas)), Parallelism: int32(x.number("parallelism", 1, maxReplicas)),
		Retries: int32(x.number("retries", -1, maxReplicas)), Timeout: positive(x.duration("timeout")),
		Schedule: x.text("schedule"), TimeZone: x.text("time_zone"),
		Missed: x.word("missed", "skip", "once"), Overlap: x.word("overlap", "forbid", "allow", "replace"),
	}
	if out.Job.Schedule != "" {
		if _, err := cron.Parse(out.Job.Schedule, out.Job.TimeZone); err != nil {
			c.wrong(x.at("schedule"), err)
		}
		return
	}
	for _, key := range []string{"time_zone", "missed", "overlap"} {
		if x.values[key] != nil {
			x.bad(key, fmt.Sprintf("add a schedule, or remove %s", key), "there is no schedule that it could be about")
		}
	}
}
