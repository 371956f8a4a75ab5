// Package schedule gives every pending instance a node.
//
// New and Run start the controller; the planner is the pure part it follows, over a placement.State that events keep up to
// date. One leader runs it. Instances are placed where they fit, the highest priority first, in batches of one transaction
// each; one that fits nowhere is told why, as an observation. Only where nothing fits, others are sent away: the one that an
// instance replaces, and those of lower priority. It makes and removes no instances itself.
package schedule

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// Controller places instances. Use New.
type Controller struct {
	store   *store.Store
	log     *slog.Logger
	figures Figures
}

// New makes a controller over the store.
func New(s *store.Store, log *slog.Logger) *Controller { return &Controller{store: s, log: log} }

// Run places what is pending and then whatever comes, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	for {
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if failed, ok := err.(watchEnded); ok {
			return failed.error
		}
		c.log.Warn("scheduling failed, trying again", "err", err)
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	retryDelay = 500 * time.Millisecond
	batch      = 2000 // placements in one transaction
)

// watchEnded is the end of the store's watch: nothing can be done here.
type watchEnded struct{ error }

// follow reads everything and then goes by events, until something fails.
func (c *Controller) follow(ctx context.Context) error {
	var p *planner
	sub, err := c.store.ViewAndWatch(func(r *store.ReadTx) error { p = newPlanner(r); return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	defer func() {
		c.store.Observe(nil, p.silence())
		c.figures.Waiting.Set(0)
	}()
	for {
		more, again, err := c.pass(ctx, p)
		if err != nil {
			return err
		}
		if !more {
			if err := sub.Wait(ctx, time.Now(), again); err != nil {
				return err
			}
		}
		events, err := sub.Take()
		if err != nil {
			return watchEnded{err}
		}
		if matters(events) {
			p.apply(c.store.Snapshot(), events)
		}
	}
}

// matters reports that some of the events are of more than how instances are, which most are.
func matters(events []store.Event) bool {
	return slices.ContainsFunc(events, func(ev store.Event) bool {
		_, status := newest(ev).(*gantryv1.InstanceStatus)
		return !status
	})
}

// pass plans once, writes the plan and tells those who wait. more asks for another pass at once.
func (c *Controller) pass(ctx context.Context, p *planner) (more bool, again time.Time, err error) {
	begun := time.Now()
	out, more := p.plan(batch)
	if out.empty() && !more {
		var later time.Time
		out.evict, later = p.rebalance(c.store.Snapshot(), time.Now())
		again = later
	}
	c.figures.Waiting.Set(p.waiting())
	put, gone, later := p.say(time.Now())
	if len(put)+len(gone) > 0 {
		// Before the placement, so that what a node says of an instance is never taken back.
		c.store.Observe(put, gone)
	}
	if out.empty() {
		return more, store.Sooner(again, later), nil
	}
	if err := c.commit(ctx, out); err != nil {
		return false, time.Time{}, err
	}
	c.figures.Passes.Since(begun)
	c.figures.Placed.Add(len(out.assign))
	c.figures.Evicted.Add(len(out.evict))
	return true, time.Time{}, nil
}

// commit writes a plan. What it finds otherwise than planned makes it fail, so that all is read again.
func (c *Controller) commit(ctx context.Context, out plan) error {
	surprised := false
	err := c.store.Update(ctx, func(tx *store.Tx) error {
		surprised = false
		for _, a := range out.assign {
			surprised = !assignIn(tx, a) || surprised
		}
		for _, e := range out.evict {
			err := modify(tx, e.instance, func(i *gantryv1.Instance) {
				i.Desired, i.Meta.Cause = gantryv1.Instance_DESIRED_REMOVED, e.cause
			})
			if err != nil {
				return err
			}
		}
		for _, pin := range out.pins {
			// After a surprise perhaps no instance comes to be where the volume would be; those that do are found when all is read.
			surprised = surprised || !place(tx, pin)
		}
		return nil
	})
	if err == nil && surprised {
		return fault.New(fault.Conflict, "a node was drained or removed meanwhile")
	}
	return err
}

// assignIn puts one assignment; false if its node takes no more instances.
func assignIn(tx *store.Tx, a assignment) bool {
	i, ok := store.Get[*gantryv1.Instance](tx, a.instance)
	if !ok || !pending(i) {
		return true // the event of that is on its way
	}
	n, ok := store.Get[*gantryv1.Node](tx, a.node)
	if !ok || !placement.Active(n) {
		return false
	}
	c := proto.Clone(i).(*gantryv1.Instance)
	c.Node = a.node
	store.Put(tx, c)
	return true
}

// place notes where the data of a volume is, unless that is known; false if that node has been removed.
func place(tx *store.Tx, pin placement.Pin) bool {
	if _, ok := store.Get[*gantryv1.Node](tx, pin.Node); !ok {
		return false
	}
	if v, ok := store.Get[*gantryv1.Volume](tx, pin.Volume); ok && v.Node == "" {
		c := proto.Clone(v).(*gantryv1.Volume)
		c.Node = pin.Node
		store.Put(tx, c)
	}
	return true
}

// modify changes an instance that may have gone meanwhile.
func modify(tx *store.Tx, id string, fn func(*gantryv1.Instance)) error {
	err := store.Modify(tx, id, func(i *gantryv1.Instance) error { fn(i); return nil })
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
