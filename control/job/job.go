// Package job makes the instances of services that end by themselves: once per release, so many at a time, or by a schedule.
//
// New and Run start the controller; Decide is the pure function it follows and what tests exercise. One leader runs it. What
// has been run is recorded in the store, with the instances of a run in the same transaction, so that a change of leaders
// neither repeats a run nor loses one. Instances are placed by the scheduler; those of global jobs have their node from the
// start. A process is run at least once for each completion: where its node is lost, it is run again elsewhere.
package job

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// Controller runs jobs. Use New.
type Controller struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time

	jobs    map[string]*entry // by service key
	members map[string]*entry // by instance
	dirty   map[*entry]bool
	fresh   map[string]bool            // services whose entries or needs were made and do not have their instances yet
	needs   map[string]map[string]bool // services that a job depends on, to their instances

	figures *Figures
}

// entry is a service that is, or was, a job.
type entry struct {
	key       string
	instances map[string]bool
	again     time.Time
	waits     time.Time // since when a start waits for what the job depends on; zero if none does
}

// New makes a controller over the store.
func New(s *store.Store, log *slog.Logger) *Controller {
	return &Controller{
		store: s, log: log, now: time.Now, figures: &Figures{},
		jobs: map[string]*entry{}, members: map[string]*entry{}, dirty: map[*entry]bool{}, fresh: map[string]bool{},
		needs: map[string]map[string]bool{},
	}
}

const (
	retryDelay = time.Second
	// askBlocked is how often it is looked whether what a job depends on is there.
	askBlocked = 250 * time.Millisecond
	// longest is the longest wait in one go: clocks are put right now and then.
	longest = 30 * time.Second
)

// Run looks at every job once and then whenever something happens to it or its time has come, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	sub, err := c.store.ViewAndWatch(c.read)
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		if err := c.pass(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("jobs could not be brought forward, trying again", "err", err)
		}
		if sub.Wait(ctx, c.now(), c.next()) != nil {
			return nil
		}
		events, err := sub.Take()
		if err != nil {
			return err
		}
		c.absorb(events)
	}
}

// next is when to look again even if nothing happens.
func (c *Controller) next() (at time.Time) {
	for _, e := range c.jobs {
		at = store.Sooner(at, e.again)
	}
	if at.IsZero() {
		return at
	}
	return store.Sooner(at, c.now().Add(longest))
}

// read takes in all there is.
func (c *Controller) read(r *store.ReadTx) error {
	for _, s := range store.List[*gantryv1.Service](r, "") {
		c.take(store.Event{New: s})
	}
	for _, j := range store.List[*gantryv1.Job](r, "") {
		c.take(store.Event{New: j})
	}
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		c.take(store.Event{New: i})
	}
	c.adopt(r)
	return nil
}

func (c *Controller) absorb(events []store.Event) {
	for _, ev := range events {
		c.take(ev)
	}
	if len(c.fresh) > 0 {
		c.adopt(c.store.Snapshot())
	}
}

// adopt gives new entries the instances that were there before them: those of a service that has become a job are to go.
func (c *Controller) adopt(r store.Reader) {
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		if c.fresh[placement.ServiceKey(i)] {
			c.instance(i, false)
		}
	}
	clear(c.fresh)
}

// take notes which job a change concerns.
func (c *Controller) take(ev store.Event) {
	o := ev.New
	if o == nil {
		o = ev.Old
	}
	key := o.GetMeta().GetKey()
	switch o := o.(type) {
	case *gantryv1.Service:
		if placement.IsJob(o.Spec) || c.jobs[key] != nil {
			c.dirty[c.entry(key)] = true
			c.need(o)
		}
	case *gantryv1.Job:
		c.dirty[c.entry(key)] = true
	case *gantryv1.Instance:
		c.instance(o, ev.New == nil)
	case *gantryv1.InstanceStatus:
		if e := c.members[key]; e != nil {
			c.dirty[e] = true
		}
	case *gantryv1.Node:
		c.all()
	case *gantryv1.NodeStatus:
		was, _ := ev.Old.(*gantryv1.NodeStatus)
		is, _ := ev.New.(*gantryv1.NodeStatus)
		if was.GetState() != is.GetState() {
			c.all()
		}
	}
}

func (c *Controller) all() {
	for _, e := range c.jobs {
		c.dirty[e] = true
	}
}

func (c *Controller) entry(key string) *entry {
	if c.jobs[key] == nil {
		c.jobs[key] = &entry{key: key, instances: map[string]bool{}}
		c.fresh[key] = true
	}
	return c.jobs[key]
}

// need has the instances followed of what a job depends on.
func (c *Controller) need(s *gantryv1.Service) {
	for _, d := range s.Spec.GetDependsOn() {
		if key := sibling(s, d.Service); c.needs[key] == nil {
			c.needs[key] = map[string]bool{}
			c.fresh[key] = true
		}
	}
}

func sibling(s *gantryv1.Service, name string) string {
	return s.Environment + "/" + s.App + "/" + name
}

func (c *Controller) instance(i *gantryv1.Instance, gone bool) {
	key, id := placement.ServiceKey(i), i.Meta.Key
	if needed := c.needs[key]; gone {
		delete(needed, id)
	} else if needed != nil {
		needed[id] = true
	}
	if i.Job == 0 && c.jobs[key] == nil {
		return
	}
	e := c.entry(key)
	c.dirty[e] = true
	if gone {
		delete(e.instances, id)
		delete(c.members, id)
		return
	}
	e.instances[id] = true
	c.members[id] = e
}

