// Package appwait shows an app on its way and waits until it is where it should be, or cannot get there.
//
// Fill in a Waiter and call Await. On a terminal it draws a list of services in place, elsewhere it prints a line for
// each change. A failed service is explained with the end of its container's log. A Waiter is safe in parallel as far as
// its Say is.
package appwait

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// Waiter is who waits.
type Waiter struct {
	Client      *client.Client
	Environment string
	// Say prints one line, made printable.
	Say func(format string, args ...any)
	// NewLive gives an area to draw on, nil where lines are to be printed.
	NewLive func() *terminal.Live
	Style   terminal.Style
}

// ErrPaused says that nothing more happens until somebody lets a rollout go on. Who waited has been told.
var ErrPaused = errors.New("paused")

// ErrStopped says that the user has stopped waiting. What was begun goes on.
var ErrStopped = errors.New("stopped waiting")

// Wait is a wait for an app to reach a state, shown as it comes.
type Wait struct {
	App string
	// Services that matter; empty for all.
	Services []string
	// How long to wait; 0 for ever.
	Timeout time.Duration
	// Views before this revision are of the past.
	Since int64
	// Work that goes on if the user stops waiting: "starting".
	Work string
	// Done decides on a view; nil means converged.
	Done func([]*gantryv1.ServiceView) bool
	// Operations are the keys of the rollouts that have been begun: one that turns around is a failure.
	Operations []string
	// Backwards says that going back is what is wanted of them.
	Backwards bool
	// Settle holds the end back until containers without a health check have run for a moment, so that one that
	// crashes at its start is not taken for one that runs.
	Settle bool
	// Again says that nothing was changed. What could not be made before is tried again by its machine within half a
	// minute: only a failure of that attempt ends the wait.
	Again bool
	// Services are to come up, so that a failure ends the wait.
	coming bool
}

var errTimeout = errors.New("the time to wait is over")

// errReached ends the stream, it is no failure.
var errReached = errors.New("reached")

// Await shows the app until it is where it should be.
func (s *Waiter) Await(ctx context.Context, w Wait) error {
	if w.Done == nil {
		w.Done, w.coming = converged, true
	}
	watch, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if w.Timeout > 0 {
		timer := time.AfterFunc(w.Timeout, func() { cancel(errTimeout) })
		defer timer.Stop()
	}
	show := s.newAppDisplay(w.App)
	logs := failureLogs{}
	last, err := s.follow(watch, w, show, logs)
	show.close()
	switch {
	case errors.Is(err, errReached):
		return s.outcome(w, last, logs)
	case errors.Is(context.Cause(watch), errTimeout):
		if w.coming && len(last) > 0 && converged(last) {
			return nil // It was there, and still settling.
		}
		return notReady(w, last)
	case ctx.Err() != nil:
		s.Say("stopped waiting; app %q goes on %s", w.App, w.Work)
		s.Say("hint: gantry ps")
		return ErrStopped
	}
	var failed *failedService
	if errors.As(err, &failed) {
		return s.explain(ctx, w.App, failed.view)
	}
	return err
}

type failedService struct{ view *gantryv1.ServiceView }

func (f *failedService) Error() string { return f.view.GetFailure() }

// follow reads the app's states until one decides, and returns the last.
func (s *Waiter) follow(ctx context.Context, w Wait, show appDisplay, logs failureLogs) ([]*gantryv1.ServiceView, error) {
	views := make(chan []*gantryv1.ServiceView)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.stream(ctx, w, views) })
	var last []*gantryv1.ServiceView
	j := &judge{wait: w, now: time.Now}
	hear := func(v []*gantryv1.ServiceView) error {
		last = v
		show.update(v)
		s.keepLogs(ctx, w, v, logs)
		return j.hear(v)
	}
	group.Go(func() error {
		var looked time.Time
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				show.tick()
			case v := <-views:
				if err := hear(v); err != nil {
					return err
				}
			}
			if j.settled() && j.youngest.IsZero() {
				return errReached
			}
			// What was read is of a while ago: a large view takes its time to come. Who has asked once goes on: the stream does not
			// repeat what it has said.
			if !j.settled() && looked.IsZero() || time.Since(looked) < lookPause {
				continue
			}
			looked = time.Now()
			v, err := s.look(ctx, w)
			if err != nil {
				continue // The stream says what is wrong.
			}
			if err := hear(v); err != nil {
				return err
			}
			if j.settled() {
				return errReached
			}
		}
	})
	err := group.Wait()
	return last, err
}

