package network

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/tracked"
)

func TestVirtualAddressReachesReadyInstancesInTurn(t *testing.T) {
	l := newLab(t)
	a, b, c, client := l.container("a"), l.container("b"), l.container("c"), l.container("client")
	for _, s := range []*container{a, b, c} {
		s.serve(80)
	}
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b, c)
	web.Endpoints[2].Ready = false
	front := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	l.apply(front, web, service("prod", "client", "", []string{"front"}, client))

	hits := map[string]int{}
	for range 10 {
		who, from, err := client.ask("10.96.0.1:80")
		must(t, err)
		if from != client.IPv4.String() {
			t.Fatalf("the server sees %s, not the client %s", from, client.IPv4)
		}
		hits[who]++
	}
	if hits["a"] != 5 || hits["b"] != 5 {
		t.Fatalf("10 connections went to %v, want 5 each to a and b", hits)
	}
	for range 2 {
		if _, _, err := askHost("10.96.0.1:80"); err != nil {
			t.Fatalf("from the host: %v", err)
		}
	}
	if _, _, err := client.ask(c.IPv4.String() + ":80"); err != nil {
		t.Fatalf("directly to an instance that is not ready: %v", err)
	}
}

func TestVirtualAddressWithoutReadyInstanceFailsAtOnce(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a)
	web.Endpoints[0].Ready = false
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, web, service("prod", "client", "", []string{"front"}, client))
	start := time.Now()
	if _, _, err := client.ask("10.96.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from a container: %v", err)
	}
	if _, _, err := askHost("10.96.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from the host: %v", err)
	}
	if _, _, err := askUDP(client.dialUDP("10.96.0.1:53")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("by UDP: %v", err)
	}
	if _, _, err := client.ask("10.64.3.200:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an address without a container: %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("the refusals took %v", d)
	}
}

func TestContainerReachesItselfThroughItsVirtualAddress(t *testing.T) {
	l := newLab(t)
	a := l.container("a")
	a.serve(80)
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, service("prod", "web", "10.96.0.1", []string{"front"}, a))
	who, _, err := a.ask("10.96.0.1:80")
	must(t, err)
	if who != "a" {
		t.Fatalf("answered by %s", who)
	}
}

func TestConnectionsDrainAndAreCutWhenTheInstanceIsGone(t *testing.T) {
	l := newLab(t)
	a, b, client := l.container("a"), l.container("b"), l.container("client")
	a.serve(80)
	b.serve(80)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a)
	l.apply(nets, web, caller)
	conn, err := client.dial("10.96.0.1:80")
	must(t, err)
	defer conn.Close()
	if who, _ := banner(t, conn); who != "a" {
		t.Fatalf("answered by %s", who)
	}

	web = service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[0].Ready = false
	l.apply(nets, web, caller)
	echo(t, conn)
	for range 3 {
		if who, _, err := client.ask("10.96.0.1:80"); who != "b" {
			t.Fatalf("a new connection went to %q, %v", who, err)
		}
	}

	l.apply(nets, service("prod", "web", "10.96.0.1", []string{"front"}, b), caller)
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	_, err = conn.Write([]byte("x")) // the first packet after the cut finds out; that may have been a late acknowledgement
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the old connection ended with %v, want a reset", err)
	}
}

func TestDatagramsMoveToAnotherInstanceAtOnce(t *testing.T) {
	l := newLab(t)
	a, b, client := l.container("a"), l.container("b"), l.container("client")
	a.serveUDP(53)
	b.serveUDP(53)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[1].Ready = false
	l.apply(nets, web, caller)
	conn := client.dialUDP("10.96.0.1:53")
	if who, _, err := askUDP(conn); who != "a" {
		t.Fatalf("answered by %q, %v", who, err)
	}
	web = service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[0].Ready = false
	l.apply(nets, web, caller)
	if who, _, err := askUDP(conn); who != "b" {
		t.Fatalf("the same socket is answered by %q, %v", who, err)
	}
}

func TestConnectionsThatNobodyHasAnsweredMoveToAnotherInstance(t *testing.T) {
	l := newLab(t)
	a, b, client := l.container("a"), l.container("b"), l.container("client")
	a.serve(80)
	b.serve(80)
	must(t, do(t, a.ns, func() error { // as one whose machine is dead
		return netlink.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: netlink.NewIPNet(client.IPv4.AsSlice())})
	}))
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[1].Ready = false
	l.apply(nets, web, caller)
	var who string
	connected := make(chan error, 1)
	go func() {
		connected <- do(t, client.ns, func() (err error) {
			who, _, err = ask(net.DialTimeout("tcp", "10.96.0.1:80", 20*time.Second))
			return err
		})
	}()
	await(t, "the connection is on its way", func() bool {
		all, err := tracked.List()
		must(t, err)
		return slices.ContainsFunc(all, unanswered{a.IPv4: true}.Match)
	})
	web = service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[0].Ready = false
	l.apply(nets, web, caller)
	if err := <-connected; err != nil || who != "b" {
		t.Fatalf("answered by %q, %v", who, err)
	}
}