// pass decides what is due and writes it, one job after the other.
func (c *Controller) pass(ctx context.Context) error {
	now := c.now()
	for _, e := range c.jobs {
		if !e.again.IsZero() && !now.Before(e.again) {
			c.dirty[e] = true
		}
	}
	if c.figures.Queue.Set(len(c.dirty)); len(c.dirty) > 0 {
		defer c.figures.Passes.Since(time.Now())
	}
	var failed error
	for e := range c.dirty {
		delete(c.dirty, e)
		e.again = time.Time{}
		if err := c.bring(ctx, e, now); err != nil {
			e.again = now.Add(retryDelay)
			failed = err
			c.figures.Failed.Add(1)
		}
	}
	return failed
}

// bring takes one job a step on.
func (c *Controller) bring(ctx context.Context, e *entry, now time.Time) error {
	snap := c.store.Snapshot()
	s, ok := store.Get[*gantryv1.Service](snap, e.key)
	if !ok || !placement.IsJob(s.Spec) {
		return c.drop(ctx, snap, e)
	}
	in := c.input(snap, s, e, now)
	plan := Decide(in)
	e.again = plan.Again
	if in.Blocked {
		e.again = now.Add(askBlocked)
		if e.waits.IsZero() {
			e.waits = now
		}
	}
	if plan.Job != nil || len(plan.Changes) > 0 {
		if err := c.store.Update(ctx, func(tx *store.Tx) error { return apply(tx, s, in.Job, plan) }); err != nil {
			return err
		}
	}
	if !in.Blocked {
		e.waits = time.Time{}
	}
	return nil
}

// drop forgets a service that is no job any more, with what is recorded of it.
func (c *Controller) drop(ctx context.Context, snap *store.ReadTx, e *entry) error {
	if len(e.instances) == 0 {
		delete(c.jobs, e.key)
	}
	if _, ok := store.Get[*gantryv1.Job](snap, e.key); !ok {
		return nil
	}
	return c.store.Update(ctx, func(tx *store.Tx) error {
		store.Delete[*gantryv1.Job](tx, e.key)
		return nil
	})
}

func (c *Controller) input(snap *store.ReadTx, s *gantryv1.Service, e *entry, now time.Time) Input {
	in := Input{
		Service: s, Now: now, Waited: e.waits,
		Eligible: func() []string { return serving(snap, progress.Eligible(snap, s)) },
		Node:     func(id string) progress.NodeState { return progress.NodeIs(snap, id) },
		Pinned:   func(i *gantryv1.Instance) bool { return progress.Pinned(snap, i) != "" },
	}
	in.Job, _ = store.Get[*gantryv1.Job](snap, e.key)
	for id := range e.instances {
		if i, ok := store.Get[*gantryv1.Instance](snap, id); ok {
			in.Instances = append(in.Instances, progress.View(snap, i))
		}
	}
	progress.Sort(in.Instances)
	if len(s.Spec.GetDependsOn()) > 0 && !s.Stopped && starts(in) {
		waits, _ := progress.Blocked(snap, s, progress.ByService(snap, s.Environment+"/"+s.App+"/"))
		in.Blocked = waits != ""
	}
	in.Blocked = in.Blocked || placement.IsGlobal(s.Spec) && !s.Stopped && unheard(snap, s) && starts(in)
	return in
}

// serving leaves out nodes that are down: a run would wait for them.
func serving(r store.Reader, nodes []string) []string {
	return slices.DeleteFunc(nodes, func(id string) bool { return progress.NodeIs(r, id) != progress.NodeServes })
}

// unheard reports that a node has yet to say whether a global job is for it: a run that began now would leave it out.
func unheard(r store.Reader, s *gantryv1.Service) bool {
	return slices.ContainsFunc(serving(r, progress.Eligible(r, s)), progress.Unsure(r, s))
}

// starts reports that a run would begin if nothing held it up.
func starts(in Input) bool {
	plan := Decide(in)
	return plan.Job != nil && lastRun(plan.Job) != lastRun(in.Job)
}

func lastRun(j *gantryv1.Job) (number int64) {
	for _, r := range j.GetRuns() {
		number = max(number, r.Number)
	}
	return number
}

// apply writes a plan, unless the record has changed since it was made.
func apply(tx *store.Tx, s *gantryv1.Service, from *gantryv1.Job, plan Plan) error {
	now, ok := store.Get[*gantryv1.Service](tx, s.Meta.Key)
	if record, _ := store.Get[*gantryv1.Job](tx, s.Meta.Key); !ok || now.Removing || !proto.Equal(record, from) {
		return fault.New(fault.Conflict, "the job %s has changed meanwhile", s.Meta.Key)
	}
	if plan.Job != nil {
		store.Put(tx, plan.Job)
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
		store.Put(tx, newInstance(s, ch))
		return nil
	case Forget:
		store.Delete[*gantryv1.Instance](tx, ch.Instance)
		return nil
	}
	err := store.Modify(tx, ch.Instance, func(i *gantryv1.Instance) error {
		switch ch.Action {
		case SetDesired:
			i.Desired = ch.Desired
		case SetOutcome:
			i.Outcome = ch.Outcome
			if i.Desired == wantRunning {
				i.Desired = wantStopped // it has ended, and is not started again after a reboot
			}
		case Retry:
			i.Attempt, i.RestartGeneration = ch.Attempt, i.RestartGeneration+1
		}
		return nil
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func newInstance(s *gantryv1.Service, ch Change) *gantryv1.Instance {
	return &gantryv1.Instance{
		Meta: &gantryv1.Meta{Key: ids.New(), Cause: fmt.Sprintf("run %d of the job", ch.Run)}, Environment: s.Environment, App: s.App, Service: s.Name, Slot: ch.Slot, Release: ch.Release,
		Desired: wantRunning, VirtualIp: s.VirtualIp, Node: ch.Node, Job: ch.Run, Attempt: ch.Attempt,
	}
}
