package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/ocispec"
	"github.com/gantryd/gantry/fault"
)

// Size of a terminal in characters.
type Size struct{ Rows, Columns uint32 }

// IO joins a caller with a process. What is nil is not connected.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize sets the size of the terminal, if the process has one.
	Resize <-chan Size
}

// ExecRequest describes a process beside the container's own.
type ExecRequest struct {
	Command []string
	// Env is added to the container's.
	Env []string
	// WorkingDir and User are the container's if empty.
	WorkingDir, User string
	Tty              bool
	// Size of the terminal when the process starts, if it is known.
	Size Size
	// Privileged gives the process all capabilities.
	Privileged bool
	// Signals are sent to the process, by name.
	Signals <-chan string
}

// outputWait is how long output is waited for after a process has ended whose children hold it open.
const outputWait = 2 * time.Second

// Exec runs a process in a running container and returns its exit code. When ctx ends first, the process is killed.
func (e *Engine) Exec(ctx context.Context, id string, req ExecRequest, streams IO) (int32, error) {
	c, err := e.container(id)
	if err != nil {
		return 0, err
	}
	if c.damaged != nil {
		return 0, c.damaged
	}
	r, err := c.running()
	if err != nil {
		return 0, err
	}
	if len(req.Command) == 0 {
		return 0, fault.New(fault.Invalid, "exec in %s: no command", id)
	}
	p, err := e.execProcess(ctx, c, r, req)
	if err != nil {
		return 0, err
	}
	x := &execution{e: e, c: c, id: "x" + strings.ToLower(rand.Text()[:20]), tty: req.Tty}
	if err := x.open(context.WithoutCancel(e.Context(ctx)), streams); err != nil {
		return 0, err
	}
	defer x.close()
	return x.run(e.Context(ctx), p, req, streams)
}

// execProcess makes the process from the container's own specification.
func (e *Engine) execProcess(ctx context.Context, c *container, r *run, req ExecRequest) (*specs.Process, error) {
	record, err := e.client.ContainerService().Get(e.Context(ctx), c.ID)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "container %s: record", c.ID)
	}
	var spec specs.Spec
	if err := typeurl.UnmarshalTo(record.Spec, &spec); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "container %s: specification", c.ID)
	}
	p := spec.Process
	p.Args, p.Terminal = req.Command, req.Tty
	p.Env = ocispec.MergeEnv(p.Env, req.Env)
	if req.Tty {
		p.Env = ocispec.MergeEnv([]string{"TERM=xterm"}, p.Env)
		p.ConsoleSize = &specs.Box{Height: uint(req.Size.Rows), Width: uint(req.Size.Columns)}
	}
	if req.WorkingDir != "" {
		p.Cwd = path.Join("/", p.Cwd, req.WorkingDir)
		if path.IsAbs(req.WorkingDir) {
			p.Cwd = path.Clean(req.WorkingDir)
		}
	}
	if req.User != "" {
		a, err := readAccounts(procRoot(r))
		if err != nil {
			return nil, err
		}
		if p.User, err = a.resolve(req.User, nil); err != nil {
			return nil, err
		}
	}
	return p, execCapabilities(p, req.Privileged)
}

func execCapabilities(p *specs.Process, privileged bool) error {
	bounding := p.Capabilities.Bounding
	if privileged {
		all, err := cap.Current()
		if err != nil {
			return fault.Wrap(fault.Internal, err, "own capabilities")
		}
		bounding, p.NoNewPrivileges = all, false
	}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: bounding}
	if p.User.UID == 0 || privileged {
		p.Capabilities.Effective, p.Capabilities.Permitted = bounding, bounding
	}
	return nil
}

// procRoot is the root directory of a running container, with all its mounts.
func procRoot(r *run) string { return filepath.Join("/proc", itoa(r.pid), "root") }

// execution is one process beside a container's own, with its fifos.
type execution struct {
	e      *Engine
	c      *container
	id     string
	tty    bool
	dir    string
	stdin  io.ReadWriteCloser
	out    [2]io.ReadWriteCloser
	copies errgroup.Group
}

func (x *execution) path(name string) string { return filepath.Join(x.dir, name) }