func TestAConnectionFromThePortOfABrokenOneGoesToAnInstanceThatIsThere(t *testing.T) {
	const port = 30001 // no other test's: the kernel remembers those too
	l := newLab(t)
	a, b, client := l.container("a"), l.container("b"), l.container("client")
	b.serve(80)
	listener := listenIn(t, a.ns, 80)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0) // it ends with a reset, as when a process is killed
			_ = conn.Close()
		}
	}()
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[1].Ready = false
	l.apply(nets, web, caller)
	if _, _, err := ask(client.dialFrom(port, "10.96.0.1:80")); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v, not a reset", err)
	}
	await(t, "it is broken", func() bool { return l.finds(client, port, tracked.Flow.Broken) })
	web = service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[0].Ready = false
	l.apply(nets, web, caller)
	await(t, "the kernel forgets it", func() bool { return !l.finds(client, port, anyhow) })
	if who, _, err := ask(client.dialFrom(port, "10.96.0.1:80")); err != nil || who != "b" {
		t.Fatalf("answered by %q, %v", who, err)
	}
}

// whileListed is only asked about flows from one port, and does something first: between the list and what becomes of the flow.
type whileListed struct {
	flows
	client *container
	port   int
	do     func()
}

func (w whileListed) Match(flow tracked.Flow) bool {
	if !w.client.began(flow, w.port) {
		return false
	}
	w.do()
	return w.flows.Match(flow)
}

func TestAConnectionThatBeginsWhileOthersAreCutStays(t *testing.T) {
	const first, ports = 20000, 20 // the kernel does not always put the new connection in the place of the old one
	l := newLab(t)
	a, b, client := l.container("a"), l.container("b"), l.container("client")
	a.serve(80)
	b.serve(80)
	must(t, do(t, client.ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1"), 0) }))
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	l.apply(nets, service("prod", "web", "10.96.0.1", []string{"front"}, a), caller)
	for i := range ports {
		if who, _, err := ask(client.dialFrom(first+i, "10.96.0.1:80")); err != nil || who != "a" {
			t.Fatalf("answered by %q, %v", who, err)
		}
	}
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[0].Ready = false
	l.apply(nets, web, caller)
	for i := range ports {
		f := newFlows(&l.applied.model)
		f.gone[a.IPv4] = true
		var again net.Conn
		must(t, tracked.Forget(whileListed{f, client, first + i, func() {
			await(t, "the port can be used again", func() (open bool) { // after a second
				var err error
				again, err = client.dialFrom(first+i, "10.96.0.1:80")
				return err == nil
			})
		}}))
		if who, _ := banner(t, again); who != "b" {
			t.Errorf("the new connection goes to %s", who)
		}
		if !l.finds(client, first+i, anyhow) {
			t.Errorf("the connection from port %d is forgotten", first+i)
		}
		_ = again.Close()
	}
}

func TestClosedConnectionsAreForgottenWhenSomebodyElseGetsTheAddress(t *testing.T) {
	const port = 30000 // no other test's: the kernel remembers those too
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a)
	l.apply(nets, web, caller)
	_, _, err := ask(client.dialFrom(port, "10.96.0.1:80"))
	must(t, err)
	await(t, "it is closed", func() bool { return l.finds(client, port, tracked.Flow.Closed) })
	l.apply(nets, caller)
	l.apply(nets, service("prod", "other", "", []string{"front"}, l.container("other")), caller)
	if !l.finds(client, port, anyhow) {
		t.Error("what ends by itself was forgotten with its container")
	}
	l.apply(nets, web, caller)
	if l.finds(client, port, anyhow) {
		t.Error("the address has been given again, and the kernel still knows a connection to it")
	}
	if l.closed[a.IPv4] {
		t.Error("that is done, and will be done again")
	}
}

func TestOpenConnectionsToANewOwnerOfAnAddressStay(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	front := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	l.apply(front, service("prod", "web", "10.96.0.1", []string{"front"}, a), caller)
	conn, err := client.dial("10.96.0.1:80")
	must(t, err)
	defer conn.Close()
	banner(t, conn)
	f := newFlows(&l.applied.model)
	f.again[a.IPv4] = true
	must(t, l.cut(f))
	if !l.finds(client, conn.LocalAddr().(*net.TCPAddr).Port, anyhow) {
		t.Error("it is cut")
	}
}

// TestWhatCouldNotBeCutIsCutWithTheNextChange takes the process its file descriptors, without which it cannot ask the kernel.
func TestWhatCouldNotBeCutIsCutWithTheNextChange(t *testing.T) {
	l := newLab(t, func(o *Options) { o.PoolSize = -1 })
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	front := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	l.apply(front, service("prod", "web", "10.96.0.1", []string{"front"}, a), caller)
	conn, err := client.dial("10.96.0.1:80")
	must(t, err)
	defer conn.Close()
	banner(t, conn)
	without := State{Networks: front, Endpoints: []*gantryv1.ServiceEndpoints{caller}}
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}))
	err = l.Apply(t.Context(), without)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	if !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("the kernel was asked nevertheless: %v", err)
	}
	must(t, l.Apply(t.Context(), without))
	port := conn.LocalAddr().(*net.TCPAddr).Port
	if l.finds(client, port, anyhow) {
		t.Error("the connection to what is gone goes on")
	}
}

