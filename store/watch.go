package store

import (
	"context"
	"sync"
	"time"
)

// Event is one change: New is nil for a removal, Old for a creation.
type Event struct {
	Old, New Object
	// Origin of a removal that this server made; what is there carries its own in its Meta.
	Origin Origin
}

// Subscription delivers every change after its snapshot, in order, without loss.
type Subscription struct {
	store *Store
	mu    sync.Mutex
	queue []Event
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
	q := u.queue
	u.queue = nil
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
	u.queue = append(u.queue, events...)
	u.mu.Unlock()
	u.signal()
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
