package jsonlog

import (
	"context"
	"errors"
	"time"
)

// retryAfter is when a log that could not be written (a full disk) is tried again.
const retryAfter = time.Second

// Run pumps the log whenever w says that a spool has grown, until ctx ends. ended, if not nil, is called once when the
// container's side has closed the streams (the first n of stdout, stderr) and all of them has been taken over.
func (l *Log) Run(ctx context.Context, w *Watcher, n int, ended func()) error {
	grown := make(chan struct{}, 1)
	closed := make(chan int, 2*len(l.spools))
	stdout, stderr := l.Spools()
	for i, path := range []string{stdout, stderr} {
		stop, err := w.Watch(path, func(e Event) {
			if e.Closed {
				select {
				case closed <- i:
				default:
				}
			}
			select {
			case grown <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return err
		}
		defer stop()
	}
	return l.loop(ctx, grown, closed, n, ended)
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
