package network

import (
	"context"
	"maps"
	"net"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/network/proxy"
)

// route gives proxies the targets of the latest state.
func (t *portTable) route(ports map[portKey]target) {
	ports = maps.Clone(ports)
	t.routes.Store(&ports)
}

// backend is where the next connection of a reserved port goes, invalid when nothing is ready.
func (t *portTable) backend(r *reservation) netip.AddrPort {
	ports := t.routes.Load()
	if ports == nil {
		return netip.AddrPort{}
	}
	target, ok := (*ports)[newPortKey(r.Host, r.Proto, r.Port)]
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(target.backends[int(r.next.Add(1)-1)%len(target.backends)], target.port)
}

// serveSoon hands new sockets to serve.
func (t *portTable) serveSoon(rs []*reservation) {
	t.fresh = append(t.fresh, rs...)
	select {
	case t.wake <- struct{}{}:
	default: // it has not seen the last one yet
	}
}

// serve runs a proxy behind each reserved port until ctx ends.
func (t *portTable) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-t.wake:
		}
		t.mu.Lock()
		fresh := t.fresh
		t.fresh = nil
		t.mu.Unlock()
		for _, r := range fresh {
			p := &proxy.Port{Name: r.String(), Backend: func() netip.AddrPort { return t.backend(r) }, Logger: t.log}
			switch s := r.socket.(type) {
			case *net.TCPListener:
				g.Go(func() error { p.ServeTCP(ctx, s); return nil })
			case *net.UDPConn:
				g.Go(func() error { p.ServeUDP(ctx, s); return nil })
			}
		}
	}
}
