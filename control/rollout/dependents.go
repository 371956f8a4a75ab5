package rollout

import (
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// carryOn restarts the services that want to be restarted with the one whose rollout has just ended (depends_on: restart).
// Those whose own rollout is under way or began later have waited for it, and need no restart.
func (b *batch) carryOn(g *group, was, is *gantryv1.Operation) {
	if !operation.Active(was) || operation.Active(is) || is.Rollout.GetFrom() == 0 || is.Rollout.GetMoved() == 0 {
		return
	}
	for _, e := range b.controller.restartedWith(g.entry, is) {
		next := e.service.RestartGeneration
		for _, v := range e.views {
			next = max(next, v.Instance.RestartGeneration)
		}
		b.add(g, true, func(tx *store.Tx) error {
			return store.Modify(tx, e.key, func(s *gantryv1.Service) error {
				s.RestartGeneration = max(next, s.RestartGeneration) + 1
				s.Meta.Cause = "rollout " + operation.Number(is) + " of " + g.entry.service.Name
				return nil
			})
		})
	}
}

// restartedWith lists the services that want to be restarted with one, and with those.
func (c *Controller) restartedWith(e *entry, op *gantryv1.Operation) []*entry {
	out := []*entry{e}
	for n := 0; n < len(out); n++ {
		for d := range c.index.needs[out[n].key] {
			s := d.service
			if progress.RestartsWith(s, out[n].service.Name) && !s.Stopped && !s.Removing && !operation.Active(d.op) &&
				!d.op.GetStartedAt().AsTime().After(op.StartedAt.AsTime()) && !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out[1:]
}

// held reports that a restart of a service has to wait: a service that it is restarted with is on its way itself. One that
// fails holds nothing up.
func (c *Controller) held(s *gantryv1.Service) bool {
	for _, d := range s.Spec.GetDependsOn() {
		dep := c.index.entries[sibling(s, d.Service)]
		if !progress.RestartsWith(s, d.Service) || dep == nil || dep.service == nil || dep.service.Stopped {
			continue
		}
		for _, v := range dep.views {
			if v.Instance.Desired == running && comes(dep.service, d, v) {
				return true
			}
		}
	}
	return false
}

// comes reports that an instance is on its way to a condition.
func comes(s *gantryv1.Service, d *gantryv1.Dependency, v *gantryv1.InstanceView) bool {
	if v.Instance.RestartGeneration < s.RestartGeneration || progress.Stale(v) {
		return true
	}
	if progress.Completed(v.Status) || progress.Failure(v) != "" {
		return false
	}
	if d.Condition == gantryv1.Dependency_CONDITION_HEALTHY {
		return !progress.Ready(v.Status)
	}
	return v.Status.GetPhase() != gantryv1.InstanceStatus_PHASE_RUNNING
}
