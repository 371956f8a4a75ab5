package engine

import (
	"context"
	"sync"
	"time"
)

// EventKind says what has happened.
type EventKind string

// The kinds of events.
const (
	EventStart EventKind = "start"
	EventExit  EventKind = "exit"
	EventOOM   EventKind = "oom"
	// EventPids says that a container was refused a process by its limit. It comes once in a run.
	EventPids EventKind = "pids"
)

// Event is something that happened to a container.
type Event struct {
	Kind EventKind
	ID   string
	At   time.Time
	// Of an exit.
	ExitCode  int32
	OOMKilled bool
	// Pid of a start.
	Pid uint32
}

// Events returns what happens from now on. The channel is closed when ctx or the engine ends. Events are never dropped;
// those a slow reader has not read yet are kept in memory.
func (e *Engine) Events(ctx context.Context) <-chan Event {
	out := make(chan Event)
	sub := e.hub.add()
	e.group.Go(func() error {
		defer close(out)
		defer e.hub.remove(sub)
		stop := context.AfterFunc(e.ctx, sub.wake)
		defer stop()
		for {
			for _, ev := range sub.take() {
				select {
				case out <- ev:
				case <-ctx.Done():
					return nil
				case <-e.ctx.Done():
					return nil
				}
			}
			select {
			case <-sub.ready:
			case <-ctx.Done():
				return nil
			case <-e.ctx.Done():
				return nil
			}
		}
	})
	return out
}

// hub hands events to all subscribers in one order.
type hub struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct {
	mu    sync.Mutex
	queue []Event
	ready chan struct{}
}

func (h *hub) add() *subscriber {
	s := &subscriber{ready: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		h.subs = map[*subscriber]struct{}{}
	}
	h.subs[s] = struct{}{}
	return s
}

func (h *hub) remove(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s)
}

func (h *hub) publish(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.mu.Lock()
		s.queue = append(s.queue, ev)
		s.mu.Unlock()
		s.wake()
	}
}

func (s *subscriber) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *subscriber) take() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}
