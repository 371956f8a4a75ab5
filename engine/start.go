package engine

import (
	"context"
	"errors"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"

	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/shimpool"
	"github.com/gantryd/gantry/fault"
)

// startLimit bounds how long runc may take. It is not the caller's patience: a start is not given up half way.
const startLimit = 2 * time.Minute

// Start runs a container that does not run: the first time, or again on the same writable layer after it has exited.
// It returns when the process runs.
func (e *Engine) Start(ctx context.Context, id string) (pid uint32, err error) {
	c, err := e.container(id)
	if err != nil {
		return 0, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.damaged != nil {
		return 0, c.damaged
	}
	if err := e.mayStart(ctx, c); err != nil {
		return 0, err
	}
	letGo := e.cgroup.mover.Hold()
	defer letGo()
	ctx, cancel := context.WithTimeout(e.Context(context.WithoutCancel(ctx)), startLimit)
	defer cancel()
	release, err := e.lendUserns(c)
	if err != nil {
		return 0, err
	}
	defer release()
	unpin, err := e.pinMounts(c)
	if err != nil {
		return 0, err
	}
	defer unpin()
	defer e.shims.starting()()
	r := newRun()
	if err := e.prepareRun(c, r); err != nil {
		return 0, err
	}
	if r.pid, err = e.createTaskInLiveShim(ctx, c); err != nil {
		e.abandon(ctx, c, r, false)
		return 0, startFault(c, err)
	}
	letGo()
	e.begin(c, r)
	e.sizeTerminal(ctx, c)
	if _, err := e.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
		e.abandon(ctx, c, r, true)
		return 0, startFault(c, errgrpc.ToNative(err))
	}
	e.started(c, r)
	return r.pid, nil
}

// mayStart waits until the last run has been cleared away and says whether another may begin.
func (e *Engine) mayStart(ctx context.Context, c *container) error {
	if _, err := e.container(c.ID); err != nil {
		return err // removed while we waited for it
	}
	c.mu.Lock()
	last, status := c.run, c.state.Status
	c.mu.Unlock()
	if status == StatusRunning || status == StatusPaused {
		return fault.New(fault.Conflict, "container %s is running already", c.ID).WithHint("gantry restart %s", c.Name)
	}
	if !e.haveFiles(c) {
		return fault.New(fault.Conflict, "container %s: its secrets are no longer in memory, the machine was restarted", c.ID).
			WithHint("make the container again: gantry up")
	}
	if last == nil {
		return nil
	}
	select {
	case <-last.gone:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Timeout, ctx.Err(), "container %s: the last run is still being cleared away", c.ID)
	}
}

// prepareRun makes the log ready for a new run.
func (e *Engine) prepareRun(c *container, r *run) error {
	if err := e.openLog(c); err != nil {
		return err
	}
	if err := c.log.Reset(); err != nil {
		return err
	}
	return e.prepareStdin(c, r)
}

// shimAttempts bounds how often a start is tried whose shim went away under it.
const shimAttempts = 5

// createTaskInLiveShim creates the task. The shim of a group ends with the last container in it, which may be while another
// one is on its way into it, and an idle shim may have been killed; the connection is found closed then, and another shim
// is taken.
func (e *Engine) createTaskInLiveShim(ctx context.Context, c *container) (uint32, error) {
	address := ""
	for attempt := 1; ; attempt++ {
		var err error
		if address, err = e.shims.take(ctx, c, address); err != nil {
			return 0, err
		}
		pid, err := e.createTask(ctx, c, address)
		if err == nil || attempt == shimAttempts || !e.shimGone(err) {
			if err != nil {
				e.giveUpShim(c, address)
			}
			return pid, err
		}
		e.log.Debug("a shim ended, another is taken", "container", c.ID, "group", c.Group, "error", err)
	}
}

// giveUpShim ends a shim that nothing came into. containerd does that too, if it got as far as to the shim.
func (e *Engine) giveUpShim(c *container, address string) {
	if c.Group != "" {
		address = e.shims.leave(c)
	}
	if address != "" {
		e.shims.pool.End(address)
	}
}

func (e *Engine) shimGone(err error) bool {
	text := err.Error()
	return errors.Is(err, ttrpc.ErrClosed) || strings.Contains(text, ttrpc.ErrClosed.Error()) ||
		strings.Contains(text, "dial unix "+embedded.SocketDir(e.o.Run))
}

// createTask makes the container's process, which then waits to be started.
func (e *Engine) createTask(ctx context.Context, c *container, shim string) (uint32, error) {
	opts, err := e.runcOptions(c.IDBase)
	if err != nil {
		return 0, err
	}
	req := &tasks.CreateTaskRequest{
		ContainerID: c.ID, Options: opts, Terminal: c.Tty, RuntimePath: e.runtime,
		TaskApiAddress: shimpool.Protocol + shim, TaskApiVersion: shimpool.Version,
	}
	req.Stdout, req.Stderr = c.log.Spools()
	if c.Tty {
		req.Stderr = "" // a terminal has one stream
	}
	if c.Stdin {
		req.Stdin = e.stdinPath(c.ID)
	}
	if req.Rootfs, err = e.rootfsMounts(ctx, c); err != nil {
		return 0, err
	}
	resp, err := e.client.TaskService().Create(ctx, req)
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	return resp.Pid, nil
}

func (e *Engine) rootfsMounts(ctx context.Context, c *container) ([]*types.Mount, error) {
	mounts, err := e.root(ctx, c)
	if err != nil {
		return nil, err
	}
	out := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out, nil
}

