// Package replicate keeps each image that a release needs on more than one machine, so that none is lost with a machine.
//
// New and Run start the controller; decide is the pure part it follows. One leader runs it. It counts the machines that say
// they have all of an image, and has those that lack it fetch it from the others, a little at a time, servers first. What a
// release needs is current, or kept to go back to. It removes nothing: what no release needs goes with `gantry image prune`.
// Findings says which images one machine alone has, and why. No byte of an image passes here.
package replicate

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/tally"
	"github.com/gantryd/gantry/store"
)

// Tracker knows what machines have, by what they tell.
type Tracker interface {
	// Told reports whether a machine has told all it has since this server leads.
	Told(node string) bool
	// Keepers lists the machines that have all of an image, up or not.
	Keepers(digest string) []string
	// Moved is closed when one of the two may say something else.
	Moved() <-chan struct{}
}

// Options are what the controller works with. Tracker and Copy are required.
type Options struct {
	Tracker Tracker
	// Copy has a machine fetch an image from others and returns once it has all of it.
	Copy func(ctx context.Context, node string, image Image) error
	// Settle is how long an image must lack copies until some are made: nodes that are to run it fetch it first. 10 s if 0.
	Settle time.Duration
	// Grace is how long a machine that is down is expected back with what it had; a minute if 0.
	Grace time.Duration
	// Patience is how long a new leader waits for what machines tell; a minute if 0.
	Patience time.Duration
	Logger   *slog.Logger
}

const (
	// pause is the least time between two looks at the cluster.
	pause = 500 * time.Millisecond
	// A task that failed is tried again after retryFirst, then after twice as long each time, up to retryLast.
	retryFirst, retryLast = 5 * time.Second, 5 * time.Minute
	// telling is how long a machine that has fetched an image may take to tell so.
	telling = 30 * time.Second
)

// Figures is what a controller counts of its work.
type Figures struct {
	Made    tally.Counter // copies
	Failed  tally.Counter // copies that did not succeed
	Running tally.Gauge   // copies under way
	Lacking tally.Gauge   // images that releases need and that fewer machines have than is wanted
	Single  tally.Gauge   // those of which that services run by now and that at most one machine has
}

// Controller copies images ahead of need. Use New.
type Controller struct {
	o       Options
	store   *store.Store
	figures Figures

	mu       sync.Mutex
	findings []*gantryv1.Finding
}

// New makes a controller over the store.
func New(s *store.Store, o Options) *Controller {
	o.Settle, o.Grace, o.Patience = cmp.Or(o.Settle, 10*time.Second), cmp.Or(o.Grace, time.Minute), cmp.Or(o.Patience, time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Controller{o: o, store: s}
}

// Figures are the controller's own; they are live.
func (c *Controller) Figures() *Figures { return &c.figures }

// Findings says which images that services run by are on one machine alone, or on none. It is empty while this server does not
// lead.
func (c *Controller) Findings() []*gantryv1.Finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.findings
}

