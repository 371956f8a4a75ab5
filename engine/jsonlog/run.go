package jsonlog

import (
	"context"
	"errors"
	"time"
)

// retryAfter is when a log that could not be written (a full disk) is tried again.
const retryAfter = time.Second

// Follower pumps a log as its spools grow.
type Follower struct {
	log    *Log
	grown  chan struct{}
	closed chan int
	stops  []func()
}

// Follow watches the spools from now on, so that nothing is missed of a container that starts after it returns. The
// caller runs Run.
func (l *Log) Follow(w *Watcher) (*Follower, error) {
	f := &Follower{log: l, grown: make(chan struct{}, 1), closed: make(chan int, 2*len(l.spools))}
	stdout, stderr := l.Spools()
	for i, path := range []string{stdout, stderr} {
		stop, err := w.Watch(path, func(e Event) { f.note(i, e) })
		if err != nil {
			f.stop()
			return nil, err
		}
		f.stops = append(f.stops, stop)
	}
	return f, nil
}

func (f *Follower) note(i int, e Event) {
	if e.Closed {
		select {
		case f.closed <- i:
		default:
		}
	}
	select {
	case f.grown <- struct{}{}:
	default:
	}
}

func (f *Follower) stop() {
	for _, stop := range f.stops {
		stop()
	}
}

// Run pumps the log until ctx ends. ended, if not nil, is called once when the container's side has closed the streams
// (the first n of stdout, stderr) and all of them has been taken over.
func (f *Follower) Run(ctx context.Context, n int, ended func()) error {
	defer f.stop()
	return f.log.loop(ctx, f.grown, f.closed, n, ended)
}

func (l *Log) loop(ctx context.Context, grown <-chan struct{}, closed <-chan int, n int, ended func()) error {
	retry := time.NewTimer(0) // the first pump takes what was written before the watch
	defer retry.Stop()
	open := map[int]bool{}
	for i := range n {
		open[i] = true
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case i := <-closed:
			delete(open, i)
		case <-grown:
		case <-retry.C:
		}
		if err := l.Pump(); err != nil {
			retry.Reset(retryAfter)
			continue
		}
		if len(open) == 0 && ended != nil {
			if err := l.Finish(); err != nil && !errors.Is(err, context.Canceled) {
				retry.Reset(retryAfter)
				continue
			}
			ended()
			ended = nil
		}
	}
}
