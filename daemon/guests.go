package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gantryd/gantry/cluster/identity"
)

// guests is the calls of other machines that are being answered. Whether a machine belongs to the cluster is asked when a call
// begins, and streams last: those of a machine that was removed are ended here.
type guests struct {
	mu    sync.Mutex
	calls map[*guest]struct{}
}

// guest is one such call.
type guest struct {
	nodes  [2]string // who calls, and for whom
	cancel context.CancelFunc

	mu sync.Mutex
	w  http.ResponseWriter // nil when the call has been answered
}

// guestLook is the time between two looks at who has been removed. A machine is shown out at the second one that misses it, so
// that the answer to a call that removes its own machine gets there.
const guestLook = 500 * time.Millisecond

// enter notes a call; leave must be called when it has been answered.
func (g *guests) enter(w http.ResponseWriter, r *http.Request, caller, on string) (in *http.Request, leave func()) {
	ctx, cancel := context.WithCancel(r.Context())
	c := &guest{nodes: [2]string{caller, on}, cancel: cancel, w: w}
	g.mu.Lock()
	if g.calls == nil {
		g.calls = map[*guest]struct{}{}
	}
	g.calls[c] = struct{}{}
	g.mu.Unlock()
	return r.WithContext(ctx), func() {
		g.mu.Lock()
		delete(g.calls, c)
		g.mu.Unlock()
		c.mu.Lock()
		c.w = nil
		c.mu.Unlock()
		cancel()
	}
}

// by lists the calls by the machines that make them, or have them made.
func (g *guests) by() map[string][]*guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[string][]*guest{}
	for c := range g.calls {
		out[c.nodes[0]] = append(out[c.nodes[0]], c)
		if c.nodes[1] != c.nodes[0] {
			out[c.nodes[1]] = append(out[c.nodes[1]], c)
		}
	}
	return out
}

// end ends a call, also one that waits for the other side and does not look at its context.
func (c *guest) end() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.w == nil {
		return
	}
	stream, past := http.NewResponseController(c.w), time.Unix(1, 0)
	_ = stream.SetReadDeadline(past)
	_ = stream.SetWriteDeadline(past)
}

// watch ends the calls of machines that are removed, for as long as ctx lives.
func (g *guests) watch(ctx context.Context, removed func(node string) bool, log *slog.Logger) error {
	look := time.NewTicker(guestLook)
	defer look.Stop()
	missed := map[string]bool{} // at the last look
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
		before := missed
		missed = map[string]bool{}
		for node, calls := range g.by() {
			if !removed(node) {
				continue
			}
			missed[node] = true
			if !before[node] {
				continue
			}
			log.Info("a machine was removed: what it still had open here ends", "node", node, "calls", len(calls))
			for _, c := range calls {
				c.end()
			}
		}
	}
}

// watchCallers ends what machines have open here that are removed.
func (f *front) watchCallers(ctx context.Context) error {
	return f.guests.watch(ctx, f.removed, f.role.d.Logger)
}

// removed reports whether a machine that called does not belong to the cluster any more.
func (f *front) removed(node string) bool {
	s, _ := f.role.current()
	_, ok := f.known(identity.Caller{Node: node})
	return !ok && (s != nil || f.machine.informed())
}

// informed reports whether this machine has heard who belongs to its cluster.
func (m *machine) informed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.known) > 0
}
