package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// waiting is a wait for an app to reach a state, shown as it comes.
type waiting struct {
	app string
	// Services that matter; empty for all.
	services []string
	// How long to wait; 0 for ever.
	timeout time.Duration
	// Views before this revision are of the past.
	since int64
	// Work that goes on if the user stops waiting: "starting".
	work string
	// done decides on a view; nil means converged.
	done func([]*gantryv1.ServiceView) bool
}

var errTimeout = errors.New("the time to wait is over")

// errReached ends the stream, it is no failure.
var errReached = errors.New("reached")

// await shows the app until it is where it should be.
func (s *session) await(ctx context.Context, w waiting) error {
	if w.done == nil {
		w.done = converged
	}
	watch, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if w.timeout > 0 {
		timer := time.AfterFunc(w.timeout, func() { cancel(errTimeout) })
		defer timer.Stop()
	}
	show := s.newAppDisplay(w.app)
	last, err := s.follow(watch, w, show)
	show.close()
	switch {
	case errors.Is(err, errReached):
		return nil
	case errors.Is(context.Cause(watch), errTimeout):
		return notReady(w, last)
	case ctx.Err() != nil:
		s.say("stopped waiting; app %q goes on %s", w.app, w.work)
		s.say("hint: gantry ps")
		return &exit{code: exitInterrupted}
	}
	var failed *failedService
	if errors.As(err, &failed) {
		return s.explain(ctx, w.app, failed.view)
	}
	return err
}

type failedService struct{ view *gantryv1.ServiceView }

func (f *failedService) Error() string { return f.view.GetFailure() }

// follow reads the app's states until one decides, and returns the last.
func (s *session) follow(ctx context.Context, w waiting, show appDisplay) ([]*gantryv1.ServiceView, error) {
	views := make(chan []*gantryv1.ServiceView)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.stream(ctx, w, views) })
	var last []*gantryv1.ServiceView
	group.Go(func() error {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				show.tick()
			case last = <-views:
				show.update(last)
				if err := decide(w, last); err != nil {
					return err
				}
			}
		}
	})
	err := group.Wait()
	return last, err
}

func decide(w waiting, views []*gantryv1.ServiceView) error {
	for _, v := range views {
		if v.GetFailure() != "" {
			return &failedService{v}
		}
	}
	if w.done(views) {
		return errReached
	}
	return nil
}

// stream sends the views that matter, over restarts of the daemon.
func (s *session) stream(ctx context.Context, w waiting, to chan<- []*gantryv1.ServiceView) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	req := &gantryv1.GetAppRequest{Environment: s.environment, App: w.app}
	for tries := 0; ; tries++ {
		err := each(ctx, c.Apps.Watch, req, func(v *gantryv1.AppView) error {
			tries = 0
			if v.GetRevision() != 0 && v.GetRevision() < w.since {
				return nil
			}
			select {
			case to <- chosen(v.GetServices(), w.services):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err == nil {
			err = fault.New(fault.Unavailable, "the daemon stopped telling about app %q", w.app)
		}
		const patience = 60
		if !fault.Is(err, fault.Unavailable) || tries >= patience {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func chosen(views []*gantryv1.ServiceView, names []string) []*gantryv1.ServiceView {
	var out []*gantryv1.ServiceView
	for _, v := range views {
		if len(names) == 0 || slices.Contains(names, v.GetService().GetName()) {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b *gantryv1.ServiceView) int {
		return strings.Compare(a.GetService().GetName(), b.GetService().GetName())
	})
	return out
}

func converged(views []*gantryv1.ServiceView) bool {
	for _, v := range views {
		if !v.GetConverged() {
			return false
		}
	}
	return true
}

// notReady names what was not there in time.
func notReady(w waiting, views []*gantryv1.ServiceView) error {
	var missing []string
	for _, v := range views {
		if !v.GetConverged() {
			missing = append(missing, fmt.Sprintf("%s (%s)", v.GetService().GetName(), stateOf(v)))
		}
	}
	what := strings.Join(missing, ", ")
	if what == "" {
		what = "nothing was heard of it"
	}
	return fault.New(fault.Timeout, "app %q is not ready after %s: %s", w.app, w.timeout, what).
		WithHint("it goes on %s; see gantry ps and gantry logs, or give it more with --timeout", w.work)
}

// explain says why a service failed and shows the end of the failed container's log. The container is kept.
func (s *session) explain(ctx context.Context, app string, v *gantryv1.ServiceView) error {
	name := v.GetService().GetName()
	err := fault.New(fault.Conflict, "service %q of app %q failed: %s", name, app, v.GetFailure())
	i := failedInstance(v)
	if i == nil {
		return err.WithHint("gantry events, or gantry inspect %s", name)
	}
	label := fmt.Sprintf("%s.%d", name, i.GetInstance().GetSlot())
	s.tailOf(ctx, app, i.GetInstance().GetMeta().GetKey(), label)
	if out := strings.TrimSpace(i.GetStatus().GetHealthOutput()); out != "" {
		s.say("last health check of %s:", label)
		for _, line := range strings.Split(out, "\n") {
			s.say("  %s", strings.TrimRight(line, "\r"))
		}
	}
	if hint := i.GetStatus().GetHint(); hint != "" {
		return err.WithHint("%s", hint)
	}
	return err.WithHint("%s is kept: gantry logs %s, gantry inspect %s", label, label, label)
}

// failedInstance picks the container whose log explains a failure: the one that ended worst and last.
func failedInstance(v *gantryv1.ServiceView) *gantryv1.InstanceView {
	var worst *gantryv1.InstanceView
	score := func(i *gantryv1.InstanceView) int {
		if i == nil {
			return 0
		}
		st, n := i.GetStatus(), 0
		switch st.GetPhase() {
		case gantryv1.InstanceStatus_PHASE_FAILED:
			n = 4
		case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_RESTARTING:
			n = 3
		}
		if st.GetHealth() == gantryv1.InstanceStatus_HEALTH_UNHEALTHY {
			n = max(n, 2)
		}
		if st.GetError() != "" || st.GetExitCode() != 0 || st.GetOomKilled() {
			n += 2
		}
		// The current release is what was being brought up.
		if n > 0 && i.GetInstance().GetRelease() == v.GetService().GetRelease() {
			n += 10
		}
		return n
	}
	for _, i := range v.GetInstances() {
		if score(i) > score(worst) {
			worst = i
		}
	}
	return worst
}

// tailOf prints the last lines of an instance's log, as far as they can be had.
func (s *session) tailOf(ctx context.Context, app, instance, label string) {
	const lines = 20
	c, err := s.client()
	if err != nil {
		return
	}
	first := true
	err = each(ctx, c.Instances.Logs, &gantryv1.LogsRequest{
		Environment: s.environment, App: app, Targets: []string{instance}, Tail: lines,
	}, func(e *gantryv1.LogEntry) error {
		if first {
			s.say("last log lines of %s:", label)
			first = false
		}
		s.say("  %s", strings.TrimRight(string(e.GetLine()), "\r\n"))
		return nil
	})
	switch {
	case err != nil:
		s.say("the log of %s cannot be read: %s", label, err)
	case first:
		s.say("%s has logged nothing", label)
	}
}
