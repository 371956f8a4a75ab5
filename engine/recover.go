package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/keep"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// recover takes over what an earlier engine left: containers that run, those that ended meanwhile, and the halves of
// what it was doing when it was killed, which are cleared away.
func (e *Engine) recover(ctx context.Context, ended map[string]exitRecord) error {
	records, err := e.client.ContainerService().List(ctx)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "containers of the last run")
	}
	resp, err := e.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return fault.Wrap(fault.Internal, errgrpc.ToNative(err), "running containers of the last run")
	}
	byID := map[string]*tasktypes.Process{}
	for _, t := range resp.Tasks {
		byID[t.ID] = t
	}
	for _, record := range records {
		if err := e.adopt(ctx, record.ID, byID[record.ID], ended); err != nil {
			return err
		}
	}
	return e.clearLeftovers(ctx, byID)
}

// adopt takes over one container. One without its configuration was being made or removed: it goes. One whose configuration is
// damaged stays, with what it has written; if it runs, it goes on, but it does not start again.
func (e *Engine) adopt(ctx context.Context, id string, task *tasktypes.Process, ended map[string]exitRecord) error {
	if err := atomicfile.Tidy(e.dir(id)); err != nil {
		e.log.Warn("what was half written of a container stays", "container", id, "error", err)
	}
	c := &container{}
	c.damaged = keep.Config(e.dir(id), &c.config, func() bool { return c.ID == id })
	if keep.Missing(c.damaged) {
		e.log.Warn("a half-made container is removed", "container", id)
		c.ID = id
		e.clearTask(ctx, id)
		return e.erase(ctx, c)
	}
	if c.damaged != nil {
		c.config = config{ID: id, Name: id}
		e.log.Error("a container is left alone", "container", id, "error", c.damaged, "hint", fault.HintOf(c.damaged))
	}
	if c.IDBase == 0 && c.HostIDs == "" {
		c.HostIDs = "it was made before containers had user namespaces"
	}
	c.state.Status = StatusCreated
	if err := keep.ReadState(filepath.Join(e.dir(id), stateFile), &c.state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Warn("a container's last state cannot be read", "container", id, "error", err)
	}
	if err := e.openLog(c); err != nil {
		return err
	}
	e.mu.Lock()
	e.containers[id] = c
	e.mu.Unlock()
	e.adoptTask(ctx, c, task, ended)
	return nil
}

// adoptTask settles what became of the container's process.
func (e *Engine) adoptTask(ctx context.Context, c *container, task *tasktypes.Process, ended map[string]exitRecord) {
	wasRunning := c.state.Status == StatusRunning || c.state.Status == StatusPaused
	if task == nil {
		if wasRunning {
			e.lost(c, ended)
		}
		// The last engine may have ended when the shim had deleted the task and containerd had not heard: it keeps the shim.
		_, _ = e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
		if err := c.log.Finish(); err != nil {
			e.log.Warn("the end of a container's log is still in its spool", "container", c.ID, "error", err)
		}
		return
	}
	if task.Status == tasktypes.Status_CREATED || task.Status == tasktypes.Status_UNKNOWN {
		e.clearTask(ctx, c.ID) // killed between making and starting the process
		return
	}
	e.shims.adopted(c, embedded.Shim(e.o.Run, Namespace, c.ID))
	r := newRun()
	r.pid, r.pidsLimit = task.Pid, e.cgroup.pidsLimit(c.ID)
	close(r.started)
	// A run whose end is written down has been counted: the daemon before was killed while it cleared the task away.
	counted := wasRunning || task.Status == tasktypes.Status_STOPPED && !c.state.FinishedAt.Before(task.ExitedAt.AsTime())
	if !counted { // started, but killed before that was written down
		c.state.Runs++
		c.state.StartedAt = time.Now()
	}
	c.mu.Lock()
	c.state.Status, c.state.Pid = StatusRunning, task.Pid
	if task.Status == tasktypes.Status_PAUSED || task.Status == tasktypes.Status_PAUSING {
		c.state.Status = StatusPaused
	}
	c.run = r
	e.followLog(c, r)
	c.mu.Unlock()
	e.saveState(c)
	e.clearExecs(ctx, c)
	if task.Status == tasktypes.Status_STOPPED {
		r.once.Do(func() { e.finish(c, r, int32(task.ExitStatus), task.ExitedAt.AsTime()) })
	}
}

