// Package agent makes one machine match what the cluster assigned to it.
//
// New, then Run. A worker per instance moves it one step at a time towards what is wanted; records on disk let the agent go
// on after a crash or without a server; one stream to a server brings assignments and takes observations. The agent is the
// only part that talks to the engine, the network, the volumes and the name server of its machine. Handler serves reads and
// streams of what runs here. Everything is safe in parallel. The agent decides nothing about other machines.
package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/build"
	"github.com/gantryd/gantry/discovery"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/network"
	"github.com/gantryd/gantry/volume"
)

// Parts are the machine's own subsystems, ready to use.
type Parts struct {
	Engine    *engine.Engine
	Images    *image.Service
	Builder   *build.Builder
	Network   *network.Network
	Discovery *discovery.Server
	Volumes   *volume.Store
}

// Options says which node this is and where it keeps its records.
type Options struct {
	Node string // ID
	Name string
	Root string // the agent's own directory
	Info *gantryv1.InfoResponse
	// Guarded are directories of the daemon, which no container is given unless its environment permits all.
	Guarded []string
	Server  gantryv1connect.NodeSessionServiceClient
	// CertificateEnd says until when this machine's certificate is good. May be nil.
	CertificateEnd func() time.Time
	// CertificateLife says for how long that certificate was made. May be nil.
	CertificateLife func() time.Duration
	// SlowDisk says how slow the disk under the cluster's state is here; 0 if it is not. May be nil.
	SlowDisk func() time.Duration
	// FullDisk reports whether too little is free for the cluster's state here, and how many bytes are. May be nil.
	FullDisk func() (free int64, full bool)
	// NoServer is why this machine, which is to be a server, is none now; nil if it is. May be nil.
	NoServer func() error
	// Heard is called with every update of a server, before it is acted on. May be nil.
	Heard func(*gantryv1.NodeUpdate)
	// Lost is called when a session that a server had taken has ended. May be nil.
	Lost   func()
	Logger *slog.Logger
}

// Agent runs a node. Use New.
type Agent struct {
	Parts
	o       Options
	log     *slog.Logger
	records *records
	state   *endpointState
	reports *nodelink.Outbox

	// told is closed when the first server's update has arrived. Before it the agent knows nothing of names and networks, so
	// that a container started now could reach what it must not.
	told    chan struct{}
	ready   chan struct{} // closed when recorded instances may go on: a server was heard, or none has answered in time
	started chan struct{} // closed when Run has taken over; the handlers wait for it

	figures Figures

	out bool // the cluster has removed this node; used by the session's goroutine only

	mu      sync.Mutex
	workers map[string]*worker
	group   *errgroup.Group // of the running agent's workers
	ctx     context.Context // of the running agent, for workers that start later
	work    context.Context // of the workers; endWork ends it
	endWork context.CancelFunc
}

// New opens the records of an agent. Nothing runs before Run.
func New(o Options, p Parts) (*Agent, error) {
	r, err := openRecords(o.Root)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Parts: p, o: o, log: o.Logger, records: r, reports: nodelink.NewOutbox(), workers: map[string]*worker{},
		told: make(chan struct{}), ready: make(chan struct{}), started: make(chan struct{}),
	}
	a.state = newEndpointState(p.Network, p.Discovery, o.Node)
	a.state.load(o.Root, o.Logger)
	return a, nil
}

// Run brings every recorded instance on, then follows the server, until ctx ends. Containers are left running.
func (a *Agent) Run(ctx context.Context) error {
	recs, err := a.records.load()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	a.group, a.ctx = group, ctx
	a.work, a.endWork = context.WithCancel(ctx)
	defer a.endWork()
	if err := a.adopt(ctx, recs); err != nil {
		return err
	}
	events := a.Engine.Events(ctx)
	group.Go(func() error { return a.dispatch(ctx, events) })
	group.Go(func() error { return a.state.run(ctx, a.log) })
	group.Go(func() error { a.awaitServer(ctx); return nil })
	// Known to the agent before a server is told what there is.
	for _, rec := range recs {
		a.start(rec, false)
	}
	close(a.started)
	group.Go(func() error { return a.follow(ctx) })
	return group.Wait()
}

