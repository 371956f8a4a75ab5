package server

import (
	"context"
	"fmt"
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
	grown chan struct{}     // closed and replaced with every event
}

func newEventLog() *eventLog { return &eventLog{grown: make(chan struct{})} }

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
			for _, e := range toEvents(snap, c) {
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
func toEvents(snap *store.ReadTx, c store.Event) []*gantryv1.Event {
	switch now := c.New.(type) {
	case *gantryv1.InstanceStatus:
		old, _ := c.Old.(*gantryv1.InstanceStatus)
		i, ok := store.Get[*gantryv1.Instance](snap, now.Meta.Key)
		if !ok {
			return nil
		}
		return statusEvents(i, old, now)
	case nil:
		return removal(c.Old)
	default:
		return simple(c)
	}
}

func statusEvents(i *gantryv1.Instance, old, now *gantryv1.InstanceStatus) []*gantryv1.Event {
	var out []*gantryv1.Event
	add := func(action string, more map[string]string) {
		attrs := attributes(i)
		for k, v := range more {
			attrs[k] = v
		}
		out = append(out, event("instance", action, i.Meta.Key, attrs))
	}
	exited := now.Phase == gantryv1.InstanceStatus_PHASE_EXITED || now.Phase == gantryv1.InstanceStatus_PHASE_RESTARTING
	if exited && now.FinishedAt != nil && (old == nil || old.FinishedAt.AsTime() != now.FinishedAt.AsTime()) {
		if now.OomKilled {
			add("oom", nil)
		}
		add("die", map[string]string{"exitCode": fmt.Sprint(now.ExitCode)})
	}
	if now.Phase == gantryv1.InstanceStatus_PHASE_RUNNING && (old == nil || old.Pid != now.Pid) {
		add("start", nil)
	}
	if now.Phase == gantryv1.InstanceStatus_PHASE_FAILED && (old == nil || old.Error != now.Error) {
		add("fail", map[string]string{"error": now.Error})
	}
	if now.Health != old.GetHealth() && now.Health > gantryv1.InstanceStatus_HEALTH_STARTING {
		add("health_status: "+strings.ToLower(strings.TrimPrefix(now.Health.String(), "HEALTH_")), nil)
	}
	return out
}

func attributes(i *gantryv1.Instance) map[string]string {
	return map[string]string{
		"name": progress.Name(i), "environment": i.Environment, "app": i.App, "service": i.Service, "release": fmt.Sprint(i.Release),
	}
}

func removal(old store.Object) []*gantryv1.Event {
	if i, ok := old.(*gantryv1.Instance); ok {
		return []*gantryv1.Event{event("instance", "destroy", i.Meta.Key, attributes(i))}
	}
	if kind := eventKind(old); kind != "" {
		return []*gantryv1.Event{event(kind, "destroy", old.GetMeta().Key, nil)}
	}
	return nil
}

func simple(c store.Event) []*gantryv1.Event {
	if i, ok := c.New.(*gantryv1.Instance); ok {
		if c.Old == nil {
			return []*gantryv1.Event{event("instance", "create", i.Meta.Key, attributes(i))}
		}
		return nil
	}
	kind := eventKind(c.New)
	if kind == "" {
		return nil
	}
	action := "update"
	if c.Old == nil {
		action = "create"
	}
	return []*gantryv1.Event{event(kind, action, c.New.GetMeta().Key, nil)}
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
	return (m.Environment == "" || env == m.Environment) && (m.App == "" || app == m.App)
}
