// Package proxy carries the connections and datagrams of published ports that the kernel's rules do not, those over IPv6 above
// all, to a backend.
//
// Make a Port, then run ServeTCP or ServeUDP with its socket, in a goroutine each. A client without a backend gets a reset.
package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
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

// Port is a published port.
type Port struct {
	Name    string                // for the log
	Backend func() netip.AddrPort // where the next connection goes, invalid if nothing is ready; safe in parallel
	Logger  *slog.Logger
}

// ServeTCP carries the connections of a listener until it is closed or ctx ends, and then until they have ended.
func (p *Port) ServeTCP(ctx context.Context, l *net.TCPListener) {
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
		g.Go(func() error { p.carry(ctx, c); return nil })
	}
}

// carry joins a client to a backend until both have finished. Without a backend the client gets a reset.
func (p *Port) carry(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	to := p.Backend()
	if !to.IsValid() {
		_ = client.SetLinger(0)
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp4", to.String())
	if err != nil {
		_ = client.SetLinger(0)
		p.Logger.Debug("a published port's backend does not answer", "port", p.Name, "backend", to, "err", err)
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
	port   *Port
	socket *net.UDPConn
	mu     sync.Mutex
	peers  map[netip.AddrPort]*net.UDPConn
	group  errgroup.Group
}

// ServeUDP carries the datagrams of a socket until it is closed or ctx ends.
func (p *Port) ServeUDP(ctx context.Context, s *net.UDPConn) {
	d := &datagrams{port: p, socket: s, peers: map[netip.AddrPort]*net.UDPConn{}}
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
		if peer := d.peer(client); peer != nil {
			_ = peer.SetReadDeadline(time.Now().Add(udpIdle))
			_, _ = peer.Write(buf[:size]) // datagrams may be lost
		}
	}
}

// peer is the backend socket of a client.
func (d *datagrams) peer(client netip.AddrPort) *net.UDPConn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[client]; p != nil {
		return p
	}
	to := d.port.Backend()
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
