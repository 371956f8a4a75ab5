package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/sys/signal"

	"github.com/gantryd/gantry/fault"
)

// killedCode is the exit code of a process that SIGKILL has ended.
const killedCode = 128 + int32(syscall.SIGKILL)

// killLimit is how long the kernel has to end a process that was sent SIGKILL before that is reported.
const killLimit = 10 * time.Second

// parseSignal reads "SIGTERM", "term" or "15".
func parseSignal(name string) (syscall.Signal, error) {
	s, err := signal.ParseSignal(name)
	if err != nil {
		return 0, fault.Wrap(fault.Invalid, err, "signal %q", name).WithHint("kill -l lists the names")
	}
	return s, nil
}

// Signal sends a signal to the container's first process. SIGKILL goes to all of its processes.
func (e *Engine) Signal(ctx context.Context, id, name string) error {
	sig, err := parseSignal(name)
	if err != nil {
		return err
	}
	c, err := e.container(id)
	if err != nil {
		return err
	}
	if _, err := c.running(); err != nil {
		return err
	}
	return e.signal(e.Context(ctx), id, sig)
}

func (e *Engine) signal(ctx context.Context, id string, sig syscall.Signal) error {
	err := askShim(ctx, id, "send "+sig.String(), shimLimit, func(ctx context.Context) error {
		_, err := e.client.TaskService().Kill(ctx, &tasks.KillRequest{
			ContainerID: id, Signal: uint32(sig), All: sig == syscall.SIGKILL,
		})
		return err
	})
	if err == nil || errdefs.IsNotFound(err) {
		return nil // it has ended meanwhile
	}
	if fault.Is(err, fault.Timeout) {
		return err
	}
	return fault.Wrap(fault.Internal, err, "container %s: signal %s", id, sig)
}

// killTask kills everything in a container, through its shim and then without it.
func (e *Engine) killTask(ctx context.Context, id string) {
	if err := e.signal(ctx, id, syscall.SIGKILL); err != nil {
		e.log.Warn("a shim does not answer; its container is killed through the control group", "container", id, "error", err)
	}
	e.cgroup.kill(id)
}

// Stop ends a container: its stop signal, then after grace SIGKILL for the whole control group. It returns when the
// container has exited. A container that does not run is no error. A negative grace kills at once.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	r := c.current()
	if r == nil {
		return nil
	}
	ctx = e.Context(ctx)
	if grace >= 0 {
		done, err := e.stopPolitely(ctx, c, r, grace)
		if done || err != nil {
			return err
		}
	}
	return e.kill(ctx, c, r)
}

// stopPolitely sends the stop signal and waits out the grace period. It says whether the container has ended.
func (e *Engine) stopPolitely(ctx context.Context, c *container, r *run, grace time.Duration) (bool, error) {
	if c.snapshot().Status == StatusPaused {
		if err := e.Resume(ctx, c.ID); err != nil && !fault.Is(err, fault.Conflict) {
			return false, err
		}
	}
	sig, err := parseSignal(c.StopSignal)
	if err != nil {
		return false, err
	}
	if err := e.signal(ctx, c.ID, sig); err != nil {
		e.log.Warn("the stop signal cannot be sent; the container is killed", "container", c.ID, "error", err)
		return false, nil
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-r.ended:
		return true, nil
	case <-timer.C:
		c.outlived(r, grace)
		return false, nil
	case <-ctx.Done():
		return false, fault.Wrap(fault.Canceled, ctx.Err(), "container %s: stop was given up, its stop signal is sent", c.ID)
	}
}

// kill kills all processes of a run until it has ended.
func (e *Engine) kill(ctx context.Context, c *container, r *run) error {
	deadline := time.NewTimer(killLimit)
	defer deadline.Stop()
	again := time.NewTicker(killLimit / 50)
	defer again.Stop()
	e.killTask(ctx, c.ID)
	for {
		select {
		case <-r.ended:
			return nil
		case <-again.C:
			e.cgroup.kill(c.ID) // a fork may have slipped between listing and killing
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, ctx.Err(), "container %s: stop was given up, SIGKILL is sent", c.ID)
		case <-deadline.C:
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", r.pid)); os.IsNotExist(err) {
				return errShimSilent(c.ID, "report the end of its process", killLimit)
			}
			return fault.New(fault.Timeout, "container %s: process %d does not end %s after SIGKILL; it hangs in the kernel",
				c.ID, r.pid, killLimit).WithHint("cat /proc/%d/stack on the machine", r.pid)
		}
	}
}

