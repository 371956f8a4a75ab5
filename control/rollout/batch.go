package rollout

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
)

// batch is what one pass writes, cut into transactions.
type batch struct {
	controller *Controller
	entries    []*entry // that were decided
	writes     []write
}

// write is one part of a transaction.
type write struct {
	group *group // nil for what belongs to no service
	lead  bool   // changes the service or its rollout
	made  string // instance that it makes
	do    func(tx *store.Tx) error
}

// group is the writes of one plan. Each is made on condition that the service and its rollout are those it was decided from,
// or those its lead has made of them; if they are not, their events have the service decided anew.
type group struct {
	entry     *entry
	operation *gantryv1.Operation // after the lead
	led       bool
}

func (b *batch) add(g *group, lead bool, do func(tx *store.Tx) error) {
	b.writes = append(b.writes, write{group: g, lead: lead, do: do})
}

// begin stores the operation of a service that has been given a release without one.
func (b *batch) begin(e *entry) {
	b.add(&group{entry: e}, true, func(tx *store.Tx) error {
		rollouts.Begin(tx, e.service, "", rollouts.CauseFound, b.controller.now())
		return nil
	})
}

// plan adds what was decided about a service: first the rollout and the service itself, then instances.
func (b *batch) plan(snap *store.ReadTx, e *entry, p Plan) {
	g := &group{entry: e, operation: e.op}
	if p.Operation != nil {
		g.operation = p.Operation
		b.add(g, true, func(tx *store.Tx) error {
			store.Put(tx, proto.Clone(p.Operation).(*gantryv1.Operation))
			return nil
		})
		b.carryOn(g, e.op, p.Operation)
	}
	turned := slices.ContainsFunc(p.Changes, func(ch Change) bool { return ch.Action == PointTo })
	var rest []write
	for _, ch := range p.Changes {
		switch ch.Action {
		case PointTo, Weigh:
			b.add(g, true, func(tx *store.Tx) error { return onService(tx, e.key, ch) })
		case DeleteService:
			b.add(g, true, func(tx *store.Tx) error { deleteService(snap, tx, e.key); return nil })
		case Create:
			i := newInstance(e.service, ch)
			rest = append(rest, write{group: g, made: i.Meta.Key, do: func(tx *store.Tx) error {
				store.Put(tx, proto.Clone(i).(*gantryv1.Instance))
				return nil
			}})
		default:
			rest = append(rest, write{group: g, do: func(tx *store.Tx) error { return onInstance(tx, e.service, ch) }})
		}
	}
	if turned { // what else there is to do has to be decided with the release that is wanted now
		return
	}
	b.writes = append(b.writes, rest...)
}

// commit makes the writes, a chunk at a time. All that lead a plan are in one transaction.
func (b *batch) commit(ctx context.Context) error {
	for len(b.writes) > 0 {
		n := min(len(b.writes), b.controller.chunk)
		for n < len(b.writes) && b.writes[n].lead && b.writes[n].group == b.writes[n-1].group {
			n++
		}
		var made []write
		err := b.controller.store.Update(ctx, func(tx *store.Tx) (err error) {
			made, err = apply(tx, b.writes[:n])
			return err
		})
		if err != nil {
			return err
		}
		for _, w := range made {
			if w.lead {
				w.group.led = true
			}
			if w.made != "" {
				b.controller.index.made(w.group.entry, w.made)
			}
		}
		b.writes = b.writes[n:]
	}
	return nil
}

// apply makes those writes whose ground still stands, and returns them.
func apply(tx *store.Tx, writes []write) (made []write, err error) {
	stands := map[*group]bool{}
	for _, w := range writes {
		if w.group != nil {
			ok, known := stands[w.group]
			if !known {
				ok = w.group.stands(tx)
				stands[w.group] = ok
			}
			if !ok {
				continue
			}
		}
		if err := w.do(tx); err != nil {
			return nil, err
		}
		made = append(made, w)
	}
	return made, nil
}

// stands reports that a service is still the one that was decided about.
func (g *group) stands(tx *store.Tx) bool {
	was := g.entry.service
	s, ok := store.Get[*gantryv1.Service](tx, g.entry.key)
	if !ok || s.Release != was.Release || s.Replicas != was.Replicas || s.Stopped != was.Stopped || s.Removing != was.Removing ||
		s.RestartGeneration != was.RestartGeneration {
		return false
	}
	if g.entry.op == nil {
		return true
	}
	op, ok := store.Get[*gantryv1.Operation](tx, g.entry.op.Meta.Key)
	if !g.led {
		return ok && op.Meta.Revision == g.entry.op.Meta.Revision
	}
	return ok && op.State == g.operation.State && proto.Equal(op.Rollout, g.operation.Rollout)
}