// open makes the fifos. The shim opens the other ends when the process starts.
func (x *execution) open(ctx context.Context, streams IO) (err error) {
	x.dir = filepath.Join(x.e.o.Run, "exec", x.id)
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return fault.Wrap(diskFault(err), err, "exec in %s", x.c.ID)
	}
	defer func() {
		if err != nil {
			x.close()
			err = fault.Wrap(diskFault(err), err, "exec in %s", x.c.ID)
		}
	}()
	if streams.Stdin != nil {
		if x.stdin, err = fifo.OpenFifo(ctx, x.path("stdin"), unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK, 0o600); err != nil {
			return err
		}
	}
	for i, name := range []string{"stdout", "stderr"} {
		if i == 1 && x.tty {
			continue
		}
		if x.out[i], err = fifo.OpenFifo(ctx, x.path(name), unix.O_CREAT|unix.O_RDONLY|unix.O_NONBLOCK, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (x *execution) close() {
	for _, f := range []io.Closer{x.stdin, x.out[0], x.out[1]} {
		if f != nil {
			_ = f.Close()
		}
	}
	_ = os.RemoveAll(x.dir)
}

// run starts the process, serves it until it ends, and removes it from the shim.
func (x *execution) run(ctx context.Context, p *specs.Process, req ExecRequest, streams IO) (int32, error) {
	svc := x.e.client.TaskService()
	encoded, err := typeurl.MarshalAnyToProto(p)
	if err != nil {
		return 0, fault.Wrap(fault.Internal, err, "exec in %s", x.c.ID)
	}
	r := &tasks.ExecProcessRequest{ContainerID: x.c.ID, ExecID: x.id, Terminal: x.tty, Spec: encoded, Stdout: x.path("stdout")}
	if !x.tty {
		r.Stderr = x.path("stderr")
	}
	if x.stdin != nil {
		r.Stdin = x.path("stdin")
	}
	// What is given up is started nevertheless, and killed then: the shim waits for readers of the output, half a minute if they
	// have gone, and does not report the end of the container before.
	starting := context.WithoutCancel(ctx)
	err = askShim(starting, x.c.ID, "take a process", shimLimit, func(ctx context.Context) error {
		_, err := svc.Exec(ctx, r)
		return err
	})
	if fault.Is(err, fault.Timeout) {
		return 0, err
	}
	if err != nil {
		return 0, fault.Wrap(fault.Internal, err, "exec in %s", x.c.ID)
	}
	defer x.remove(ctx)
	x.copyOutput(streams)
	var started *tasks.StartResponse
	err = askShim(starting, x.c.ID, "start a process", shimExecLimit, func(ctx context.Context) (err error) {
		started, err = svc.Start(ctx, &tasks.StartRequest{ContainerID: x.c.ID, ExecID: x.id})
		return err
	})
	if fault.Is(err, fault.Timeout) {
		return 0, err
	}
	if err != nil {
		return 0, x.startFault(ctx, p, err)
	}
	if x.stdin != nil {
		// Ends when the caller's reader does, which nobody else can end.
		go x.copyInput(context.WithoutCancel(ctx), streams.Stdin)
	}
	return x.serve(ctx, started.Pid, req, streams)
}

func (x *execution) startFault(ctx context.Context, p *specs.Process, err error) error {
	if ctx.Err() != nil {
		return contextFault(ctx, "exec of %q in %s", p.Args[0], x.c.ID)
	}
	if errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) {
		return fault.Wrap(fault.Conflict, err, "container %s is not running any more", x.c.ID)
	}
	if f := startFault(x.c, err); !fault.Is(f, fault.Internal) {
		return f
	}
	return fault.Wrap(fault.Internal, err, "exec of %q in %s", p.Args[0], x.c.ID)
}

// lockedWriter lets callers give one writer for both streams.
type lockedWriter struct {
	mu *sync.Mutex
	to io.Writer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

func (x *execution) copyOutput(streams IO) {
	var mu sync.Mutex
	for i, w := range []io.Writer{streams.Stdout, streams.Stderr} {
		if x.out[i] == nil {
			continue
		}
		if w == nil {
			w = io.Discard
		}
		x.copies.Go(func() error {
			if _, err := io.Copy(lockedWriter{&mu, w}, x.out[i]); err != nil {
				// The caller is gone: the process must not hang on a full pipe.
				_, err = io.Copy(io.Discard, x.out[i])
				return err
			}
			return nil
		})
	}
}

func (x *execution) copyInput(ctx context.Context, from io.Reader) {
	_, _ = io.Copy(x.stdin, from) // a process that has closed its input wants no more
	_ = x.stdin.Close()
	_, _ = x.e.client.TaskService().CloseIO(ctx, &tasks.CloseIORequest{ContainerID: x.c.ID, ExecID: x.id, Stdin: true})
}

// serve passes signals and sizes on until the process has ended.
func (x *execution) serve(ctx context.Context, pid uint32, req ExecRequest, streams IO) (int32, error) {
	ended := make(chan *tasks.WaitResponse, 1)
	var waiting errgroup.Group
	waitCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer func() { cancel(); _ = waiting.Wait() }()
	waiting.Go(func() error {
		resp, err := x.e.client.TaskService().Wait(waitCtx, &tasks.WaitRequest{ContainerID: x.c.ID, ExecID: x.id})
		if err != nil {
			resp = nil
		}
		ended <- resp
		return nil
	})
	for {
		select {
		case resp := <-ended:
			x.awaitOutput()
			if resp == nil {
				return 0, fault.New(fault.Unavailable, "exec of %q in %s: the container ended meanwhile", req.Command[0], x.c.ID)
			}
			return int32(resp.ExitStatus), nil
		case size := <-streams.Resize:
			x.e.resize(ctx, x.c.ID, x.id, size)
		case name := <-req.Signals:
			if sig, err := parseSignal(name); err == nil {
				_, _ = x.e.client.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: x.c.ID, ExecID: x.id, Signal: uint32(sig)})
			}
		case <-ctx.Done():
			x.kill(pid)
			return 0, contextFault(ctx, "exec of %q in %s", req.Command[0], x.c.ID)
		}
	}
}

