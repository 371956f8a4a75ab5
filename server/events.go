package server

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

const keptEvents = 4096

// eventLog keeps the last events in memory and lets readers follow.
type eventLog struct {
	mu    sync.Mutex
	ring  []*gantryv1.Event // event number n is at n % keptEvents
	count int               // of all events since the start
	begun time.Time
	grown chan struct{} // closed and replaced with every event
}

func newEventLog() *eventLog { return &eventLog{grown: make(chan struct{}), begun: time.Now()} }

// run turns changes of the store into events until ctx ends.
func (l *eventLog) run(ctx context.Context, s *store.Store) error {
	sub, err := s.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		changes, err := sub.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		snap := s.Snapshot()
		for _, c := range changes {
			for _, e := range l.toEvents(snap, c) {
				l.add(e)
			}
		}
	}
}

func (l *eventLog) add(e *gantryv1.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < keptEvents {
		l.ring = append(l.ring, e)
	} else {
		l.ring[l.count%keptEvents] = e
	}
	l.count++
	close(l.grown)
	l.grown = make(chan struct{})
}

// from returns the events from number n on, the number after them, and a channel that closes when there are more.
func (l *eventLog) from(n int) ([]*gantryv1.Event, int, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*gantryv1.Event
	for n = max(n, l.count-len(l.ring)); n < l.count; n++ {
		out = append(out, l.ring[n%keptEvents])
	}
	return out, l.count, l.grown
}

func (l *eventLog) end() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// toEvents names what a change means to people, in Docker's words.
func (l *eventLog) toEvents(snap *store.ReadTx, c store.Event) []*gantryv1.Event {
	switch now := c.New.(type) {
	case *gantryv1.InstanceStatus:
		old, _ := c.Old.(*gantryv1.InstanceStatus)
		i, ok := store.Get[*gantryv1.Instance](snap, now.Meta.Key)
		if !ok {
			return nil
		}
		return l.statusEvents(snap, i, old, now)
	case *gantryv1.NodeStatus:
		old, _ := c.Old.(*gantryv1.NodeStatus)
		if now.State == "" || now.State == old.GetState() {
			return nil
		}
		return []*gantryv1.Event{event("node", now.State, now.Meta.Key, map[string]string{"name": nodeName(snap, now.Meta.Key)})}
	case nil:
		return removal(snap, c)
	default:
		return simple(snap, c)
	}
}

// happened says whether a time that a node tells for the first time belongs to what this log has seen: a server that has just
// begun is told of all that runs.
func (l *eventLog) happened(at *timestamppb.Timestamp, old *gantryv1.InstanceStatus) bool {
	return old != nil || at == nil || at.AsTime().After(l.begun)
}

func (l *eventLog) statusEvents(snap *store.ReadTx, i *gantryv1.Instance, old, now *gantryv1.InstanceStatus) []*gantryv1.Event {
	var out []*gantryv1.Event
	add := func(action string, more map[string]string) {
		attrs := attributes(snap, i)
		maps.Copy(attrs, more)
		out = append(out, event("instance", action, i.Meta.Key, attrs))
	}
	exited := now.Phase == gantryv1.InstanceStatus_PHASE_EXITED || now.Phase == gantryv1.InstanceStatus_PHASE_RESTARTING
	if exited && now.FinishedAt != nil && l.happened(now.FinishedAt, old) && (old == nil || old.FinishedAt.AsTime() != now.FinishedAt.AsTime()) {
		// A process may have ended before anybody was told that it ran.
		if l.happened(now.StartedAt, old) && now.StartedAt != nil && old.GetStartedAt().AsTime() != now.StartedAt.AsTime() {
			add("start", origin(i.Meta))
		}
		if now.OomKilled {
			add("oom", nil)
		}
		add("die", death(i, now))
	}
	if now.KilledAfter != nil && (old == nil && l.happened(now.FinishedAt, old) || old != nil && old.KilledAfter == nil) {
		add("kill", map[string]string{"signal": "SIGKILL", "cause": fmt.Sprintf("it did not end within %s", now.KilledAfter.AsDuration())})
	}
	if now.PidsLimitReached > old.GetPidsLimitReached() && l.happened(now.StartedAt, old) {
		add("pids_limit", map[string]string{"cause": fmt.Sprintf("it reached its limit of %d processes", now.PidsLimitReached)})
	}
	if now.Phase == gantryv1.InstanceStatus_PHASE_RUNNING && l.happened(now.StartedAt, old) && (old == nil || old.Pid != now.Pid) {
		add("start", origin(i.Meta))
	}
	if now.Phase == gantryv1.InstanceStatus_PHASE_FAILED && (old == nil || old.Error != now.Error) {
		add("fail", map[string]string{"error": now.Error})
	}
	if now.Health != old.GetHealth() && now.Health > gantryv1.InstanceStatus_HEALTH_STARTING && l.happened(now.StartedAt, old) {
		add("health_status: "+strings.ToLower(strings.TrimPrefix(now.Health.String(), "HEALTH_")), nil)
	}
	return out
}