// Pause freezes all processes of a container.
func (e *Engine) Pause(ctx context.Context, id string) error {
	return e.setPaused(ctx, id, StatusRunning, StatusPaused, func(ctx context.Context) error {
		_, err := e.client.TaskService().Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id})
		return err
	})
}

// Resume lets a paused container go on.
func (e *Engine) Resume(ctx context.Context, id string) error {
	return e.setPaused(ctx, id, StatusPaused, StatusRunning, func(ctx context.Context) error {
		_, err := e.client.TaskService().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
		return err
	})
}

// setPaused has a shim freeze or thaw a container. A shim that does not answer in time may still do it: then the state
// follows, whoever has been told that it takes too long.
func (e *Engine) setPaused(ctx context.Context, id string, from, to Status, act func(context.Context) error) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		c.op.Lock()
		defer c.op.Unlock()
		done <- e.pauseNow(context.WithoutCancel(ctx), c, from, to, act)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(shimLimit):
		return errShimSilent(id, "make it "+string(to), shimLimit)
	}
}

func (e *Engine) pauseNow(ctx context.Context, c *container, from, to Status, act func(context.Context) error) error {
	if s := c.snapshot().Status; s != from {
		return fault.New(fault.Conflict, "container %s is %s, not %s", c.ID, s, from)
	}
	if err := errgrpc.ToNative(act(e.Context(ctx))); err != nil {
		return fault.Wrap(fault.Internal, err, "container %s cannot become %s", c.ID, to)
	}
	c.mu.Lock()
	if c.state.Status == from {
		c.state.Status = to
	}
	c.mu.Unlock()
	e.saveState(c)
	return nil
}

// Remove removes a container with its writable layer, log and files, killing it first if it runs. It may be called again
// after an error or a crash, and for a container that is not there.
func (e *Engine) Remove(ctx context.Context, id string) error {
	ctx = e.Context(ctx)
	c, err := e.container(id)
	if err != nil {
		return nil //nolint:nilerr // nothing to remove: Open and Create clear away what is half made
	}
	c.op.Lock()
	defer c.op.Unlock()
	if _, err := e.container(id); err != nil {
		return nil //nolint:nilerr // removed while we waited
	}
	if r := c.current(); r != nil {
		if err := e.kill(ctx, c, r); err != nil {
			return err
		}
	}
	if err := e.awaitGone(ctx, c); err != nil {
		return err
	}
	if err := e.erase(ctx, c); err != nil {
		return err
	}
	e.forget(c)
	return nil
}

func (e *Engine) awaitGone(ctx context.Context, c *container) error {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	select {
	case <-r.gone:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Timeout, ctx.Err(), "container %s: its last run is still being cleared away", c.ID)
	}
}

// erase removes what there is of a container. Every step is done, whatever the others say.
func (e *Engine) erase(ctx context.Context, c *container) error {
	var errs []error
	if err := e.client.ContainerService().Delete(ctx, c.ID); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fault.Wrap(diskFault(err), err, "container %s: record", c.ID))
	}
	if err := e.client.SnapshotService(snapshotter).Remove(ctx, c.ID); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fault.Wrap(diskFault(err), err, "container %s: writable layer", c.ID))
	}
	if c.log != nil {
		errs = append(errs, c.log.Close())
	}
	e.unmountFiles(c.ID)
	_ = os.Remove(e.stdinPath(c.ID))
	if err := os.RemoveAll(e.dir(c.ID)); err != nil {
		errs = append(errs, fault.Wrap(diskFault(err), err, "container %s: files", c.ID))
	}
	return errors.Join(errs...)
}