// adopt frees what no recorded instance uses: containers and network attachments that a crash left half made.
func (a *Agent) adopt(ctx context.Context, recs []*gantryv1.InstanceRecord) error {
	states, err := a.Engine.List(ctx)
	if err != nil {
		return err
	}
	alive := map[string]bool{}
	for _, s := range states {
		alive[s.ID] = s.Status == engine.StatusRunning || s.Status == engine.StatusPaused
	}
	known := map[string]bool{}
	ids := make([]string, 0, len(recs))
	for _, r := range recs {
		id := r.Assignment.Instance.Meta.Key
		known[id] = true
		ids = append(ids, id)
		if !alive[id] {
			bury(r.Status)
		}
		a.state.setNameServers(id, r.Assignment.Spec)
		a.state.setLocal(r.Assignment.Instance, r.Status)
	}
	for _, s := range states {
		if known[s.ID] {
			continue
		}
		a.log.Warn("removing a container that nothing is recorded of", "id", s.ID)
		if err := a.Engine.Remove(ctx, s.ID); err != nil {
			a.log.Warn("cannot remove it", "id", s.ID, "err", err)
		}
	}
	return a.Network.Retain(ctx, ids)
}

// bury corrects the last status of an instance whose process ended while no daemon ran, so that nobody is told it lives.
func bury(st *gantryv1.InstanceStatus) {
	switch st.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_RUNNING, gantryv1.InstanceStatus_PHASE_PAUSED, gantryv1.InstanceStatus_PHASE_STOPPING:
		st.Phase, st.Pid = gantryv1.InstanceStatus_PHASE_PENDING, 0
		st.Health, st.HealthOutput = gantryv1.InstanceStatus_HEALTH_UNSPECIFIED, ""
	}
}

// start runs a worker for a record unless one is there already; told says that a server has sent it.
func (a *Agent) start(rec *gantryv1.InstanceRecord, told bool) *worker {
	id := rec.Assignment.Instance.Meta.Key
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[id]; w != nil {
		return w
	}
	w := newWorker(a, rec)
	w.told = told
	a.workers[id] = w
	a.group.Go(func() error {
		defer close(w.idle)
		select {
		case <-a.ready:
		case <-a.work.Done():
		}
		w.run(a.work)
		a.mu.Lock()
		defer a.mu.Unlock()
		if w.gone {
			delete(a.workers, id)
		}
		return nil
	})
	return w
}

// awaitServer holds recorded instances back until a server has been heard, for as long as one may take to answer. Without one
// the machine goes on with what it knew.
func (a *Agent) awaitServer(ctx context.Context) {
	select {
	case <-a.told:
	case <-time.After(serverPatience):
		a.state.goOn()
		a.state.apply(ctx, a.log)
	case <-ctx.Done():
	}
	close(a.ready)
}

func (a *Agent) worker(id string) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[id]
}

func (a *Agent) all() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w)
	}
	return out
}

// dispatch wakes workers whose container did something.
func (a *Agent) dispatch(ctx context.Context, events <-chan engine.Event) error {
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return nil
			}
			if w := a.worker(ev.ID); w != nil {
				w.poke()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// assign takes one assignment from the server.
func (a *Agent) assign(as *gantryv1.Assignment) {
	if w := a.worker(as.Instance.Meta.Key); w != nil {
		w.update(as)
		return
	}
	st := &gantryv1.InstanceStatus{
		Meta: &gantryv1.Meta{Key: as.Instance.Meta.Key}, Node: a.o.Node, Phase: gantryv1.InstanceStatus_PHASE_PENDING,
	}
	a.start(&gantryv1.InstanceRecord{Assignment: as, Status: st}, true)
}

// unassign retires an instance that the server no longer knows.
func (a *Agent) unassign(id string) {
	if w := a.worker(id); w != nil {
		w.retire()
	}
}

// report puts a status on its way to the server and to this machine's own network.
func (a *Agent) report(i *gantryv1.Instance, st *gantryv1.InstanceStatus) {
	if a.state.setLocal(i, st) {
		a.state.apply(a.ctx, a.log)
	}
	a.reports.Status(st)
}

const (
	applyTimeout   = 10 * time.Second
	serverPatience = 10 * time.Second
)
