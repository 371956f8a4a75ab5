package daemon

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/server/machines"
)

// gate lets through what anybody may send, the requests to join, but no address at will: some at once, then one in a while.
// A machine that waits to be admitted asks less often.
type gate struct {
	now func() time.Time

	mu   sync.Mutex
	seen map[netip.Addr]time.Time // until when an address has used up what it may ask
}

const (
	gateBurst = 30
	gatePause = time.Second
	gateSize  = 10_000           // addresses that are remembered
	gateTime  = 30 * time.Second // for the whole of a request
)

func newGate() *gate { return &gate{now: time.Now, seen: map[netip.Addr]time.Time{}} }

// admits reports whether an address may ask now, and counts it.
func (g *gate) admits(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	until, known := g.seen[from]
	if !known && len(g.seen) >= gateSize && !g.tidy(now) {
		return false
	}
	if until.Before(now) {
		until = now
	}
	if until.Sub(now) > (gateBurst-1)*gatePause {
		return false
	}
	g.seen[from] = until.Add(gatePause)
	return true
}

// tidy forgets the addresses that may ask as if they never had, and reports whether there is room again.
func (g *gate) tidy(now time.Time) bool {
	for a, until := range g.seen {
		if until.Before(now) {
			delete(g.seen, a)
		}
	}
	return len(g.seen) < gateSize
}

// sourceOf is the address that counts for a caller: of IPv6 the part that one network has.
func sourceOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{} // all of these are one
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// guard puts the gate before a handler, and bounds what is read and for how long.
func (f *front) guard(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !f.passedOn(r) && !f.gate.admits(sourceOf(r.RemoteAddr)) {
			f.fail(w, r, fault.New(fault.Exhausted, "too many requests to join from this address").WithHint("try again in a minute"))
			return
		}
		// A listener that cannot do this bounds nothing, and is none that other machines reach.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(gateTime))
		r.Body = http.MaxBytesReader(w, r.Body, machines.MaxJoin+1<<10)
		h(w, r)
	}
}

// passedOn reports that another server has let a request through its own gate.
func (f *front) passedOn(r *http.Request) bool {
	c, ok := identity.CallerOf(r)
	if !ok {
		return false
	}
	role, ok := f.known(c)
	return ok && role == identity.Server
}
