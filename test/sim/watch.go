package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// watcher counts what the store holds, from its events.
type watcher struct {
	store *store.Store

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced with every change
	nodes     map[string]string
	ready     int // nodes
	instances map[string]*seen
	objects   int           // instances
	placed    int           // of those that are wanted
	running   int           // of those that are wanted
	byRelease map[int64]int // running ones that are wanted
	placedAt  map[string]time.Time
	downAt    time.Time // when a node was called down last
}

// seen is an instance.
type seen struct {
	object *gantryv1.Instance
	status *gantryv1.InstanceStatus
}

func newWatcher(s *store.Store) *watcher {
	return &watcher{
		store: s, changed: make(chan struct{}), nodes: map[string]string{}, instances: map[string]*seen{},
		byRelease: map[int64]int{}, placedAt: map[string]time.Time{},
	}
}

func (w *watcher) run(ctx context.Context) error {
	sub, err := w.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		events, err := sub.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		w.take(events)
	}
}

func (w *watcher) take(events []store.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		w.event(e)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watcher) event(e store.Event) {
	o := e.New
	if o == nil {
		o = e.Old
	}
	switch o := o.(type) {
	case *gantryv1.NodeStatus:
		w.node(o, e.New == nil)
	case *gantryv1.Instance:
		w.change(o.Meta.Key, func(s *seen) {
			if s.object.GetNode() == "" && o.Node != "" {
				w.placedAt[o.Meta.Key] = time.Now()
			}
			s.object = o
			if e.New == nil {
				s.object = nil
				delete(w.placedAt, o.Meta.Key)
			}
		})
	case *gantryv1.InstanceStatus:
		w.change(o.Meta.Key, func(s *seen) {
			s.status = o
			if e.New == nil {
				s.status = nil
			}
		})
	}
}

func (w *watcher) node(o *gantryv1.NodeStatus, gone bool) {
	if w.nodes[o.Meta.Key] == "ready" {
		w.ready--
	}
	w.nodes[o.Meta.Key] = o.State
	if gone {
		delete(w.nodes, o.Meta.Key)
	}
	switch w.nodes[o.Meta.Key] {
	case "ready":
		w.ready++
	case "down":
		w.downAt = time.Now()
	}
}

func (w *watcher) change(id string, fn func(*seen)) {
	s := w.instances[id]
	if s == nil {
		s = &seen{}
		w.instances[id] = s
	}
	w.add(s, -1)
	fn(s)
	w.add(s, 1)
	if s.object == nil && s.status == nil {
		delete(w.instances, id)
	}
}

func (w *watcher) add(s *seen, by int) {
	if s.object == nil {
		return
	}
	w.objects += by
	if s.object.Desired == gantryv1.Instance_DESIRED_REMOVED {
		return
	}
	if s.object.Node != "" {
		w.placed += by
	}
	if s.status.GetPhase() == gantryv1.InstanceStatus_PHASE_RUNNING {
		w.running += by
		w.byRelease[s.object.Release] += by
	}
}

func (w *watcher) forgetPlacements() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.placedAt)
}

// await returns when the condition holds.
func (w *watcher) await(ctx context.Context, what string, met func(*watcher) bool) error {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	for {
		w.mu.Lock()
		ok, changed := met(w), w.changed
		state := fmt.Sprintf("%d nodes ready, %d instances, %d placed, %d running", w.ready, w.objects, w.placed, w.running)
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %s%s", awaitTimeout, what, state, w.laggards())
		}
	}
}

const awaitTimeout = 5 * time.Minute

// laggards describes some of the instances that do not run.
func (w *watcher) laggards() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	n := 0
	for id, s := range w.instances {
		if n == 10 || s.object == nil || s.status.GetPhase() == gantryv1.InstanceStatus_PHASE_RUNNING {
			continue
		}
		n++
		fmt.Fprintf(&b, "\n%s of %s on %q, wanted %v: %v", id, s.object.Service, s.object.Node, s.object.Desired, s.status)
	}
	return b.String()
}