// death is why a process ended: because somebody wanted it, or by itself.
func death(i *gantryv1.Instance, now *gantryv1.InstanceStatus) map[string]string {
	out := map[string]string{}
	if i.Desired != gantryv1.Instance_DESIRED_RUNNING {
		out = origin(i.Meta)
	} else if now.OomKilled {
		out["cause"] = "out of memory"
	} else {
		out["cause"] = "the process ended"
	}
	out["exitCode"] = fmt.Sprint(now.ExitCode)
	return out
}

// origin is who changed an object last, and why.
func origin(m *gantryv1.Meta) map[string]string {
	return named(store.Origin{By: m.GetChangedBy(), Cause: m.GetCause()})
}

func named(o store.Origin) map[string]string {
	out := map[string]string{}
	if o.By != "" {
		out["by"] = o.By
	}
	if o.Cause != "" {
		out["cause"] = o.Cause
	}
	return out
}

func attributes(snap *store.ReadTx, i *gantryv1.Instance) map[string]string {
	out := map[string]string{
		"name": progress.Name(i), "environment": i.Environment, "app": i.App, "service": i.Service, "release": fmt.Sprint(i.Release),
	}
	if i.Node != "" {
		out["node"] = nodeName(snap, i.Node)
	}
	return out
}

func removal(snap *store.ReadTx, c store.Event) []*gantryv1.Event {
	if i, ok := c.Old.(*gantryv1.Instance); ok {
		attrs := attributes(snap, i)
		// The node says that nothing is left; who wanted it gone is in the object.
		maps.Copy(attrs, origin(i.Meta))
		return []*gantryv1.Event{event("instance", "destroy", i.Meta.Key, attrs)}
	}
	if kind := eventKind(c.Old); kind != "" {
		return []*gantryv1.Event{event(kind, "destroy", c.Old.GetMeta().Key, named(c.Origin))}
	}
	return nil
}

func simple(snap *store.ReadTx, c store.Event) []*gantryv1.Event {
	if i, ok := c.New.(*gantryv1.Instance); ok {
		if c.Old == nil {
			attrs := attributes(snap, i)
			maps.Copy(attrs, origin(i.Meta))
			return []*gantryv1.Event{event("instance", "create", i.Meta.Key, attrs)}
		}
		return nil
	}
	if op, ok := c.New.(*gantryv1.Operation); ok {
		old, _ := c.Old.(*gantryv1.Operation)
		return operationEvents(old, op)
	}
	kind := eventKind(c.New)
	if kind == "" {
		return nil
	}
	action := "update"
	if c.Old == nil {
		action = "create"
	}
	return []*gantryv1.Event{event(kind, action, c.New.GetMeta().Key, origin(c.New.GetMeta()))}
}

// operationEvents tells of every change of an operation's state.
func operationEvents(old, now *gantryv1.Operation) []*gantryv1.Event {
	if old != nil && old.State == now.State {
		return nil
	}
	attrs := map[string]string{"number": fmt.Sprint(now.Number)}
	for name, v := range map[string]string{"by": now.Who, "cause": now.Cause, "error": now.Error, "waiting": now.Waiting} {
		if v != "" {
			attrs[name] = v
		}
	}
	state := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(now.State.String(), "STATE_")), "_", " ")
	return []*gantryv1.Event{event(now.Kind, state, now.Subject, attrs)}
}

func eventKind(o store.Object) string {
	switch o.(type) {
	case *gantryv1.App:
		return "app"
	case *gantryv1.Service:
		return "service"
	case *gantryv1.Volume:
		return "volume"
	case *gantryv1.Network:
		return "network"
	case *gantryv1.Secret:
		return "secret"
	case *gantryv1.Config:
		return "config"
	case *gantryv1.Node:
		return "node"
	case *gantryv1.Environment:
		return "environment"
	}
	return ""
}

func event(kind, action, key string, attrs map[string]string) *gantryv1.Event {
	return &gantryv1.Event{Time: timestamppb.Now(), Kind: kind, Action: action, Key: key, Attributes: attrs}
}

// Events implements the API.
func (h *instances) Events(ctx context.Context, req *connect.Request[gantryv1.EventsRequest], stream *connect.ServerStream[gantryv1.Event]) error {
	m := req.Msg
	next := h.s.events.end()
	if m.Since != nil {
		next = 0
	}
	var until <-chan time.Time
	if m.Until != nil {
		until = time.After(time.Until(m.Until.AsTime()))
	}
	for {
		events, n, grown := h.s.events.from(next)
		next = n
		for _, e := range events {
			if !selected(m, e) {
				continue
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		}
		select {
		case <-grown:
		case <-until:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func selected(m *gantryv1.EventsRequest, e *gantryv1.Event) bool {
	if m.Since != nil && e.Time.AsTime().Before(m.Since.AsTime()) || m.Until != nil && e.Time.AsTime().After(m.Until.AsTime()) {
		return false
	}
	parts := strings.Split(e.Key, "/")
	env, app := parts[0], ""
	if len(parts) > 1 {
		app = parts[1]
	}
	if e.Kind == "instance" {
		env, app = e.Attributes["environment"], e.Attributes["app"]
	}
	if e.Kind == "node" {
		return m.App == "" // a node belongs to no environment
	}
	return (m.Environment == "" || env == m.Environment) && (m.App == "" || app == m.App)
}
