package store

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Event is one change: New is nil for a removal, Old for a creation.
type Event struct {
	Old, New Object
	// Origin of a removal that this server made; what is there carries its own in its Meta.
	Origin Origin
}

// Subscription delivers every change after its snapshot, in order. To one that falls far behind, several changes of an object
// are one, from what it knows to the newest: it holds no more events than there are objects.
type Subscription struct {
	store *Store
	mu    sync.Mutex
	queue []Event
	at    map[name]waiting // nil while no events are merged
	holes int              // events in queue that were merged into later ones
	err   error
	wake  chan struct{}
}

// ViewAndWatch calls fn with a snapshot and returns a subscription to everything after it. Close it when done.
func (s *Store) ViewAndWatch(fn func(*ReadTx) error) (*Subscription, error) {
	sub := &Subscription{store: s, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	snap := &ReadTx{data: s.data.Clone(), rev: s.rev}
	s.subs[sub] = struct{}{}
	s.mu.Unlock()
	if err := fn(snap); err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}

// Close ends the subscription.
func (u *Subscription) Close() {
	u.store.mu.Lock()
	delete(u.store.subs, u)
	u.store.mu.Unlock()
}

// Wake is readable when events may be waiting; Take gets them.
func (u *Subscription) Wake() <-chan struct{} { return u.wake }

// Take returns the waiting events without blocking, or the error that ended the store's watch.
func (u *Subscription) Take() ([]Event, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.queue) == 0 && u.err != nil {
		return nil, u.err
	}
	u.compact()
	q := u.queue
	u.queue, u.at = nil, nil
	return q, nil
}

// Wait returns when events may be waiting or the time has come, as told by a clock that says now; the zero time never comes.
// Only the end of ctx is an error.
func (u *Subscription) Wait(ctx context.Context, now, at time.Time) error {
	var timer <-chan time.Time
	if !at.IsZero() {
		timer = time.After(at.Sub(now))
	}
	select {
	case <-u.wake:
	case <-timer:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Sooner is the earlier of two times as Wait takes them.
func Sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Next blocks for at least one event.
func (u *Subscription) Next(ctx context.Context) ([]Event, error) {
	for {
		events, err := u.Take()
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-u.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (u *Subscription) push(events []Event) {
	u.mu.Lock()
	if u.at == nil {
		u.queue = append(u.queue, events...)
	}
	switch {
	case u.at != nil:
		u.merge(events)
	case len(u.queue) > mergeAfter:
		all := u.queue
		u.queue, u.at = nil, map[name]waiting{}
		u.merge(all)
	}
	u.mu.Unlock()
	u.signal()
}

// mergeAfter is how many events may wait before those of one object become one.
const mergeAfter = 8192

// name is an object's kind and key.
type name struct{ kind, key string }

func nameOf(ev Event) name {
	o := ev.New
	if o == nil {
		o = ev.Old
	}
	return name{kindOf(o), o.GetMeta().GetKey()}
}

// waiting is the one event of an object: where it is in the queue, and whether the subscriber knows nothing of the object.
type waiting struct {
	at  int
	new bool
}

// merge appends events. One of an object that has one already takes its place in time, and begins where that one began.
func (u *Subscription) merge(events []Event) {
	for _, ev := range events {
		n := nameOf(ev)
		w, waits := u.at[n]
		switch {
		case !waits:
			w.new = ev.Old == nil
		case !w.new:
			ev.Old = u.queue[w.at].Old
		case ev.New != nil:
			ev.Old = nil
		default: // it came and went, which is told all the same: whoever made it may wait to hear of it
		}
		if waits {
			u.queue[w.at] = Event{}
			u.holes++
		}
		w.at = len(u.queue)
		u.at[n] = w
		u.queue = append(u.queue, ev)
		if u.holes > mergeAfter && u.holes > len(u.queue)/2 {
			u.compact()
		}
	}
}

// compact closes the holes.
func (u *Subscription) compact() {
	if u.holes == 0 {
		return
	}
	u.queue = slices.DeleteFunc(u.queue, func(ev Event) bool { return ev.Old == nil && ev.New == nil })
	u.holes = 0
	for i, ev := range u.queue {
		n := nameOf(ev)
		u.at[n] = waiting{i, u.at[n].new}
	}
}

func (u *Subscription) close(err error) {
	u.mu.Lock()
	u.err = err
	u.mu.Unlock()
	u.signal()
}

func (u *Subscription) signal() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}