// Run copies what lacks copies until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	sub, err := c.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	r := &run{
		Controller: c, ended: make(chan result), stale: true, waitTill: time.Now().Add(c.o.Patience),
		running: map[task]*copying{}, failed: map[task]failure{}, fresh: map[task]time.Time{}, lacking: map[string]time.Time{},
	}
	ctx, cancel := context.WithCancel(ctx)
	defer r.end()
	defer cancel()
	for {
		moved := c.o.Tracker.Moved()
		again := r.pass(ctx, time.Now())
		if err := r.wait(ctx, sub, moved, again); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// run is one time of leading.
type run struct {
	*Controller
	group    sync.WaitGroup
	ended    chan result
	waitTill time.Time
	images   []Image
	stale    bool // images is to be read again
	running  map[task]*copying
	failed   map[task]failure
	fresh    map[task]time.Time // copies made that the machine has not told of, by when it should have
	lacking  map[string]time.Time
}

type copying struct {
	from   string
	cancel context.CancelFunc
}

type result struct {
	task
	err error
}

// end waits for what is under way, which is cancelled.
func (r *run) end() {
	r.group.Wait()
	r.figures.Running.Set(0)
	r.figures.Lacking.Set(0)
	r.figures.Single.Set(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.findings = nil
}

// wait returns when the next look may find something to do.
func (r *run) wait(ctx context.Context, sub *store.Subscription, moved <-chan struct{}, again time.Time) error {
	var timer <-chan time.Time
	if !again.IsZero() {
		timer = time.After(max(time.Until(again), pause))
	}
	for wake := false; !wake; {
		select {
		case <-sub.Wake():
			events, err := sub.Take()
			if err != nil {
				return err
			}
			wake = r.heed(events)
		case res := <-r.ended:
			r.note(res, time.Now())
			wake = true
		case <-moved:
			wake = true
		case <-timer:
			wake = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// heed reports whether one of the events can change a decision.
func (r *run) heed(events []store.Event) (matters bool) {
	for _, ev := range events {
		obj := ev.New
		if obj == nil {
			obj = ev.Old
		}
		switch obj.(type) {
		case *gantryv1.Service, *gantryv1.Release:
			r.stale, matters = true, true
		case *gantryv1.Node, *gantryv1.Cluster:
			matters = true
		case *gantryv1.NodeStatus:
			was, _ := ev.Old.(*gantryv1.NodeStatus)
			is, _ := ev.New.(*gantryv1.NodeStatus)
			matters = matters || was.GetState() != is.GetState() || was.GetDiskFull() != is.GetDiskFull() ||
				was.GetArchitecture() != is.GetArchitecture()
		}
	}
	return matters
}

// note takes in how a copy ended.
func (r *run) note(res result, now time.Time) {
	delete(r.running, res.task)
	r.figures.Running.Set(len(r.running))
	switch {
	case res.err == nil:
		r.figures.Made.Add(1)
		r.fresh[res.task] = now.Add(telling)
		delete(r.failed, res.task)
	case fault.Is(res.err, fault.Canceled):
	case fault.Is(res.err, fault.Conflict): // the machine fetches it for itself
		f := r.failed[res.task]
		r.failed[res.task] = failure{times: f.times, next: now.Add(r.o.Settle)}
	default:
		r.fail(res.task, res.err.Error(), now)
	}
}

func (r *run) fail(t task, text string, now time.Time) {
	f := r.failed[t]
	wait := min(retryFirst<<min(f.times, 10), retryLast)
	r.failed[t] = failure{times: f.times + 1, text: text, next: now.Add(wait)}
	r.figures.Failed.Add(1)
	r.o.Logger.Warn("an image could not be copied to a machine, trying again", "image", t.digest, "node", t.node, "after", wait, "err", text)
}

// pass decides once and acts; the time is when to decide anew at the latest.
func (r *run) pass(ctx context.Context, now time.Time) time.Time {
	snap := r.store.Snapshot()
	if r.stale {
		r.images, r.stale = needed(snap), false
	}
	again := r.awaitTold(now)
	p := decide(r.situation(snap, now))
	for _, t := range p.stop {
		r.running[t].cancel()
	}
	for _, s := range p.start {
		r.begin(ctx, s)
	}
	r.remember(p.lacks, now)
	r.publish(p.lacks)
	return store.Sooner(again, p.again)
}

// awaitTold forgets copies that their machines have told of, and takes those for failed that they do not tell of.
func (r *run) awaitTold(now time.Time) (again time.Time) {
	for t, until := range r.fresh {
		switch {
		case slices.Contains(r.o.Tracker.Keepers(t.digest), t.node):
			delete(r.fresh, t)
		case !now.Before(until):
			delete(r.fresh, t)
			r.fail(t, "the machine does not say that it has it", now)
		default:
			again = store.Sooner(again, until)
		}
	}
	return again
}

func (r *run) begin(life context.Context, s start) {
	ctx, cancel := context.WithCancel(life)
	r.running[s.task] = &copying{from: s.from, cancel: cancel}
	r.figures.Running.Set(len(r.running))
	r.o.Logger.Info("an image is copied to another machine", "image", s.image.Reference, "node", s.node)
	r.group.Go(func() {
		defer cancel()
		err := r.o.Copy(ctx, s.node, s.image)
		if err != nil && ctx.Err() != nil {
			err = fault.Wrap(fault.Canceled, err, "given up")
		}
		select {
		case r.ended <- result{s.task, err}:
		case <-life.Done():
		}
	})
}

// remember keeps since when images lack copies, and forgets what is of no use any more.
func (r *run) remember(lacks []lack, now time.Time) {
	lacking := map[string]time.Time{}
	for _, l := range lacks {
		since, ok := r.lacking[l.image.Digest]
		if !ok {
			since = now
		}
		lacking[l.image.Digest] = since
	}
	r.lacking = lacking
	for t, f := range r.failed {
		if _, ok := lacking[t.digest]; !ok && now.After(f.next) {
			delete(r.failed, t)
		}
	}
}

func (r *run) publish(lacks []lack) {
	findings, single := say(lacks)
	r.figures.Lacking.Set(len(lacks))
	r.figures.Single.Set(single)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.findings = findings
}
