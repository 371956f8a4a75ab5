// Package schedule gives every pending instance a node.
//
// New and Run start the controller; Place is the pure function it follows. One leader runs it. It places by the number of
// instances a node already has; it looks at no resources yet.
package schedule

import (
	"context"
	"log/slog"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// Controller places instances. Use New.
type Controller struct {
	store *store.Store
	log   *slog.Logger
}

// New makes a controller over the store.
func New(s *store.Store, log *slog.Logger) *Controller { return &Controller{store: s, log: log} }

// Run places what is pending and then whatever comes, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	sub, err := c.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		var retry <-chan time.Time
		if err := c.pass(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("scheduling failed, trying again", "err", err)
			retry = time.After(retryDelay)
		}
		select {
		case <-sub.Wake():
			if _, err := sub.Take(); err != nil {
				return ignoreCanceled(ctx, err)
			}
		case <-retry:
		case <-ctx.Done():
			return nil
		}
	}
}

const retryDelay = time.Second

func ignoreCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Controller) pass(ctx context.Context) error {
	if len(decide(c.store.Snapshot())) == 0 {
		return nil
	}
	return c.store.Update(ctx, func(tx *store.Tx) error {
		for id, node := range decide(tx) {
			err := store.Modify(tx, id, func(i *gantryv1.Instance) error { i.Node = node; return nil })
			if err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	})
}

func decide(r store.Reader) map[string]string {
	return Place(store.List[*gantryv1.Instance](r, ""), store.List[*gantryv1.Node](r, ""), func(id string) bool {
		st, ok := store.Get[*gantryv1.NodeStatus](r, id)
		return ok && st.State == "ready"
	})
}

// Place maps pending instances to nodes that are active and ready, each to the one with the fewest instances. It is pure.
func Place(instances []*gantryv1.Instance, nodes []*gantryv1.Node, ready func(node string) bool) map[string]string {
	load := map[string]int{}
	var pending []*gantryv1.Instance
	for _, i := range instances {
		switch {
		case i.Node != "":
			load[i.Node]++
		case i.Desired != gantryv1.Instance_DESIRED_REMOVED:
			pending = append(pending, i)
		}
	}
	out := map[string]string{}
	for _, i := range pending {
		if best := lightest(nodes, load, ready); best != "" {
			load[best]++
			out[i.Meta.Key] = best
		}
	}
	return out
}

func lightest(nodes []*gantryv1.Node, load map[string]int, ready func(string) bool) string {
	best := ""
	for _, n := range nodes {
		id := n.Meta.Key
		if n.Availability == "drain" || !ready(id) {
			continue
		}
		if best == "" || load[id] < load[best] {
			best = id
		}
	}
	return best
}
