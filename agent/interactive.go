package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
)

type interactiveStream = connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput]

// terminal joins an API stream with the input and output of a process.
type terminal struct {
	stream *interactiveStream
	send   sync.Mutex
	stdin  *io.PipeWriter
	resize chan engine.Size
	signal chan string
	// The process keeps its input when the caller goes away without closing it: somebody else may come.
	keeps atomic.Bool
}

// Write of an output sends one of the streams of a process.
type output struct {
	t      *terminal
	stderr bool
}

// Write implements io.Writer.
func (o output) Write(p []byte) (int, error) {
	m := &gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Stdout{Stdout: p}}
	if o.stderr {
		m = &gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Stderr{Stderr: p}}
	}
	if err := o.t.put(m); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *terminal) put(m *gantryv1.ExecOutput) error {
	t.send.Lock()
	defer t.send.Unlock()
	return t.stream.Send(m)
}

// open reads the first message and starts passing on what the caller sends, until ctx ends.
func open(ctx context.Context, stream *interactiveStream) (*terminal, *gantryv1.ExecStart, engine.IO, error) {
	first, err := stream.Receive()
	if err != nil {
		return nil, nil, engine.IO{}, err
	}
	start := first.GetStart()
	if start == nil {
		return nil, nil, engine.IO{}, fault.New(fault.Invalid, "the first message of the stream is not start")
	}
	t := &terminal{stream: stream, resize: make(chan engine.Size, 4), signal: make(chan string, 4)}
	streams := engine.IO{Stdout: output{t: t}, Stderr: output{t: t, stderr: true}, Resize: t.resize}
	var r *io.PipeReader
	r, t.stdin = io.Pipe()
	if start.Stdin {
		streams.Stdin = r
	}
	if start.Rows > 0 {
		t.resize <- engine.Size{Rows: start.Rows, Columns: start.Columns}
	}
	input := make(chan []byte, inputQueue)
	go t.feed(ctx, input)
	go t.receive(ctx, start.Stdin, input)
	context.AfterFunc(ctx, t.letGo)
	return t, start, streams, nil
}

// letGo ends the input without the caller's word. What ends with an error is not closed for the process.
func (t *terminal) letGo() {
	if t.keeps.Load() {
		_ = t.stdin.CloseWithError(errCallerGone)
		return
	}
	_ = t.stdin.Close()
}

var errCallerGone = errors.New("the caller is gone")

// inputQueue is how many messages of input wait for a process that does not read, so that signals still get past them.
const inputQueue = 256

// feed writes input to a process until there is no more or the process has closed its end.
func (t *terminal) feed(ctx context.Context, input <-chan []byte) {
	for {
		select {
		case b, more := <-input:
			if !more {
				_ = t.stdin.Close()
				return
			}
			if _, err := t.stdin.Write(b); err != nil {
				return // what is left is dropped, as by a pipe
			}
		case <-ctx.Done():
			return
		}
	}
}

// receive passes input on until the caller closes it, or is gone.
func (t *terminal) receive(ctx context.Context, stdin bool, input chan<- []byte) {
	open := true
	end := func() {
		if open {
			close(input)
			open = false
		}
	}
	for {
		m, err := t.stream.Receive()
		if errors.Is(err, io.EOF) {
			end()
		}
		if err != nil {
			return
		}
		switch in := m.Input.(type) {
		case *gantryv1.ExecInput_Stdin:
			if stdin && open {
				t.queue(ctx, input, in.Stdin)
			}
		case *gantryv1.ExecInput_CloseStdin:
			end()
		case *gantryv1.ExecInput_Resize_:
			t.pass(ctx, engine.Size{Rows: in.Resize.Rows, Columns: in.Resize.Columns})
		case *gantryv1.ExecInput_Signal:
			select {
			case t.signal <- in.Signal:
			case <-ctx.Done():
			}
		}
	}
}

func (t *terminal) queue(ctx context.Context, input chan<- []byte, b []byte) {
	select {
	case input <- b:
	case <-ctx.Done():
	}
}

func (t *terminal) pass(ctx context.Context, s engine.Size) {
	select {
	case t.resize <- s:
	case <-ctx.Done():
	}
}

// Exec implements the API.
func (h *nodeService) Exec(ctx context.Context, stream *interactiveStream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, start, streams, err := open(ctx, stream)
	if err != nil {
		return err
	}
	req := engine.ExecRequest{
		Command: start.Command, Env: start.Env, WorkingDir: start.WorkingDir, User: start.User, Tty: start.Tty,
		Privileged: start.Privileged, Signals: t.signal, Size: engine.Size{Rows: start.Rows, Columns: start.Columns},
	}
	if start.Detach {
		return h.execDetached(ctx, t, start.GetTarget().GetTarget(), req)
	}
	if err := t.put(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Started{Started: true}}); err != nil {
		return err
	}
	code, err := h.a.Engine.Exec(ctx, start.GetTarget().GetTarget(), req, streams)
	if err != nil {
		return err
	}
	return t.put(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_ExitCode{ExitCode: code}})
}