// awaitOutput waits until all output has been read, but not for ever: a child in the background may hold the pipe.
func (x *execution) awaitOutput() {
	timer := time.AfterFunc(outputWait, func() {
		for _, f := range x.out {
			if f != nil {
				_ = f.Close()
			}
		}
	})
	defer timer.Stop()
	_ = x.copies.Wait() // what the caller did not take is the caller's loss
}

// kill kills the process and those it has started: runc makes each one the leader of a session.
func (x *execution) kill(pid uint32) {
	ctx, cancel := context.WithTimeout(x.e.ctx, killLimit)
	defer cancel()
	if pid > 1 {
		_ = unix.Kill(-int(pid), unix.SIGKILL)
	}
	svc := x.e.client.TaskService()
	_, _ = svc.Kill(ctx, &tasks.KillRequest{ContainerID: x.c.ID, ExecID: x.id, Signal: uint32(syscall.SIGKILL)})
	_, _ = svc.Wait(ctx, &tasks.WaitRequest{ContainerID: x.c.ID, ExecID: x.id})
}

// remove takes the process out of the shim's books.
func (x *execution) remove(ctx context.Context) {
	for _, f := range x.out {
		if f != nil {
			_ = f.Close()
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	_, _ = x.e.client.TaskService().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: x.c.ID, ExecID: x.id})
}

func (e *Engine) resize(ctx context.Context, id, exec string, s Size) {
	_, err := e.client.TaskService().ResizePty(ctx, &tasks.ResizePtyRequest{
		ContainerID: id, ExecID: exec, Width: s.Columns, Height: s.Rows,
	})
	if err != nil && ctx.Err() == nil {
		e.log.Debug("a terminal cannot be resized", "container", id, "error", err)
	}
}

// clearExecs kills the execs of an earlier daemon: nobody reads their output any more.
func (e *Engine) clearExecs(ctx context.Context, c *container) {
	svc := e.client.TaskService()
	resp, err := svc.ListPids(ctx, &tasks.ListPidsRequest{ContainerID: c.ID})
	if err != nil {
		return // the container is ending
	}
	for _, p := range resp.Processes {
		var d options.ProcessDetails
		if p.Info == nil || typeurl.UnmarshalTo(p.Info, &d) != nil || d.ExecID == "" {
			continue
		}
		x := &execution{e: e, c: c, id: d.ExecID}
		e.group.Go(func() error {
			x.kill(p.Pid)
			x.remove(e.ctx)
			return nil
		})
	}
}

// contextFault says that a context has ended before something was done.
func contextFault(ctx context.Context, format string, args ...any) error {
	kind := fault.Canceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = fault.Timeout
	}
	return fault.Wrap(kind, ctx.Err(), format, args...)
}