// root is what the container's root file system is mounted from; nothing for a directory that is used as it is.
func (e *Engine) root(ctx context.Context, c *container) ([]mount.Mount, error) {
	if c.Rootfs != "" {
		return c.jail(c.Rootfs), nil
	}
	mounts, err := e.client.SnapshotService(snapshotter).Mounts(ctx, c.ID)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "container %s: its writable layer is gone", c.ID).
			WithHint("remove the container; its service makes a new one")
	}
	return e.mapped(c.remapping, mounts), nil
}

// begin makes r the container's run, before its process starts, so that an early exit finds it.
func (e *Engine) begin(c *container, r *run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = r
	e.followLog(c, r)
	if c.began != nil {
		close(c.began)
		c.began = nil
	}
}

// abandon undoes a start that has failed.
func (e *Engine) abandon(ctx context.Context, c *container, r *run, created bool) {
	r.failed = true
	close(r.started)
	e.shims.leave(c)
	if created {
		_, err := e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
		if err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			e.killTask(ctx, c.ID)
			_, _ = e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
		}
	}
	_ = e.cgroup.remove(c.ID)
	r.stdin.close()
	close(r.ended)
	r.setDrained()
	close(r.gone)
}

// started records that the process runs and says so.
func (e *Engine) started(c *container, r *run) {
	now := time.Now()
	limit := e.cgroup.pidsLimit(c.ID)
	c.mu.Lock()
	r.pidsLimit = limit
	c.state.Status, c.state.Pid, c.state.StartedAt = StatusRunning, r.pid, now
	c.state.ExitCode, c.state.OOMKilled, c.state.Lost, c.state.FinishedAt = 0, false, false, time.Time{}
	c.state.PidsReached, c.state.KilledAfter = 0, 0
	c.state.Runs++
	c.mu.Unlock()
	e.saveState(c)
	e.hub.publish(Event{Kind: EventStart, ID: c.ID, At: now, Pid: r.pid})
	close(r.started) // an exit that came meanwhile goes on from here
}

// subscribe begins to listen to what shims report.
func (e *Engine) subscribe() {
	ch, errs := e.client.EventService().Subscribe(e.ctx,
		`namespace==`+Namespace+`,topic=="/tasks/exit"`, `namespace==`+Namespace+`,topic=="/tasks/oom"`)
	e.group.Go(func() error {
		for {
			select {
			case env := <-ch:
				e.handle(env)
			case err := <-errs:
				if e.ctx.Err() == nil && err != nil {
					e.log.Error("containerd's events have ended", "error", err)
				}
				return nil
			case <-e.ctx.Done():
				return nil
			}
		}
	})
}

func (e *Engine) handle(env *events.Envelope) {
	if env == nil || env.Event == nil {
		return
	}
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		e.log.Error("an event cannot be read", "topic", env.Topic, "error", err)
		return
	}
	switch ev := v.(type) {
	case *apievents.TaskExit:
		if ev.ID == ev.ContainerID { // else an exec's, which its caller waits for
			e.handleExit(ev.ContainerID, ev.Pid, int32(ev.ExitStatus), ev.ExitedAt.AsTime())
		}
	case *apievents.TaskOOM:
		if _, err := e.container(ev.ContainerID); err == nil {
			e.hub.publish(Event{Kind: EventOOM, ID: ev.ContainerID, At: env.Timestamp})
		}
	}
}

func (e *Engine) handleExit(id string, pid uint32, code int32, at time.Time) {
	c, err := e.container(id)
	if err != nil {
		return
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil || r.pid != pid {
		return
	}
	e.group.Go(func() error {
		<-r.started
		if !r.failed {
			r.once.Do(func() { e.finish(c, r, code, at) })
		}
		return nil
	})
}

// finish records the end of a run, says so, and then clears away what is left of it.
func (e *Engine) finish(c *container, r *run, code int32, at time.Time) {
	oom, pids := e.cgroup.oomKilled(c.ID), e.cgroup.pidsReached(c.ID) // asked before the control group goes
	if at.IsZero() || at.Unix() <= 0 {
		at = time.Now()
	}
	c.mu.Lock()
	if at.Before(c.state.StartedAt) {
		at = c.state.StartedAt // it ended before the shim had answered that it runs
	}
	c.state.Status, c.state.Pid, c.state.ExitCode = StatusExited, 0, code
	c.state.OOMKilled, c.state.FinishedAt = oom, at
	c.state.PidsReached = max(c.state.PidsReached, pids)
	if code != killedCode {
		c.state.KilledAfter = 0 // it ended by itself at the last moment
	}
	c.mu.Unlock()
	e.saveState(c)
	close(r.ended)
	e.hub.publish(Event{Kind: EventExit, ID: c.ID, At: at, ExitCode: code, OOMKilled: oom})
	e.reap(c, r)
}

// reap deletes the task of a run that has ended, which lets the shim go, and completes its log.
func (e *Engine) reap(c *container, r *run) {
	ctx, cancel := context.WithTimeout(e.ctx, startLimit)
	defer cancel()
	r.stdin.close()
	e.shims.leave(c)
	_, err := e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
	if err := errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		e.log.Warn("a container's task cannot be deleted", "container", c.ID, "error", err)
	}
	if err := e.cgroup.remove(c.ID); err != nil {
		e.cgroup.kill(c.ID) // something of the container's still runs: its first process has ended, so must it
		if err := e.cgroup.remove(c.ID); err != nil {
			e.log.Warn("a control group is left over", "container", c.ID, "error", err)
		}
	}
	if err := c.log.Finish(); err != nil && !errors.Is(err, context.Canceled) {
		e.log.Warn("the end of a container's log is still in its spool", "container", c.ID, "error", err)
	}
	r.setDrained()
	close(r.gone)
}
