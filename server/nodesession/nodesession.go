// Package nodesession holds the sessions of nodes on the server that leads: it tells each node what is assigned to it and
// what it has to know of the others, and takes what it reports.
//
// New, then Run while this server leads, and Hub as the handler of NodeSessionService. One index, kept up to date from the
// store's events, serves all sessions: a session hears only of its own instances and of services that its instances may see.
// What many nodes are told alike is encoded once. A session holds no queue: it remembers what has changed since it last sent,
// so that a slow node costs no memory and gets the newest state. Everything is safe in parallel. The package decides nothing
// but whether a node is heard of: ready, suspect or down.
package nodesession

import (
	"context"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// Opener opens sealed secrets.
type Opener interface {
	Open(name string, sealed []byte) ([]byte, error)
}

// Options says what sessions need beside the store.
type Options struct {
	Secrets Opener
	// Admit refuses a caller that may not speak for the node; nil admits whoever reaches the handler.
	Admit func(ctx context.Context, node string) error
	// Leader is the address of the server that leads, for nodes that ask one that does not; nil if there is no other.
	Leader func() string
	Logger *slog.Logger
}

// Hub serves NodeSessionService. Use New.
type Hub struct {
	store *store.Store
	o     Options
	log   *slog.Logger
	term  atomic.Pointer[term] // nil while this server does not lead

	figures Figures
}

// New makes a hub over the store. It refuses sessions until Run.
func New(s *store.Store, o Options) *Hub { return &Hub{store: s, o: o, log: o.Logger} }

// Run serves sessions until ctx ends: call it when this server begins to lead. Nodes that have not been heard of count as
// silent from then on, not from before.
func (h *Hub) Run(ctx context.Context) error {
	t := newTerm(h)
	sub, err := h.store.ViewAndWatch(func(r *store.ReadTx) error { t.load(r); return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	h.term.Store(t)
	defer h.end(t)
	return t.run(ctx, sub)
}

func (h *Hub) end(t *term) {
	h.term.Store(nil)
	t.end(h.errNotLeading())
}

func (h *Hub) errNotLeading() error {
	at := ""
	if h.o.Leader != nil {
		at = h.o.Leader()
	}
	err := fault.New(fault.Unavailable, "this server does not lead")
	if at == "" {
		return err.WithHint("no server leads at the moment; try again")
	}
	return err.WithHint("%s", at)
}

// Sessions is the number of nodes that have a session.
func (h *Hub) Sessions() int {
	t := h.term.Load()
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sessions
}

type stream = connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]

// Session implements the API: it takes what the node reports and sends what is assigned to it.
func (h *Hub) Session(ctx context.Context, stream *stream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	name := first.GetHello().GetNode()
	t, err := h.admit(ctx, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := t.attach(name, cancel)
	defer t.detach(s)
	// An update of everything takes its time: the node is to know before it that this server has taken the session.
	if err := stream.Send(&gantryv1.NodeUpdate{}); err != nil {
		return err
	}
	go func() { cancel(s.forget(ctx)) }()
	if err := s.greet(first); err != nil {
		return err
	}
	go func() { cancel(s.receive(stream)) }()
	err = s.send(ctx, stream)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// HandlerOption is for the handler of the sessions: what many nodes are sent alike would be compressed again for each.
func HandlerOption() connect.HandlerOption { return connect.WithCompressMinBytes(math.MaxInt) }

func (h *Hub) admit(ctx context.Context, node string) (*term, error) {
	if h.o.Admit != nil {
		if err := h.o.Admit(ctx, node); err != nil {
			return nil, err
		}
	}
	t := h.term.Load()
	if t == nil {
		return nil, h.errNotLeading()
	}
	if _, ok := store.Get[*gantryv1.Node](h.store.Live(), node); !ok {
		return nil, errStranger(node)
	}
	return t, nil
}

func errStranger(node string) error {
	return fault.New(fault.Denied, "node %q is not part of this cluster", node).
		WithHint("gantry node ls lists its machines; a machine joins with gantryd --join")
}

// Times of a session; others are the cluster's.
const (
	tick        = 100 * time.Millisecond // between two looks for silent nodes
	paceShare   = 50 * time.Microsecond  // per session: how long news that are not urgent wait for more of their kind
	longestPace = 200 * time.Millisecond
	longestHold = 250 * time.Millisecond // of changes of one service under load
	maxMessage  = 64 << 10               // bytes after which an update goes on in the next message
)
