// Package rollout makes the instances of every service match its release and number of replicas.
//
// New and Run start the controller; Decide is the pure function it follows and what tests exercise. One leader runs it. It
// creates and retires instances in the store and never talks to a node: the scheduler places them, agents run them. The
// change of a service from one release to another is an operation, whose progress is stored with what it does, so that the
// next leader goes on where this one was. Services are decided when an event concerns them; memory holds only an index of
// the store, and when instances became ready or failed, as far as the operation does not have it.
package rollout

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// Controller runs rollouts. Use New.
type Controller struct {
	store *store.Store
	log   *slog.Logger
	index *index
	chunk int           // writes of one transaction
	slow  time.Duration // a decision that took longer is not made again before slowRest times as long
	now   func() time.Time
	doubt bool // a write was not acknowledged, and may be made

	figures *Figures
}

const (
	chunkSize  = 2000
	retryDelay = time.Second
	slowTime   = 2 * time.Millisecond
	slowRest   = 10
)

// New makes a controller over the store.
func New(s *store.Store, log *slog.Logger) *Controller {
	return &Controller{store: s, log: log, index: newIndex(), chunk: chunkSize, slow: slowTime, now: time.Now, figures: &Figures{}}
}

// Run reconciles every service once and then those that something has happened to, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	ctx = store.WithOrigin(ctx, store.Origin{By: "rollout"})
	sub, err := c.start()
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		again, err := c.turn(ctx, sub)
		if err != nil {
			return err
		}
		if sub.Wait(ctx, c.now(), again) != nil {
			return nil
		}
	}
}

// start reads all there is and subscribes to what comes.
func (c *Controller) start() (*store.Subscription, error) {
	c.index = newIndex()
	return c.store.ViewAndWatch(func(snap *store.ReadTx) error {
		c.index.read(snap, c.now())
		return nil
	})
}

// turn makes a pass over what has happened. Its error is that the state tells nothing any more; a pass that fails is made again
// at the time it returns.
func (c *Controller) turn(ctx context.Context, sub *store.Subscription) (again time.Time, err error) {
	failed := c.ascertain(ctx)
	events, err := sub.Take()
	if err != nil {
		return again, err
	}
	if failed != nil {
		c.index.absorb(c.store.Snapshot(), events, c.now())
	} else {
		again, failed = c.pass(ctx, events)
	}
	if failed != nil && ctx.Err() == nil {
		c.log.Warn("rollout pass failed, trying again", "err", failed)
		again = c.now().Add(retryDelay)
	}
	return again, nil
}

// ascertain waits until reads, and the events that are taken next, tell what became of a write that was not acknowledged: an
// empty change ends after it. What it made would be made again.
func (c *Controller) ascertain(ctx context.Context) error {
	if !c.doubt {
		return nil
	}
	if err := c.store.Update(ctx, func(*store.Tx) error { return nil }); err != nil {
		return err
	}
	c.doubt = false
	return nil
}

// pass takes in what has happened, decides the services it concerns and applies what is decided.
func (c *Controller) pass(ctx context.Context, events []store.Event) (again time.Time, err error) {
	begun := time.Now()
	work, again := c.think(events)
	if c.figures.Queue.Set(len(work.entries)); len(work.entries) > 0 {
		defer c.figures.Passes.Since(begun)
	}
	if err := work.commit(ctx); err != nil {
		for _, e := range work.entries {
			c.index.dirty[e] = true
		}
		c.doubt = true
		return again, err
	}
	clear(c.index.apps)
	return again, nil
}

// think takes in events and decides what is to be written, and when to look again even if nothing happens.
func (c *Controller) think(events []store.Event) (*batch, time.Time) {
	now, snap := c.now(), c.store.Snapshot()
	c.index.absorb(snap, events, now)
	due, again := c.index.due(now)
	work := &batch{controller: c, entries: due}
	nodes := func(id string) progress.NodeState { return c.index.nodeState(snap, id) }
	for _, e := range due {
		switch {
		case e.service == nil:
		case e.strays():
			work.begin(e)
		default:
			work.plan(snap, e, c.decide(snap, e, nodes, now))
			again = store.Sooner(again, e.again)
		}
	}
	return work, store.Sooner(again, c.sweep(snap, work, now))
}

// decide looks at one service.
func (c *Controller) decide(snap *store.ReadTx, e *entry, nodes func(string) progress.NodeState, now time.Time) Plan {
	s, begun := e.service, c.now()
	in := Input{
		Service: s, Operation: e.op, Now: now,
		Node:    nodes,
		Pinned:  func(i *gantryv1.Instance) bool { return progress.Pinned(snap, i) != "" },
		Ready:   func(id string) time.Time { return e.since[id] },
		Failing: func(id string) time.Time { return e.failing[id] },
	}
	in.Release, _ = store.Get[*gantryv1.Release](snap, ReleaseKey(e.key, s.Release))
	_, in.From = store.Get[*gantryv1.Release](snap, ReleaseKey(e.key, e.op.GetRollout().GetFrom()))
	in.Blocked, in.Held = c.blocked(snap, s), c.held(s)
	if e.rests() {
		in.Slots = e.listen(nodes)
		in.Instances = e.in(in.Slots)
	} else {
		in.Instances = slices.AppendSeq(make([]*gantryv1.InstanceView, 0, len(e.views)), maps.Values(e.views))
	}
	if placement.IsGlobal(s.Spec) {
		in.Eligible, in.Unsure = progress.Eligible(snap, s), progress.Unsure(snap, s)
	}
	plan := Decide(in)
	e.blocked, e.again = in.Blocked || in.Held, plan.Again
	if cost := c.now().Sub(begun); cost > c.slow {
		e.after = begun.Add(slowRest * cost)
	}
	return plan
}

// blocked reports that a service has to wait for another one of its app.
func (c *Controller) blocked(snap *store.ReadTx, s *gantryv1.Service) bool {
	if len(s.Spec.GetDependsOn()) == 0 {
		return false
	}
	views := map[string][]*gantryv1.InstanceView{}
	for _, d := range s.Spec.DependsOn {
		key := sibling(s, d.Service)
		if dep := c.index.entries[key]; dep != nil {
			for _, v := range dep.views {
				views[key] = append(views[key], v)
			}
		}
	}
	waits, _ := progress.Blocked(snap, s, views)
	return waits != ""
}

// ReleaseKey is the key of a service's release, ordered by number.
func ReleaseKey(serviceKey string, number int64) string {
	return progress.ReleaseKey(serviceKey, number)
}
