// Package discovery is the name server of one node: it answers containers by who asks.
//
// New binds the addresses, Run serves until its context ends, Apply replaces what is known; all are safe in parallel. An
// asker is known by its address: it sees the services of its own environment with which it shares a network, and nothing of
// another environment. Names it does not know go to the host's name servers, unless the asker belongs to internal networks
// only: for those there is no way out, not even inside of names.
//
// The package does not cache, does not validate signatures and serves no zone transfers. DESIGN.md has the list of names.
package discovery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/fault"
)

// Options of a Server. Listen is required.
type Options struct {
	// Listen has the addresses to answer on, normally the gateway of the node's network.
	Listen []netip.Addr
	// Port is 53 unless set.
	Port uint16
	// Upstreams answer what is not ours, "192.0.2.1" or "192.0.2.1:53". Nil takes those of ResolvConf, as they are at the time.
	Upstreams []string
	// ResolvConf is /etc/resolv.conf unless set.
	ResolvConf string
	// Clients are the ranges that may ask; the host itself always may. Empty means everybody.
	Clients []netip.Prefix
	Logger  *slog.Logger
}

// Server is a name server. Make it with New.
type Server struct {
	o       Options
	log     *slog.Logger
	udp     []*net.UDPConn
	tcp     []*net.TCPListener
	up      *forwarder
	applyMu sync.Mutex
	known   atomic.Pointer[snapshot]
	turn    atomic.Uint32
	figures Figures
}

// New binds the sockets of a server. Questions wait in them until Run.
func New(o Options) (*Server, error) {
	if o.Port == 0 {
		o.Port = 53
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, log: o.Logger, up: newForwarder(o)}
	s.known.Store(newSnapshot())
	for _, a := range o.Listen {
		if err := s.bind(netip.AddrPortFrom(a, o.Port)); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) bind(a netip.AddrPort) error {
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	if err != nil {
		return bindError(a, err)
	}
	s.udp = append(s.udp, u)
	_ = u.SetReadBuffer(1 << 20) // a burst of starting containers must not lose questions; the kernel may give less
	t, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
	if err != nil {
		return bindError(a, err)
	}
	s.tcp = append(s.tcp, t)
	return nil
}

func bindError(a netip.AddrPort, err error) error {
	kind := fault.Unavailable
	if errors.Is(err, syscall.EADDRINUSE) {
		kind = fault.Conflict
	}
	return fault.Wrap(kind, err, "answer names on %s", a).
		WithHint("ss -lnp | grep :%d shows who listens; a name server on the wildcard address must be bound to its own", a.Port())
}

// Close frees the sockets of a server that does not run.
func (s *Server) Close() error {
	for _, u := range s.udp {
		u.Close()
	}
	for _, t := range s.tcp {
		t.Close()
	}
	return nil
}

// Run answers until ctx ends, and closes the sockets then.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
	for _, u := range s.udp {
		for range runtime.GOMAXPROCS(0) {
			g.Go(func() error { return s.serveUDP(ctx, u) })
		}
	}
	for _, t := range s.tcp {
		g.Go(func() error { return s.serveTCP(ctx, t) })
	}
	g.Go(func() error { return s.up.run(ctx) })
	return g.Wait()
}

// maxMessage is the largest question we read; answers over UDP are smaller.
const maxMessage = 4096

func (s *Server) serveUDP(ctx context.Context, u *net.UDPConn) error {
	in, out := make([]byte, maxMessage), make([]byte, 0, maxMessage)
	for {
		size, from, err := u.ReadFromUDPAddrPort(in)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		asker := from.Addr().Unmap()
		reply, forward := s.reply(in[:size], asker, true, out)
		if forward {
			s.forwardUDP(u, in[:size], from, s.upstreams(asker))
		} else if reply != nil {
			_, _ = u.WriteToUDPAddrPort(reply, from) // who does not get it asks again
		}
	}
}

// reply is answer, counted.
func (s *Server) reply(m []byte, asker netip.Addr, udp bool, out []byte) (response []byte, forward bool) {
	begun := time.Now()
	if response, forward = s.answer(m, asker, udp, out); !forward {
		s.figures.answer(begun, response)
	}
	return response, forward
}

// forwardUDP asks upstream without holding up other questions.
func (s *Server) forwardUDP(u *net.UDPConn, query []byte, to netip.AddrPort, servers []string) {
	q := append([]byte(nil), query...)
	ended := s.figures.forward()
	tell := func(reply []byte) {
		ended(reply)
		_, _ = u.WriteToUDPAddrPort(reply, to)
	}
	if !s.up.submit(func(ctx context.Context) { tell(s.up.exchange(ctx, "udp", q, servers)) }) {
		tell(failure(q, rcodeServFail))
	}
}

const (
	tcpIdle        = 10 * time.Second
	tcpConnections = 256
)

func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener) error {
	var g errgroup.Group
	g.SetLimit(tcpConnections)
	for {
		c, err := l.AcceptTCP()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return g.Wait()
		}
		if err != nil { // out of descriptors: wait for one to come back rather than spin
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if !g.TryGo(func() error { s.converse(ctx, c); return nil }) {
			c.Close()
		}
	}
}

// converse answers the questions of one connection, one after the other.
func (s *Server) converse(ctx context.Context, c *net.TCPConn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	for {
		_ = c.SetDeadline(time.Now().Add(tcpIdle))
		query, err := readMessage(c)
		if err != nil {
			return
		}
		reply, forward := s.reply(query, from.Addr().Unmap(), false, nil)
		if forward {
			ended := s.figures.forward()
			reply = s.up.exchange(ctx, "tcp", query, s.upstreams(from.Addr().Unmap()))
			ended(reply)
		}
		if reply == nil || writeMessage(c, reply) != nil {
			return
		}
	}
}

// upstreams are the name servers for what is not ours: the asker's own, or the host's. Among its own, none may be a container
// that it could not ask itself.
func (s *Server) upstreams(asker netip.Addr) []string {
	k := s.known.Load()
	from := k.members[asker]
	if from == nil || len(k.upstreams[from.instance]) == 0 {
		return s.up.upstreams()
	}
	return slices.DeleteFunc(s.up.addresses(k.upstreams[from.instance]), func(server string) bool {
		to, err := netip.ParseAddrPort(server)
		other := k.members[to.Addr().Unmap()]
		return err != nil || other != nil && !from.service.sees(candidate{service: other.service})
	})
}

// readMessage reads one message of a TCP connection, which has its length before it.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	m := make([]byte, int(size[0])<<8|int(size[1]))
	_, err := io.ReadFull(r, m)
	return m, err
}

func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append([]byte{byte(len(m) >> 8), byte(len(m))}, m...))
	return err
}

func (s *Server) mayAsk(a netip.Addr) bool {
	if len(s.o.Clients) == 0 || a.IsLoopback() {
		return true
	}
	for _, p := range s.o.Clients {
		if p.Contains(a) {
			return true
		}
	}
	for _, l := range s.o.Listen {
		if l == a {
			return true
		}
	}
	return false
}

func slotText(slot int32) string { return strconv.Itoa(int(slot)) }