func onService(tx *store.Tx, key string, ch Change) error {
	return store.Modify(tx, key, func(s *gantryv1.Service) error {
		if ch.Action == PointTo {
			s.Release, s.PreviousRelease = ch.Release, 0
		} else {
			s.Weights = ch.Weights
		}
		s.Meta.Cause = ch.Cause
		return nil
	})
}

// deleteService removes a service with its releases and operations, and what is recorded of its runs: one of the same name
// begins with release 1 again, which that record would say has run.
func deleteService(snap *store.ReadTx, tx *store.Tx, key string) {
	for _, r := range store.List[*gantryv1.Release](snap, key+"/") {
		store.Delete[*gantryv1.Release](tx, r.Meta.Key)
	}
	for _, op := range store.List[*gantryv1.Operation](snap, key+"/") {
		store.Delete[*gantryv1.Operation](tx, op.Meta.Key)
	}
	store.Delete[*gantryv1.Job](tx, key)
	store.Delete[*gantryv1.Service](tx, key)
}

func newInstance(s *gantryv1.Service, ch Change) *gantryv1.Instance {
	i := &gantryv1.Instance{
		Meta: store.NewMeta(ids.New()), Environment: s.Environment, App: s.App, Service: s.Name, Slot: ch.Slot, Node: ch.Node,
		Release: ch.Release, Desired: running, RestartGeneration: s.RestartGeneration, VirtualIp: s.VirtualIp,
	}
	i.Meta.Cause = ch.Cause
	return i
}

// onInstance changes an instance that may have gone meanwhile. One that is to be removed stays so.
func onInstance(tx *store.Tx, s *gantryv1.Service, ch Change) error {
	i, ok := store.Get[*gantryv1.Instance](tx, ch.Instance)
	if !ok {
		return nil
	}
	if ch.Action == Forget || ch.Action == SetDesired && ch.Desired == removed && i.Node == "" {
		store.Delete[*gantryv1.Instance](tx, ch.Instance) // nowhere is anything to take down
		return nil
	}
	if i.Desired == removed {
		return nil
	}
	return store.Modify(tx, ch.Instance, func(i *gantryv1.Instance) error {
		i.Meta.Cause = ch.Cause
		switch {
		case ch.Action == Restart:
			i.RestartGeneration, i.StopGrace = s.RestartGeneration, s.StopGrace
		case ch.Desired == stopped:
			i.Desired, i.StopGrace = stopped, s.StopGrace
		default:
			i.Desired = ch.Desired
			if ch.Desired == removed {
				i.StopGrace = nil
			}
		}
		return nil
	})
}

// sweep removes what belongs to no service and is done with: `gantry run --rm` instances that have ended, instances that no
// node has, networks of apps that are gone.
func (c *Controller) sweep(snap *store.ReadTx, b *batch, now time.Time) (again time.Time) {
	for id := range c.index.runs {
		at, ended := c.spentAt(id)
		switch {
		case !ended:
		case at.After(now):
			again = store.Sooner(again, at)
		default:
			b.add(nil, false, func(tx *store.Tx) error {
				return onInstance(tx, nil, Change{Action: SetDesired, Instance: id, Desired: removed})
			})
		}
	}
	for id := range c.index.gone {
		b.add(nil, false, func(tx *store.Tx) error { store.Delete[*gantryv1.Instance](tx, id); return nil })
	}
	for app := range c.index.apps {
		if len(idleNetworks(snap, app)) == 0 {
			continue
		}
		b.add(nil, false, func(tx *store.Tx) error {
			for _, n := range idleNetworks(tx, app) { // the app may have come back, and found them there
				store.Delete[*gantryv1.Network](tx, n)
			}
			return nil
		})
	}
	return again
}

// spentAt is when a `gantry run --rm` instance that has ended is to go: one that could not be started is kept for a moment, so
// that its caller can be told why.
func (c *Controller) spentAt(id string) (at time.Time, ended bool) {
	v := c.index.owner[id].views[id]
	if v.Instance.Desired == removed {
		return at, false
	}
	at = v.Status.GetFinishedAt().AsTime()
	switch v.Status.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_FAILED:
		return at.Add(failedGrace), true
	case gantryv1.InstanceStatus_PHASE_EXITED:
		return at, true
	}
	return at, false
}

// idleNetworks lists the networks of an app that is gone with all its services.
func idleNetworks(r store.Reader, app string) []string {
	if _, alive := store.Get[*gantryv1.App](r, app); alive || len(store.List[*gantryv1.Service](r, app+"/")) > 0 {
		return nil
	}
	var out []string
	for _, n := range store.List[*gantryv1.Network](r, app+"/") {
		out = append(out, n.Meta.Key)
	}
	return out
}

// appOf is the app's part of a key "env/app/name"; empty for a key without one.
func appOf(key string) string {
	parts := strings.Split(key, "/")
	if len(parts) != 3 {
		return ""
	}
	return parts[0] + "/" + parts[1]
}