// exitRecord is what a shim writes down when its container ends.
type exitRecord struct {
	Timestamp time.Time
	Status    int32
}

// endedMeanwhile reads the exits that shims have recorded, before containerd clears away the shims that are dead.
func (e *Engine) endedMeanwhile() map[string]exitRecord {
	ended := map[string]exitRecord{}
	entries, _ := os.ReadDir(embedded.Bundle(e.o.Run, Namespace, ""))
	for _, d := range entries {
		var r exitRecord
		if keep.ReadState(filepath.Join(embedded.Bundle(e.o.Run, Namespace, d.Name()), "exit.json"), &r) == nil {
			ended[d.Name()] = r
		}
	}
	return ended
}

// lost records the end of a container whose shim is gone too: from the shim's record, or, after a power loss, as unknown.
func (e *Engine) lost(c *container, ended map[string]exitRecord) {
	r, known := ended[c.ID]
	if !known {
		r = exitRecord{time.Now(), LostExitCode}
	}
	c.mu.Lock()
	c.state.Status, c.state.Pid, c.state.ExitCode = StatusExited, 0, r.Status
	c.state.Lost, c.state.FinishedAt = !known, r.Timestamp
	c.mu.Unlock()
	e.saveState(c)
}

// clearTask kills and deletes a task that nobody wants.
func (e *Engine) clearTask(ctx context.Context, id string) {
	e.killTask(ctx, id)
	wait, err := e.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	if err == nil && wait != nil || errdefs.IsNotFound(errgrpc.ToNative(err)) {
		_, _ = e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	}
	_ = e.cgroup.remove(id)
}

// clearLeftovers removes tasks, snapshots, directories, mounts and control groups that belong to no container.
func (e *Engine) clearLeftovers(ctx context.Context, byID map[string]*tasktypes.Process) error {
	for id := range byID {
		if e.containers[id] == nil {
			e.clearTask(ctx, id)
		}
	}
	// containerd renames a bundle, which nothing is mounted in any more, before it removes it.
	halves, _ := filepath.Glob(embedded.Bundle(e.o.Run, Namespace, ".*"))
	for _, dir := range halves {
		_ = os.RemoveAll(dir)
	}
	for _, id := range e.strayIDs(ctx) {
		e.log.Info("what a container left behind is removed", "container", id)
		e.cgroup.kill(id)
		if err := e.erase(ctx, &container{config: config{ID: id}}); err != nil {
			return err
		}
	}
	for _, id := range e.cgroup.ids() {
		if c := e.containers[id]; c == nil || c.current() == nil {
			e.cgroup.kill(id)
			if err := e.cgroup.remove(id); err != nil {
				e.log.Warn("a control group is left over", "container", id, "error", err)
			}
		}
	}
	return nil
}

// strayIDs lists the IDs that have a snapshot or files but no container.
func (e *Engine) strayIDs(ctx context.Context) []string {
	var ids []string
	add := func(id string) {
		if e.containers[id] == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	err := e.client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if id := info.Labels[snapshotLabel]; id != "" {
			add(id)
		}
		return nil
	})
	if err != nil {
		e.log.Warn("snapshots cannot be listed", "error", err)
	}
	for _, dir := range []string{e.dir(""), e.filesDir("")} {
		entries, _ := os.ReadDir(dir)
		for _, d := range entries {
			add(d.Name())
		}
	}
	return ids
}
