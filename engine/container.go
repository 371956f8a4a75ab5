package engine

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gantryd/gantry/engine/jsonlog"
	"github.com/gantryd/gantry/engine/keep"
	"github.com/gantryd/gantry/fault"
)

// Status says where a container is in its life.
type Status string

// The states of a container.
const (
	StatusCreated Status = "created" // never started
	StatusRunning Status = "running"
	StatusPaused  Status = "paused"
	StatusExited  Status = "exited" // may be started again
)

// LostExitCode is the exit code of a container whose end nobody saw, after a power loss for example. As in Docker.
const LostExitCode = 255

// State is what the engine knows of a container.
type State struct {
	ID     string
	Name   string
	Labels map[string]string
	Status Status
	// Pid of the first process as the host sees it; 0 if none runs.
	Pid uint32
	// ExitCode of the last run, 128 plus the signal's number for one that was killed.
	ExitCode  int32
	OOMKilled bool // the last run met the memory limit
	// PidsReached is the limit of processes for which the current or last run was refused one; 0 if it was not.
	PidsReached int64
	// KilledAfter is the grace period within which the last run did not end, so that it was killed; 0 if it did.
	KilledAfter time.Duration
	// Lost says that the end was not seen: the machine or the shim went away. ExitCode is LostExitCode then.
	Lost       bool
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	// Runs counts the starts.
	Runs int
	// IDBase is the machine's ID of root inside. If it is 0, root inside is root, and HostIDs says why.
	IDBase  uint32
	HostIDs string
}

// config is what of a container does not change, kept in container.json.
type config struct {
	ID         string
	Name       string
	Labels     map[string]string
	CreatedAt  time.Time
	Image      string // digest, for the record
	Rootfs     string // host directory instead of a snapshot
	Tty        bool
	Stdin      bool
	StopSignal string
	Log        logConfig
	Group      string
	Files      []string // targets of secrets; their content is on a tmpfs only
	// FilesOwned is false for a container of an earlier version, whose mounts map the owners of its files.
	FilesOwned  bool
	User        string
	WorkingDir  string
	Env         []string
	NetworkHost bool
	Pins        []pin
	remapping
}

type container struct {
	config
	creating bool  // guarded by Engine.mu
	damaged  error // what is wrong with the configuration that was read, or nil

	// op serializes Start, Stop's end, Remove and the like.
	op sync.Mutex

	mu    sync.Mutex // guards what follows
	state State
	run   *run
	log   *jsonlog.Log
	began chan struct{} // closed when the next run begins; nil while nobody waits for it
	stats sample
	size  Size // of the terminal when a run begins; zero if nobody has said
}

// run is one task of a container, from Start until its exit has been dealt with.
type run struct {
	pid uint32
	// pidsLimit is the limit of processes, set before it runs; pidsTold that it has been reached, for watchPids only.
	pidsLimit int64
	pidsTold  bool

	started chan struct{} // the start has succeeded or failed
	failed  bool          // valid after started
	ended   chan struct{} // closed when the process has exited
	drained chan struct{} // closed when all its output is in the log
	gone    chan struct{} // closed when the task is deleted
	once    sync.Once
	drain   sync.Once
	stdin   stdin
}

func newRun() *run {
	return &run{started: make(chan struct{}), ended: make(chan struct{}), drained: make(chan struct{}), gone: make(chan struct{})}
}

func (r *run) setDrained() { r.drain.Do(func() { close(r.drained) }) }

// snapshot returns a copy of the state.
func (c *container) snapshot() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	s.ID, s.Name, s.CreatedAt, s.IDBase, s.HostIDs = c.ID, c.Name, c.CreatedAt, c.IDBase, c.HostIDs
	s.Labels = maps.Clone(c.Labels)
	return s
}

// current returns the run, nil if the container does not run.
func (c *container) current() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Status != StatusRunning && c.state.Status != StatusPaused {
		return nil
	}
	return c.run
}

// lastRun returns the current run or the one before, nil if this engine has seen none.
func (c *container) lastRun() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// outlived records that a run did not end within its grace period. How it ends in fact, finish says.
func (c *container) outlived(r *run, grace time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == r {
		c.state.KilledAfter = grace
	}
}

// nextRun returns a channel that is closed when another run begins. The caller holds c.mu.
func (c *container) nextRun() <-chan struct{} {
	if c.began == nil {
		c.began = make(chan struct{})
	}
	return c.began
}

// running returns the run or an error that says that there is none.
func (c *container) running() (*run, error) {
	if r := c.current(); r != nil {
		return r, nil
	}
	s := c.snapshot()
	return nil, fault.New(fault.Conflict, "container %s is not running (%s)", c.ID, s.Status).WithHint("gantry start %s", c.Name)
}

const stateFile = "state.json"

// saveState keeps the state for the next daemon. What is lost with the page cache in a power loss, the next start of the
// engine settles by itself.
func (e *Engine) saveState(c *container) {
	s := c.snapshot()
	s.Labels = nil
	if err := keep.State(filepath.Join(e.dir(c.ID), stateFile), s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Error("a container's state cannot be kept", "container", c.ID, "error", err)
	}
}

// all returns the containers, ordered by ID.
func (e *Engine) all() []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*container, 0, len(e.containers))
	for _, id := range slices.Sorted(maps.Keys(e.containers)) {
		if c := e.containers[id]; !c.creating {
			list = append(list, c)
		}
	}
	return list
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
