package engine

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/engine/jsonlog"
	"github.com/gantryd/gantry/fault"
)

// Attach connects the caller with a container's own process until the process has ended and all its output is passed
// on. On a container that was never started it waits for the start. With replay, output that the log has comes first.
// Ending ctx detaches; the container goes on.
func (e *Engine) Attach(ctx context.Context, id string, streams IO, replay bool) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	if err := e.openLog(c); err != nil {
		return err
	}
	write := func(chunk jsonlog.Chunk) error { return writeChunk(streams, chunk) }
	tap, err := e.openTap(c, replay, write)
	if err != nil {
		return err
	}
	defer tap.Close()
	r, err := c.awaitRun(ctx)
	if err != nil || r == nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.Context(ctx))
	defer cancel()
	if streams.Stdin != nil && c.Stdin {
		// Ends when the caller's reader does, which nobody else can end.
		go e.copyStdin(context.WithoutCancel(ctx), c, r, streams.Stdin)
	}
	var g errgroup.Group
	g.Go(func() error { e.followSize(ctx, c, r, streams.Resize); return nil })
	err = passOutput(ctx, c, r, tap, write)
	cancel()
	return errors.Join(err, g.Wait())
}

// SetSize says how large a container's terminal is when its process starts the next time.
func (e *Engine) SetSize(id string, s Size) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size = s
	return nil
}

// sizeTerminal gives a process that is made and not started the size that somebody has said.
func (e *Engine) sizeTerminal(ctx context.Context, c *container) {
	c.mu.Lock()
	s := c.size
	c.mu.Unlock()
	if c.Tty && s != (Size{}) {
		e.resize(ctx, c.ID, "", s)
	}
}

func (e *Engine) openTap(c *container, replay bool, write func(jsonlog.Chunk) error) (*jsonlog.Tap, error) {
	if err := c.log.Pump(); err != nil {
		return nil, fault.Wrap(diskFault(err), err, "container %s: log", c.ID)
	}
	if replay {
		return c.log.TapFromStart(write)
	}
	return c.log.Tap(), nil
}

func writeChunk(streams IO, chunk jsonlog.Chunk) error {
	w := streams.Stdout
	if chunk.Stream == "stderr" {
		w = streams.Stderr
	}
	if w == nil {
		return nil
	}
	_, err := w.Write(chunk.Data)
	return err
}

// awaitRun returns the current or last run of the container, waiting for the first. It is nil if the container has
// ended before this daemon came.
func (c *container) awaitRun(ctx context.Context) (*run, error) {
	for {
		c.mu.Lock()
		r, status, began := c.run, c.state.Status, c.nextRun()
		c.mu.Unlock()
		if status != StatusCreated || (r != nil && !r.hasFailed()) {
			return r, nil
		}
		select {
		case <-began:
		case <-ctx.Done():
			return nil, contextFault(ctx, "container %s was not started", c.ID)
		}
	}
}

func (r *run) hasFailed() bool {
	select {
	case <-r.started:
		return r.failed
	default:
		return false
	}
}

// passOutput hands the tap's chunks on until the run's output has ended.
func passOutput(ctx context.Context, c *container, r *run, tap *jsonlog.Tap, write func(jsonlog.Chunk) error) error {
	for {
		drained := isDone(r.drained) && isDone(r.started) && (r.failed || isDone(r.ended))
		chunks, open := tap.Next()
		for _, chunk := range chunks {
			if err := write(chunk); err != nil {
				return fault.Wrap(fault.Canceled, err, "attached to %s: the caller is gone", c.ID)
			}
		}
		if tap.Slow() {
			return fault.New(fault.Exhausted, "attached to %s: output was not read fast enough", c.ID).WithHint("gantry logs %s has all of it", c.Name)
		}
		if drained || !open {
			return nil
		}
		select {
		case <-tap.Ready():
		case <-either(r.drained, r.ended):
		case <-ctx.Done():
			return contextFault(ctx, "attached to %s", c.ID)
		}
	}
}

// either returns the first of two channels that is not closed yet, so that both are waited for in turn.
func either(a, b chan struct{}) <-chan struct{} {
	if isDone(a) {
		return b
	}
	return a
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (e *Engine) copyStdin(ctx context.Context, c *container, r *run, from io.Reader) {
	f, err := r.stdin.open(e.stdinPath(c.ID))
	if err != nil {
		if !errors.Is(err, os.ErrClosed) {
			e.log.Warn("a container's standard input cannot be written", "container", c.ID, "error", err)
		}
		return
	}
	if _, err := io.Copy(f, from); err == nil {
		_ = e.closeStdin(ctx, c, r) // fails when the container has ended, and then nothing is left to close
	}
}

func (e *Engine) followSize(ctx context.Context, c *container, r *run, sizes <-chan Size) {
	select {
	case <-r.started:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case s := <-sizes:
			if c.Tty {
				e.resize(ctx, c.ID, "", s)
			}
		case <-ctx.Done():
			return
		}
	}
}