// execDetached lets the process run on after the caller has gone.
func (h *nodeService) execDetached(ctx context.Context, t *terminal, id string, req engine.ExecRequest) error {
	if _, err := h.a.Engine.State(ctx, id); err != nil {
		return err
	}
	h.a.group.Go(func() error {
		if code, err := h.a.Engine.Exec(h.a.ctx, id, req, engine.IO{}); err != nil {
			h.a.log.Warn("a detached exec failed", "instance", id, "code", code, "err", err)
		}
		return nil
	})
	return t.put(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Started{Started: true}})
}

// Attach implements the API. It ends with the process's exit code.
func (h *nodeService) Attach(ctx context.Context, stream *interactiveStream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, start, streams, err := open(ctx, stream)
	if err != nil {
		return err
	}
	id := start.GetTarget().GetTarget()
	w, err := h.a.awaitContainer(ctx, id)
	if err != nil {
		return err
	}
	go h.signals(ctx, t, id)
	waiting := w.status().StartedAt == nil
	// A process without a terminal that runs for this caller, as `gantry run -i` has it, ends with its input.
	t.keeps.Store(start.Tty || !waiting)
	if waiting && start.Rows > 0 {
		if err := h.a.Engine.SetSize(id, engine.Size{Rows: start.Rows, Columns: start.Columns}); err != nil {
			return err
		}
	}
	attached := make(chan error, 1)
	go func() { attached <- h.a.Engine.Attach(ctx, id, streams, start.Logs || waiting) }()
	w.attach()
	if err := w.awaitStart(ctx); err != nil {
		return err
	}
	if err := t.put(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Started{Started: true}}); err != nil {
		return err
	}
	if err := <-attached; err != nil {
		return err
	}
	st, err := w.awaitEnd(ctx)
	if err != nil {
		return err
	}
	return t.put(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_ExitCode{ExitCode: st.ExitCode}})
}

// signals passes signals of an attached caller on.
func (h *nodeService) signals(ctx context.Context, t *terminal, id string) {
	for {
		select {
		case s := <-t.signal:
			if err := h.a.Engine.Signal(ctx, id, s); err != nil {
				h.a.log.Warn("a signal could not be passed on", "instance", id, "signal", s, "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// awaitContainer blocks until the container of an instance is made, and fails with what keeps it from being made.
func (a *Agent) awaitContainer(ctx context.Context, id string) (*worker, error) {
	var found *worker
	for {
		changed := a.reports.Next()
		w := a.worker(id)
		if w == nil && found != nil {
			return nil, fault.New(fault.NotFound, "instance %s was removed", id).WithHint("gantry events --since 1m")
		}
		if found = w; w != nil {
			if err := w.failure(); err != nil {
				return nil, err
			}
			if _, err := a.Engine.State(ctx, id); err == nil && w.status().Phase != gantryv1.InstanceStatus_PHASE_CREATING {
				return w, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// failure is why the instance could not be made or started; nil if it could.
func (w *worker) failure() error {
	st := w.status()
	if st.Phase != gantryv1.InstanceStatus_PHASE_FAILED {
		return nil
	}
	return fault.New(fault.Unavailable, "%s", st.Error).WithHint("%s", st.Hint)
}

// await blocks until a status satisfies done, the instance has failed, or nothing of it is left.
func (w *worker) await(ctx context.Context, done func(*gantryv1.InstanceStatus) bool) (*gantryv1.InstanceStatus, error) {
	for {
		changed := w.a.reports.Next()
		if err := w.failure(); err != nil {
			return nil, err
		}
		w.mu.Lock()
		st, gone := w.rec.Status, w.gone
		w.mu.Unlock()
		if gone || done(st) {
			return st, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// awaitStart blocks until the process has been started.
func (w *worker) awaitStart(ctx context.Context) error {
	_, err := w.await(ctx, func(st *gantryv1.InstanceStatus) bool { return st.StartedAt != nil })
	return err
}

// awaitEnd blocks until the process has ended.
func (w *worker) awaitEnd(ctx context.Context) (*gantryv1.InstanceStatus, error) {
	return w.await(ctx, func(st *gantryv1.InstanceStatus) bool {
		return st.Phase == gantryv1.InstanceStatus_PHASE_EXITED || st.Phase == gantryv1.InstanceStatus_PHASE_RESTARTING
	})
}
