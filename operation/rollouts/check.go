package rollouts

import (
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Check refuses settings that no rollout can follow.
func Check(service string, s *gantryv1.ServiceSpec) error {
	for _, u := range []*gantryv1.UpdateConfig{s.GetUpdate(), s.GetRollback()} {
		if err := check(service, u); err != nil {
			return err
		}
	}
	if s.GetUpdate().GetStrategy() == BlueGreen && Exclusive(s.Container) {
		return fault.New(fault.Invalid, "the service %q cannot be updated blue-green: two sets of it would share writable files, a host port or an address", service).
			WithHint("use the strategy rolling or recreate")
	}
	return nil
}

func check(service string, u *gantryv1.UpdateConfig) error {
	if !slices.Contains([]string{"", Rolling, Canary, BlueGreen, Recreate}, u.GetStrategy()) {
		return fault.New(fault.Invalid, "the service %q has the unknown update strategy %q", service, u.Strategy).
			WithHint("use rolling, canary, blue-green or recreate")
	}
	if u.GetStrategy() == Canary && len(u.Canary) == 0 {
		return fault.New(fault.Invalid, "the service %q has the update strategy canary and no steps", service).
			WithHint("add x-gantry: {update: {canary: [{count: 1, approval: true}]}}")
	}
	for _, c := range u.GetCanary() {
		if c.Count < 0 || c.Percent < 0 || c.Percent > 100 || c.Weight < 0 || c.Weight > 100 || c.Count == 0 && c.Percent == 0 {
			return fault.New(fault.Invalid, "the service %q has a canary step of %d instances, %d percent, weight %d", service, c.Count, c.Percent, c.Weight).
				WithHint("a step needs a count or a percent from 1 to 100, and a weight from 0 to 100")
		}
	}
	if r := u.GetMaxFailureRatio(); !(r >= 0 && r <= 1) { // NaN neither
		return fault.New(fault.Invalid, "the service %q tolerates a share of %g failures", service, r).WithHint("max_failure_ratio is from 0 to 1")
	}
	if !slices.Contains([]string{"", "pause", "continue", "rollback"}, u.GetFailureAction()) ||
		!slices.Contains([]string{"", "start-first", "stop-first"}, u.GetOrder()) {
		return fault.New(fault.Invalid, "the service %q has the unknown failure_action %q or order %q", service, u.GetFailureAction(), u.GetOrder()).
			WithHint("failure_action is pause, continue or rollback; order is start-first or stop-first")
	}
	times := []*durationpb.Duration{u.GetDelay(), u.GetMonitor(), u.GetKeep()}
	for _, c := range u.GetCanary() {
		times = append(times, c.Pause)
	}
	for _, d := range times {
		if d != nil && (!d.IsValid() || d.AsDuration() < 0) {
			return fault.New(fault.Invalid, "the service %q is to be updated with a wait of %s", service, d.AsDuration()).
				WithHint("delay, monitor, keep and pause are not negative")
		}
	}
	return nil
}

// Exclusive reports that two instances of a spec would be in each other's way: both would write the same files, or need the
// same port or address.
func Exclusive(c *gantryv1.ContainerSpec) bool {
	for _, m := range c.GetMounts() {
		shared := m.Type == gantryv1.Mount_TYPE_VOLUME || m.Type == gantryv1.Mount_TYPE_BIND
		if shared && !m.ReadOnly {
			return true
		}
	}
	for _, p := range c.GetPorts() {
		if p.Mode == "host" {
			return true
		}
	}
	n := c.GetNetwork()
	return n.GetKind() == gantryv1.NetworkMode_KIND_HOST || n.GetAddress() != "" || c.GetMacAddress() != ""
}
