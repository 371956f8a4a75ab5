package compose

import (
	"fmt"
	"slices"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const (
	strategyCanary    = "canary"
	strategyBlueGreen = "blue-green"
)

// update reads update_config or rollback_config.
func (c *converter) update(path []string, u *types.UpdateConfig) *gantryv1.UpdateConfig {
	if u == nil {
		return nil
	}
	if !slices.Contains([]string{"", "start-first", "stop-first"}, u.Order) {
		c.report.invalid(append(path, "order"), "use start-first or stop-first", "there is no order %q", u.Order)
	}
	out := &gantryv1.UpdateConfig{
		Delay: positive(time.Duration(u.Delay)), Order: u.Order, FailureAction: u.FailureAction, Monitor: positive(time.Duration(u.Monitor)),
		MaxFailureRatio: exact(u.MaxFailureRatio),
	}
	if out.MaxFailureRatio < 0 || out.MaxFailureRatio > 1 {
		c.report.invalid(append(path, "max_failure_ratio"), "use a share from 0 to 1", "%g of all instances cannot fail", out.MaxFailureRatio)
	}
	if u.Parallelism != nil {
		out.Parallelism = int32(min(*u.Parallelism, maxReplicas))
		if *u.Parallelism == 0 {
			out.Parallelism = maxReplicas // all at once
		}
	}
	return out
}

// failureAction refuses actions that are not known; a rollback cannot be rolled back.
func (c *converter) failureAction(path []string, u *gantryv1.UpdateConfig, known ...string) {
	if u.GetFailureAction() != "" && !slices.Contains(known, u.FailureAction) {
		c.report.invalid(append(path, "failure_action"), "use "+join(known), "there is no action %q", u.FailureAction)
	}
}

func join(words []string) string {
	out := words[0]
	for _, w := range words[1 : len(words)-1] {
		out += ", " + w
	}
	return out + " or " + words[len(words)-1]
}

// extendUpdate reads x-gantry.update.
func (c *converter) extendUpdate(x extra, out *gantryv1.ServiceSpec) {
	x.only("canary", "keep", "strategy")
	if isJob(out.Mode) {
		x.c.report.invalid(x.path, "a job runs anew with each release", "a service of the mode %s is not updated", out.Mode)
		return
	}
	if out.Update == nil {
		out.Update = &gantryv1.UpdateConfig{}
	}
	u := out.Update
	u.Strategy = x.word("strategy", "rolling", strategyCanary, strategyBlueGreen, "recreate")
	u.Keep = positive(x.duration("keep"))
	if u.Keep != nil && u.Strategy != strategyBlueGreen {
		x.bad("keep", "add strategy: blue-green", "no other strategy keeps an old set")
	}
	u.Canary = x.canary()
	switch {
	case u.Strategy == strategyCanary && x.values["canary"] == nil:
		x.bad("strategy", "add canary: [{count: 1, approval: true}]", "a canary has steps")
	case u.Strategy != strategyCanary && x.values["canary"] != nil:
		x.bad("canary", "add strategy: canary", "no other strategy has such steps")
	}
}

// canary reads the steps of a canary.
func (x extra) canary() []*gantryv1.CanaryStep {
	items, ok := x.values["canary"].([]any)
	if x.values["canary"] != nil && (!ok || len(items) == 0) {
		x.bad("canary", "write it like [{count: 1, approval: true}, {percent: 50, pause: 10m}]", "this is not a list of steps")
	}
	var out []*gantryv1.CanaryStep
	for n := range items {
		s, ok := x.c.extra(append(x.at("canary"), fmt.Sprint(n)), items[n])
		if !ok {
			continue
		}
		s.only("approval", "count", "pause", "percent", "weight")
		step := &gantryv1.CanaryStep{
			Count: int32(s.number("count", 1, maxReplicas)), Percent: int32(s.number("percent", 1, 100)), Weight: int32(s.number("weight", 1, 100)),
			Pause: positive(s.duration("pause")), Approval: s.flag("approval"),
		}
		if (s.values["count"] == nil) == (s.values["percent"] == nil) {
			x.c.report.invalid(s.path, "write {count: 2} or {percent: 10}", "a step has either a count or a percent of instances")
		}
		out = append(out, step)
	}
	return out
}