// finds reports whether the kernel knows a connection of a client from a port, and it is so.
func (l *lab) finds(client *container, port int, so func(tracked.Flow) bool) bool {
	l.t.Helper()
	all, err := tracked.List()
	must(l.t, err)
	return slices.ContainsFunc(all, func(flow tracked.Flow) bool { return client.began(flow, port) && so(flow) })
}

func anyhow(tracked.Flow) bool { return true }

// began reports whether a flow is a connection that the container began from a port.
func (c *container) began(flow tracked.Flow, port int) bool {
	return int(flow.FromPort) == port && flow.From == c.IPv4
}

// dialFrom connects from a port that may have been used a moment before.
func (c *container) dialFrom(port int, addr string) (conn net.Conn, err error) {
	reuse := func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(err, failed)
	}
	d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{Port: port}, Control: reuse}
	err = do(c.t, c.ns, func() (err error) {
		conn, err = d.Dial("tcp", addr)
		return err
	})
	return conn, err
}

func banner(t *testing.T, conn net.Conn) (server, client string) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 0, 100)
	for one := make([]byte, 1); len(buf) == 0 || buf[len(buf)-1] != '\n'; {
		if _, err := conn.Read(one); err != nil {
			t.Fatal(err)
		}
		buf = append(buf, one[0])
	}
	server, client, _ = strings.Cut(string(buf[:len(buf)-1]), " ")
	return server, client
}

func echo(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatalf("the connection does not go on: %v", err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Fatalf("the connection does not go on: %v", err)
	}
}

func TestNetworksAreIsolated(t *testing.T) {
	l := newLab(t)
	web, db, other, stranger := l.container("web"), l.container("db"), l.container("other"), l.container("stranger")
	db.serve(5432)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false), network("prod/shop/back", 2, false), network("staging/shop/back", 3, false)}
	thief := service("staging", "thief", "", []string{"back"}, other)
	// A network of another environment counts for nothing.
	thief.Attachments = append(thief.Attachments, &gantryv1.NetworkAttachment{Network: "prod/shop/back"})
	database := service("prod", "db", "10.96.0.1", []string{"back"}, db)
	l.apply(nets, service("prod", "web", "", []string{"front", "back"}, web), database, thief, service("prod", "proxy", "", []string{"front"}, stranger))

	for _, to := range []string{"10.96.0.1:5432", db.IPv4.String() + ":5432"} {
		if who, _, err := web.ask(to); who != "db" {
			t.Errorf("web cannot reach db at %s: %v", to, err)
		}
		for _, c := range []*container{other, stranger} {
			c.cannotReach(to)
		}
	}
	hostHas := do(t, l.host, func() error {
		listener, err := net.Listen("tcp6", "[::1]:0")
		if err == nil {
			listener.Close()
		}
		return err
	}) == nil
	if hostHas != db.IPv6.IsValid() {
		t.Fatalf("that the host has IPv6 is %v, and a container has %v", hostHas, db.IPv6)
	}
	if hostHas {
		six := "[" + db.IPv6.String() + "]:5432"
		if who, from, err := web.ask(six); who != "db" || from != web.IPv6.String() {
			t.Errorf("web by IPv6: %q from %q, %v", who, from, err)
		}
		other.cannotReach(six)
	}

	// What talked before must stop when the networks change.
	conn, err := web.dial("10.96.0.1:5432")
	must(t, err)
	defer conn.Close()
	banner(t, conn)
	l.apply(nets, service("prod", "web", "", []string{"front"}, web), database)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = conn.Write([]byte("x"))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a connection goes on after its network was taken away")
	}
}

