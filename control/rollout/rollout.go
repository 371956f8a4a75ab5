// Package rollout makes the instances of every service match its release and number of replicas.
//
// New and Run start the controller; Decide is the pure function it follows and what tests exercise. One leader runs it. It
// creates and retires instances in the store and never talks to a node: the scheduler places them, agents run them.
package rollout

import (
	"context"
	"log/slog"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// Controller runs rollouts. Use New.
type Controller struct {
	store *store.Store
	log   *slog.Logger
}

// New makes a controller over the store.
func New(s *store.Store, log *slog.Logger) *Controller { return &Controller{store: s, log: log} }

// Run reconciles every service once and then whenever something changes, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	sub, err := c.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		again, err := c.pass(ctx)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("rollout pass failed, trying again", "err", err)
			again = time.Now().Add(retryDelay)
		}
		if err := wait(ctx, sub, again); err != nil {
			return ignoreCanceled(ctx, err)
		}
	}
}

const retryDelay = time.Second

// wait returns when something changed or the time has come.
func wait(ctx context.Context, sub *store.Subscription, again time.Time) error {
	var timer <-chan time.Time
	if !again.IsZero() {
		timer = time.After(time.Until(again))
	}
	select {
	case <-sub.Wake():
		_, err := sub.Take()
		return err
	case <-timer:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func ignoreCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pass decides about every service and applies all changes in one transaction. The decisions are made inside of it, so that
// none is applied to objects newer than those it was made from.
func (c *Controller) pass(ctx context.Context) (again time.Time, err error) {
	w := survey(c.store.Snapshot(), time.Now())
	if w.empty() {
		return w.again, nil
	}
	err = c.store.Update(ctx, func(tx *store.Tx) error {
		w = survey(tx, time.Now())
		return w.apply(tx)
	})
	return w.again, err
}

// work is all that is to be done now.
type work struct {
	plans    map[string]Plan // by service key
	spent    []string        // `gantry run --rm` instances that have ended
	unplaced []string        // instances to be removed that no node has
	idle     []string        // networks
	again    time.Time       // when to look again even if nothing changes
}

func survey(r store.Reader, now time.Time) work {
	w := work{plans: map[string]Plan{}, idle: idleNetworks(r)}
	byService := progress.ByService(r)
	for _, s := range store.List[*gantryv1.Service](r, "") {
		plan := Decide(input(r, s, byService))
		if len(plan.Changes) > 0 {
			w.plans[s.Meta.Key] = plan
		}
		w.again = sooner(w.again, plan.Again)
	}
	spent, later := spentRuns(byService, now)
	w.spent, w.again = spent, sooner(w.again, later)
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		if i.Desired == removed && i.Node == "" {
			w.unplaced = append(w.unplaced, i.Meta.Key)
		}
	}
	return w
}

func (w work) empty() bool {
	return len(w.plans)+len(w.spent)+len(w.unplaced)+len(w.idle) == 0
}

func (w work) apply(tx *store.Tx) error {
	for key, plan := range w.plans {
		if err := apply(tx, key, plan); err != nil {
			return err
		}
	}
	for _, id := range w.spent {
		if err := setDesired(tx, id, removed); err != nil {
			return err
		}
	}
	for _, id := range w.unplaced {
		store.Delete[*gantryv1.Instance](tx, id)
	}
	for _, key := range w.idle {
		store.Delete[*gantryv1.Network](tx, key)
	}
	return nil
}

func input(r store.Reader, s *gantryv1.Service, byService map[string][]*gantryv1.InstanceView) Input {
	rel, _ := store.Get[*gantryv1.Release](r, ReleaseKey(s.Meta.Key, s.Release))
	blocked, _ := progress.Blocked(r, s, byService)
	return Input{Service: s, Release: rel, Instances: byService[s.Meta.Key], Blocked: blocked != "", Now: time.Now()}
}

// failedGrace is how long a `gantry run --rm` that could not be started is kept, so that its caller can be told why.
const failedGrace = 5 * time.Second

// spentRuns lists `gantry run --rm` instances whose process has ended, and says when to look again for more.
func spentRuns(byService map[string][]*gantryv1.InstanceView, now time.Time) (spent []string, again time.Time) {
	for _, views := range byService {
		for _, v := range views {
			if !v.Instance.AutoRemove || v.Instance.Desired == removed {
				continue
			}
			at := v.Status.GetFinishedAt().AsTime()
			switch v.Status.GetPhase() {
			case gantryv1.InstanceStatus_PHASE_FAILED:
				at = at.Add(failedGrace)
			case gantryv1.InstanceStatus_PHASE_EXITED:
			default:
				continue
			}
			if at.After(now) {
				again = sooner(again, at)
				continue
			}
			spent = append(spent, v.Instance.Meta.Key)
		}
	}
	return spent, again
}

// sooner is the earlier of two times; zero means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// idleNetworks lists the networks of apps that are gone with all their services.
func idleNetworks(r store.Reader) []string {
	var out []string
	for _, n := range store.List[*gantryv1.Network](r, "") {
		parts := strings.Split(n.Meta.Key, "/")
		if len(parts) != 3 {
			continue
		}
		app := parts[0] + "/" + parts[1]
		_, alive := store.Get[*gantryv1.App](r, app)
		if !alive && len(store.List[*gantryv1.Service](r, app+"/")) == 0 {
			out = append(out, n.Meta.Key)
		}
	}
	return out
}

// ReleaseKey is the key of a service's release, ordered by number.
func ReleaseKey(serviceKey string, number int64) string {
	const digits = "00000000"
	n := []byte(digits)
	for i := len(n) - 1; i >= 0 && number > 0; i-- {
		n[i] = byte('0' + number%10)
		number /= 10
	}
	return serviceKey + "/" + string(n)
}

func apply(tx *store.Tx, key string, plan Plan) error {
	s, ok := store.Get[*gantryv1.Service](tx, key)
	if !ok {
		return nil
	}
	for _, ch := range plan.Changes {
		if err := applyChange(tx, s, ch); err != nil {
			return err
		}
	}
	return nil
}

func applyChange(tx *store.Tx, s *gantryv1.Service, ch Change) error {
	switch ch.Action {
	case Create:
		store.Put(tx, newInstance(s, ch.Slot))
		return nil
	case SetDesired:
		return setDesired(tx, ch.Instance, ch.Desired)
	case Restart:
		return modify(tx, ch.Instance, func(i *gantryv1.Instance) { i.RestartGeneration = s.RestartGeneration })
	case Rollback:
		return store.Modify(tx, s.Meta.Key, func(o *gantryv1.Service) error {
			o.Release, o.PreviousRelease = o.PreviousRelease, 0
			return nil
		})
	case DeleteService:
		for _, r := range store.List[*gantryv1.Release](tx, s.Meta.Key+"/") {
			store.Delete[*gantryv1.Release](tx, r.Meta.Key)
		}
		store.Delete[*gantryv1.Service](tx, s.Meta.Key)
		return nil
	}
	return fault.New(fault.Internal, "the rollout of %s planned an unknown action %d", s.Meta.Key, ch.Action)
}

func newInstance(s *gantryv1.Service, slot int32) *gantryv1.Instance {
	return &gantryv1.Instance{
		Meta: store.NewMeta(ids.New()), Environment: s.Environment, App: s.App, Service: s.Name, Slot: slot,
		Release: s.Release, Desired: running, RestartGeneration: s.RestartGeneration, VirtualIp: s.VirtualIp,
	}
}

func setDesired(tx *store.Tx, id string, want gantryv1.Instance_Desired) error {
	if i, ok := store.Get[*gantryv1.Instance](tx, id); ok && want == removed && i.Node == "" {
		store.Delete[*gantryv1.Instance](tx, id) // never placed: nothing to take down
		return nil
	}
	return modify(tx, id, func(i *gantryv1.Instance) { i.Desired = want })
}

// modify changes an instance that may have gone meanwhile.
func modify(tx *store.Tx, id string, fn func(*gantryv1.Instance)) error {
	err := store.Modify(tx, id, func(i *gantryv1.Instance) error { fn(i); return nil })
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