const (
	lookPause = time.Second     // between two questions for the app as it is now
	lookLimit = 5 * time.Second // for the answer to one
)

// look asks for the app as it is now.
func (s *Waiter) look(ctx context.Context, w Wait) ([]*gantryv1.ServiceView, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	v, err := client.Call(ctx, s.Client.Apps.Get, &gantryv1.GetAppRequest{Environment: s.Environment, App: w.App})
	if err != nil {
		return nil, err
	}
	return chosen(v.GetServices(), w.Services), nil
}

// stream sends the views that matter, over restarts of the daemon.
func (s *Waiter) stream(ctx context.Context, w Wait, to chan<- []*gantryv1.ServiceView) error {
	req := &gantryv1.GetAppRequest{Environment: s.Environment, App: w.App}
	for tries := 0; ; tries++ {
		err := client.Each(ctx, s.Client.Apps.Watch, req, func(v *gantryv1.AppView) error {
			tries = 0
			if v.GetRevision() != 0 && v.GetRevision() < w.Since {
				return nil
			}
			select {
			case to <- chosen(v.GetServices(), w.Services):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err == nil {
			err = fault.New(fault.Unavailable, "the daemon stopped telling about app %q", w.App)
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
func notReady(w Wait, views []*gantryv1.ServiceView) error {
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
	return fault.New(fault.Timeout, "app %q is not ready after %s: %s", w.App, w.Timeout, what).
		WithHint("it goes on %s; see gantry ps and gantry logs, or give it more with --timeout", w.Work)
}

// explain says why a service failed and shows the end of the failed container's log. The container is kept.
func (s *Waiter) explain(ctx context.Context, app string, v *gantryv1.ServiceView) error {
	name := v.GetService().GetName()
	err := fault.New(fault.Conflict, "service %q of app %q failed: %s", name, app, v.GetFailure())
	i := failedInstance(v)
	if i == nil {
		return err.WithHint("gantry events, or gantry inspect %s", name)
	}
	label := instanceLabel(v, i)
	s.tailOf(ctx, app, i.GetInstance().GetMeta().GetKey(), label)
	if out := strings.TrimSpace(i.GetStatus().GetHealthOutput()); out != "" {
		s.Say("last health check of %s:", label)
		for _, line := range strings.Split(out, "\n") {
			s.Say("  %s", strings.TrimRight(line, "\r"))
		}
	}
	if hint := i.GetStatus().GetHint(); hint != "" {
		return err.WithHint("%s", hint)
	}
	return err.WithHint("%s is kept: gantry logs %s, gantry inspect %s", label, label, label)
}

// instanceLabel is what people call an instance of a service.
func instanceLabel(v *gantryv1.ServiceView, i *gantryv1.InstanceView) string {
	return fmt.Sprintf("%s.%d", v.GetService().GetName(), i.GetInstance().GetSlot())
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
func (s *Waiter) tailOf(ctx context.Context, app, instance, label string) {
	lines, err := s.tail(ctx, app, instance)
	s.sayTail(label, lines, err)
}

func (s *Waiter) tail(ctx context.Context, app, instance string) (lines []string, err error) {
	const most = 20
	err = client.Each(ctx, s.Client.Instances.Logs, &gantryv1.LogsRequest{
		Environment: s.Environment, App: app, Targets: []string{instance}, Tail: most,
	}, func(e *gantryv1.LogEntry) error {
		lines = append(lines, strings.TrimRight(string(e.GetLine()), "\r\n"))
		return nil
	})
	return lines, err
}

func (s *Waiter) sayTail(label string, lines []string, err error) {
	if len(lines) > 0 {
		s.Say("last log lines of %s:", label)
	}
	for _, line := range lines {
		s.Say("  %s", line)
	}
	switch {
	case err != nil:
		s.Say("the log of %s cannot be read: %s", label, err)
	case len(lines) == 0:
		s.Say("%s has logged nothing", label)
	}
}