func TestInternalNetworkReachesNothingOutside(t *testing.T) {
	l := newLab(t)
	remote := l.remote()
	remote.serve(80)
	serveIn(t, l.host, 8088, "host")
	vault, db, free := l.container("vault"), l.container("db"), l.container("free")
	db.serve(5432)
	l.apply([]*gantryv1.Network{network("prod/shop/cellar", 1, true), network("prod/shop/front", 2, false)},
		service("prod", "vault", "", []string{"cellar"}, vault), service("prod", "db", "10.96.0.1", []string{"cellar"}, db),
		service("prod", "free", "", []string{"cellar", "front"}, free))
	if who, _, err := vault.ask("10.96.0.1:5432"); who != "db" {
		t.Errorf("inside the network: %v", err)
	}
	for _, to := range []string{"192.0.2.2:80", "192.0.2.1:8088", vault.Gateway.String() + ":8088"} {
		vault.cannotReach(to)
		if _, _, err := free.ask(to); err != nil {
			t.Errorf("the container with one open network does not reach %s: %v", to, err)
		}
	}
}

func TestOutsideSeesTheHostAndReachesNothingUnpublished(t *testing.T) {
	l := newLab(t)
	remote := l.remote()
	remote.serve(80)
	remote.route("10.64.3.0/24")
	remote.route("10.96.0.0/16")
	a := l.container("a")
	a.serve(8000)
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, service("prod", "web", "10.96.0.1", []string{"front"}, a))
	_, from, err := a.ask("192.0.2.2:80")
	must(t, err)
	if from != "192.0.2.1" {
		t.Errorf("outside sees %s, want the host's address", from)
	}
	for _, to := range []string{a.IPv4.String() + ":8000", "10.96.0.1:8000"} {
		remote.cannotReach(to)
	}
}

func TestForgedAddressesAreDropped(t *testing.T) {
	l := newLab(t)
	a, db, victim := l.container("a"), l.container("db"), l.container("victim")
	l.apply([]*gantryv1.Network{network("prod/shop/back", 1, false)},
		service("prod", "db", "", []string{"back"}, db), service("prod", "victim", "", []string{"back"}, victim))
	heard := func(ns *os.File, addr string) net.PacketConn {
		var pc net.PacketConn
		must(t, do(t, ns, func() (err error) {
			pc, err = net.ListenPacket("udp4", addr)
			return err
		}))
		t.Cleanup(func() { pc.Close() })
		return pc
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		what     string
		source   netip.Addr
		target   netip.Addr
		listener net.PacketConn
		honest   *os.File
	}{
		{"in another container's name", victim.IPv4, db.IPv4, heard(db.ns, ":5300"), victim.ns},
		{"to the host's loopback", a.IPv4, loopback, heard(l.host, "127.0.0.1:5300"), l.host},
	} {
		must(t, do(t, a.ns, func() error { return forge(c.source, c.target, 5300) }))
		must(t, do(t, c.honest, func() error {
			conn, err := net.Dial("udp", netip.AddrPortFrom(c.target, 5300).String())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("honest"))
			return err
		}))
		buf := make([]byte, 100)
		_ = c.listener.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, _, err := c.listener.ReadFrom(buf)
		must(t, err)
		if string(buf[:n]) != "honest" {
			t.Errorf("a datagram %s arrived: %q", c.what, buf[:n])
		}
	}
}

// forge sends a datagram "forged" with any source straight to the link, as a container with CAP_NET_RAW can.
func forge(source, target netip.Addr, port uint16) error {
	eth, err := net.InterfaceByName(inside)
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM, int(htons(syscall.ETH_P_IP)))
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	to := &syscall.SockaddrLinklayer{Protocol: htons(syscall.ETH_P_IP), Ifindex: eth.Index, Halen: 6}
	copy(to.Addr[:], hostMAC())
	return syscall.Sendto(fd, datagram(source, target, port, "forged"), 0, to)
}

// datagram is an IPv4 packet without a checksum of its content.
func datagram(source, target netip.Addr, port uint16, payload string) []byte {
	p := make([]byte, 28, 64)
	p[0], p[8], p[9] = 0x45, 64, protoUDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(payload)))
	copy(p[12:], source.AsSlice())
	copy(p[16:], target.AsSlice())
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	return append(p, payload...)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
