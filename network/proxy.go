package network

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	dialTimeout = 3 * time.Second
	// udpIdle is how long a proxied datagram conversation is remembered, as long as the kernel does it for a new one.
	udpIdle = 60 * time.Second
	// udpConversations bounds what one port's datagrams may cost.
	udpConversations = 4096
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
			switch s := r.socket.(type) {
			case *net.TCPListener:
				g.Go(func() error { t.serveTCP(ctx, r, s); return nil })
			case *net.UDPConn:
				g.Go(func() error { t.serveUDP(ctx, r, s); return nil })
			}
		}
	}
}

func (t *portTable) serveTCP(ctx context.Context, r *reservation, l *net.TCPListener) {
	var g errgroup.Group
	defer func() { _ = g.Wait() }()
	defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })()
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil { // out of descriptors: wait for one to come back rather than spin
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		g.Go(func() error { t.carryTCP(ctx, r, c); return nil })
	}
}

// carryTCP joins a client to a backend until both have finished. Without a backend the client gets a reset.
func (t *portTable) carryTCP(ctx context.Context, r *reservation, client *net.TCPConn) {
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	to := t.backend(r)
	if !to.IsValid() {
		_ = client.SetLinger(0)
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp4", to.String())
	if err != nil {
		_ = client.SetLinger(0)
		t.log.Debug("a published port's backend does not answer", "port", r.String(), "backend", to, "err", err)
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	var g errgroup.Group
	g.Go(func() error { return pass(server, client) })
	_ = pass(client, server)
	_ = g.Wait()
}

// pass copies one direction and then says that no more comes.
func pass(to, from *net.TCPConn) error {
	_, err := io.Copy(to, from)
	if err != nil {
		_ = to.SetLinger(0) // an error of one side is a reset for the other, not an end of data
		to.Close()
		return err
	}
	return to.CloseWrite()
}

// datagrams is the proxy of one UDP port: a socket to a backend for each client.
type datagrams struct {
	socket *net.UDPConn
	mu     sync.Mutex
	peers  map[netip.AddrPort]*net.UDPConn
	group  errgroup.Group
}

func (t *portTable) serveUDP(ctx context.Context, r *reservation, s *net.UDPConn) {
	d := &datagrams{socket: s, peers: map[netip.AddrPort]*net.UDPConn{}}
	defer func() { _ = d.group.Wait() }()
	defer d.close()
	defer context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 64<<10)
	for {
		size, client, err := s.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		if client.Addr().Unmap().Is4() {
			continue // sent before there was a rule; an answer from here would keep the rule from its next datagram
		}
		if peer := d.peer(client, t, r); peer != nil {
			_ = peer.SetReadDeadline(time.Now().Add(udpIdle))
			_, _ = peer.Write(buf[:size]) // datagrams may be lost
		}
	}
}

// peer is the backend socket of a client.
func (d *datagrams) peer(client netip.AddrPort, t *portTable, r *reservation) *net.UDPConn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[client]; p != nil {
		return p
	}
	to := t.backend(r)
	if !to.IsValid() || len(d.peers) >= udpConversations {
		return nil
	}
	p, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil
	}
	d.peers[client] = p
	d.group.Go(func() error { d.answer(client, p); return nil })
	return p
}

// answer carries what a backend says to its client until the conversation has been idle.
func (d *datagrams) answer(client netip.AddrPort, p *net.UDPConn) {
	defer func() {
		p.Close()
		d.mu.Lock()
		delete(d.peers, client)
		d.mu.Unlock()
	}()
	_ = p.SetReadDeadline(time.Now().Add(udpIdle))
	buf := make([]byte, 64<<10)
	for {
		size, err := p.Read(buf)
		if err != nil {
			return
		}
		_ = p.SetReadDeadline(time.Now().Add(udpIdle))
		if _, err := d.socket.WriteToUDPAddrPort(buf[:size], client); err != nil {
			return
		}
	}
}

func (d *datagrams) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		p.Close()
	}
}
