package appwait

import (
	"context"
	"slices"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// failureLogs keeps the end of the logs of instances whose failure has turned a rollout around, by service: the instances are
// removed while it goes back.
type failureLogs map[string]failureLog

type failureLog struct {
	label string
	lines []string
	err   error
}

// keepLogs reads the log of what failed as soon as a rollout goes back.
func (s *Waiter) keepLogs(ctx context.Context, w Wait, views []*gantryv1.ServiceView, logs failureLogs) {
	for _, v := range views {
		name, r := v.GetService().GetName(), v.GetOperation().GetRollout()
		if _, known := logs[name]; known || !begun(w, v) || !r.GetBack() || r.GetFailedInstance() == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		l := failureLog{label: labelOf(v, r.GetFailedInstance())}
		l.lines, l.err = s.tail(ctx, w.App, r.GetFailedInstance())
		cancel()
		logs[name] = l
	}
}

func labelOf(v *gantryv1.ServiceView, instance string) string {
	for _, i := range v.GetInstances() {
		if i.GetInstance().GetMeta().GetKey() == instance {
			return instanceLabel(v, i)
		}
	}
	return instance
}

// begun reports that the last rollout of a service is one of those that are waited for.
func begun(w Wait, v *gantryv1.ServiceView) bool {
	return slices.Contains(w.Operations, v.GetOperation().GetMeta().GetKey())
}

// replaced reports that the rollout that is waited for is no longer the last one of its service.
func replaced(w Wait, v *gantryv1.ServiceView) bool {
	op := v.GetOperation()
	return slices.ContainsFunc(w.Operations, func(key string) bool {
		return strings.HasPrefix(key, op.GetSubject()+"/") && op.GetMeta().GetKey() > key
	})
}

func errReplaced(w Wait, v *gantryv1.ServiceView) error {
	name := v.GetService().GetName()
	return fault.New(fault.Conflict, "another rollout of service %q of app %q has taken the place of this one", name, w.App).
		WithHint("gantry rollout show %s", name)
}

// halted reports that all that is still to come waits for a person.
func halted(w Wait, views []*gantryv1.ServiceView) bool {
	some := false
	for _, v := range views {
		if !w.coming || !v.GetConverged() && !paused(w, v) {
			return false
		}
		some = some || paused(w, v)
	}
	return some
}

func paused(w Wait, v *gantryv1.ServiceView) bool {
	op := v.GetOperation()
	return begun(w, v) && op.GetState() == gantryv1.Operation_STATE_PAUSED && op.GetError() == ""
}

// outcome tells what has been reached: a rollout that went back is a failure, one that waits for a person is told.
func (s *Waiter) outcome(w Wait, views []*gantryv1.ServiceView, logs failureLogs) error {
	var result error
	for _, v := range views {
		name, op := v.GetService().GetName(), v.GetOperation()
		switch {
		case paused(w, v):
			SayPaused(s.Say, name, op)
			result = ErrPaused
		case begun(w, v) && op.GetRollout().GetBack() && !(w.Backwards && op.GetRollout().GetAborted()):
			return s.wentBack(w, v, logs)
		}
	}
	return result
}

// SayPaused says that the rollout of a service is paused, why, and what to do.
func SayPaused(say func(format string, args ...any), service string, op *gantryv1.Operation) {
	if op.GetError() == "" {
		say("the rollout of service %q is paused and waits for %s: gantry rollout resume %s", service, op.GetWaiting(), service)
		return
	}
	say("the rollout of service %q is paused after a failure: %s", service, op.GetError())
	say("hint: gantry rollout resume %s tries again, gantry rollout abort %s goes back; or correct the file and run gantry up", service, service)
}

func (s *Waiter) wentBack(w Wait, v *gantryv1.ServiceView, logs failureLogs) error {
	name, op := v.GetService().GetName(), v.GetOperation()
	if op.GetRollout().GetAborted() {
		return fault.New(fault.Conflict, "the rollout of service %q of app %q was %s; it has release %d again", name, w.App, op.GetError(), op.GetRollout().GetFrom()).
			WithHint("gantry rollout show %s", name)
	}
	if l, ok := logs[name]; ok {
		s.sayTail(l.label, l.lines, l.err)
	}
	err := fault.New(fault.Conflict, "service %q of app %q failed and has gone back to release %d: %s", name, w.App, op.GetRollout().GetFrom(), op.GetError())
	if op.GetHint() != "" {
		return err.WithHint("%s", op.GetHint())
	}
	return err.WithHint("gantry rollout show %s", name)
}
