package agent

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const (
	heartbeat     = time.Second
	reconnectWait = 200 * time.Millisecond
)

// outbox collects observations until the stream takes them; a newer one of the same instance replaces an older.
type outbox struct {
	mu       sync.Mutex
	statuses map[string]*gantryv1.InstanceStatus
	removed  map[string]bool
	wake     chan struct{}
	changed  chan struct{} // closed and replaced with every observation
}

func newOutbox() *outbox {
	return &outbox{
		statuses: map[string]*gantryv1.InstanceStatus{}, removed: map[string]bool{},
		wake: make(chan struct{}, 1), changed: make(chan struct{}),
	}
}

// next is closed at the next observation.
func (o *outbox) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

func (o *outbox) status(st *gantryv1.InstanceStatus) {
	o.mu.Lock()
	o.statuses[st.Meta.Key] = st
	o.mu.Unlock()
	o.signal()
}

func (o *outbox) gone(id string) {
	o.mu.Lock()
	delete(o.statuses, id)
	o.removed[id] = true
	o.mu.Unlock()
	o.signal()
}

func (o *outbox) signal() {
	o.mu.Lock()
	close(o.changed)
	o.changed = make(chan struct{})
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take empties the box into a report.
func (o *outbox) take() *gantryv1.NodeReport {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &gantryv1.NodeReport{}
	for _, st := range o.statuses {
		r.Statuses = append(r.Statuses, st)
	}
	for id := range o.removed {
		r.Removed = append(r.Removed, id)
	}
	clear(o.statuses)
	clear(o.removed)
	return r
}

// follow keeps a session with a server, for as long as ctx lives. Without one the node goes on with what it knows.
func (a *Agent) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		err := a.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.log.Warn("no session with a server, trying again", "err", err)
		select {
		case <-time.After(reconnectWait):
		case <-ctx.Done():
		}
	}
	return nil
}

func (a *Agent) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := a.o.Server.Session(ctx)
	if err := stream.Send(a.hello()); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		failed <- a.sendReports(ctx, stream.Send)
		cancel()
	}()
	for {
		u, err := stream.Receive()
		if err != nil {
			cancel()
			if sendErr := <-failed; sendErr != nil {
				return sendErr
			}
			return err
		}
		a.take(ctx, u)
	}
}

// hello tells a server everything: which node this is and how each of its instances is.
func (a *Agent) hello() *gantryv1.NodeReport {
	a.reports.take() // all of it is in what follows, but removals: the server sees those by what is missing
	r := &gantryv1.NodeReport{
		Hello: &gantryv1.NodeHello{Node: a.o.Node, Name: a.o.Name}, Status: a.nodeStatus(),
	}
	for _, w := range a.all() {
		r.Statuses = append(r.Statuses, w.status())
	}
	return r
}

func (a *Agent) nodeStatus() *gantryv1.NodeStatus {
	info := a.o.Info
	return &gantryv1.NodeStatus{
		Meta: &gantryv1.Meta{Key: a.o.Node}, State: "ready", LastSeen: timestamppb.Now(),
		NanoCpus: int64(info.GetCpus()) * 1e9, Memory: info.GetMemory(), Architecture: info.GetArch(),
		Kernel: info.GetKernel(), Version: info.GetVersion(),
	}
}

func (a *Agent) sendReports(ctx context.Context, send func(*gantryv1.NodeReport) error) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-a.reports.wake:
			r := a.reports.take()
			if err := send(r); err != nil {
				a.reports.putBack(r)
				return err
			}
		case <-beat.C:
			if err := send(&gantryv1.NodeReport{Status: a.nodeStatus()}); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// putBack returns what could not be sent, unless something newer is there.
func (o *outbox) putBack(r *gantryv1.NodeReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, st := range r.Statuses {
		if _, newer := o.statuses[st.Meta.Key]; !newer {
			o.statuses[st.Meta.Key] = st
		}
	}
	for _, id := range r.Removed {
		o.removed[id] = true
	}
}

// take acts on one update: names and addresses first, so that an instance finds its services when it starts.
func (a *Agent) take(ctx context.Context, u *gantryv1.NodeUpdate) {
	a.state.update(u)
	a.state.apply(ctx, a.log)
	defer a.hear() // recorded instances go on with what is wanted of them today
	named := map[string]bool{}
	for _, as := range u.Assignments {
		named[as.Instance.Meta.Key] = true
		a.assign(as)
	}
	for _, id := range u.Unassigned {
		a.unassign(id)
	}
	if !u.Full {
		return
	}
	for _, w := range a.all() {
		if !named[w.id] {
			w.retire()
		}
	}
}

// hear notes that a server has said how things are.
func (a *Agent) hear() {
	select {
	case <-a.told:
	default:
		close(a.told)
	}
}
