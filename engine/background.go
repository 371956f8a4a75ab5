package engine

import "context"

// contextUntil returns a context that ends with parent, with cancel, or when done is closed.
func contextUntil(parent context.Context, done <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	watch := doneContext{parent, done}
	release := context.AfterFunc(watch, cancel)
	return ctx, func() { release(); cancel() }
}

// doneContext makes a channel's closing look like the end of a context.
type doneContext struct {
	context.Context
	done <-chan struct{}
}

func (d doneContext) Done() <-chan struct{} { return d.done }

func (d doneContext) Err() error {
	select {
	case <-d.done:
		return context.Canceled
	default:
		return nil
	}
}

func (doneContext) Value(any) any { return nil }
