package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/overlay"
)

func TestInstancesReachThoseOfOtherNodes(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		a, b := l.machines[0].run("a"), l.machines[1].run("b")
		a.serve(80)
		b.serve(80)
		stranger := l.machines[0].run("stranger")
		l.apply(front(), service("prod", "web", "10.96.0.1", []string{"front"}, b), service("prod", "client", "", []string{"front"}, a))
		for _, to := range []string{b.IPv4.String() + ":80", "10.96.0.1:80", "[" + b.IPv6.String() + "]:80"} {
			who, from, err := a.ask(to)
			if who != "b" || from != a.IPv4.String() && from != a.IPv6.String() {
				t.Errorf("a asks %s: answered by %q, which sees %q, %v", to, who, from, err)
			}
			stranger.cannotReach(to)
		}
		for _, to := range []string{b.IPv4.String() + ":80", "10.96.0.1:80"} {
			if _, from, err := ask(dialIn(t, l.machines[0].ns, to)); from != "10.64.1.1" {
				t.Errorf("a process of the other node asks %s: seen as %q, %v", to, from, err)
			}
		}
		if got, want := mtu(t, a), 1500-overlay.Overhead(l.machines[0].opts.Overlay, l.machines[0].IPv4); got != want {
			t.Errorf("a's link has an MTU of %d, want %d", got, want)
		}
	})
}

func TestTheOverlaysOwnPacketsAreNotTracked(t *testing.T) {
	l := newLAN(t, 2)
	a, b := l.machines[0].run("a"), l.machines[1].run("b")
	b.serve(80)
	l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "", []string{"front"}, b))
	_, _, err := a.ask(b.IPv4.String() + ":80")
	must(t, err)
	for _, m := range l.machines {
		m.inside(func() error {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
			carried := false
			for _, f := range flows {
				carried = carried || f.Forward.DstPort == 80
				if f.Forward.DstPort == overlay.VXLANPort {
					t.Errorf("%s tracks %s", m.id, f)
				}
			}
			if !carried {
				t.Errorf("%s does not track what is carried: %v", m.id, flows)
			}
			return err
		})
	}
}

func mtu(t *testing.T, c *container) (size int) {
	t.Helper()
	must(t, do(t, c.ns, func() error {
		eth, err := net.InterfaceByName(inside)
		if err == nil {
			size = eth.MTU
		}
		return err
	}))
	return size
}

func TestNodesMayHaveIPv6Addresses(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind, func(o *Options) { o.Address = address6Of(o.Address) })
		a, b := l.machines[0].run("a"), l.machines[1].run("b")
		b.serve(80)
		l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "10.96.0.1", []string{"front"}, b))
		if who, from, err := a.ask("10.96.0.1:80"); who != "b" || from != a.IPv4.String() {
			t.Errorf("answered by %q, which sees %q: %v", who, from, err)
		}
		if got, want := mtu(t, a), 1500-overlay.Overhead(l.machines[0].opts.Overlay, l.machines[0].opts.Address); got != want {
			t.Errorf("MTU %d, want %d", got, want)
		}
	})
}

// outside is the neighbour in the LAN: the test process's own namespace.
func outside(t testing.TB) *container {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return &container{t: t, id: "outside", ns: ns, Attachment: Attachment{IPv4: netip.MustParseAddr("192.0.2.254")}}
}

func TestPublishedPortsAnswerOnEveryNode(t *testing.T) {
	l := newLAN(t, 3)
	neighbour, b, passer := outside(t), l.machines[1].run("b"), l.machines[0].run("passer")
	b.serve(80)
	b.serveUDP(53)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, b)
	web.Ports = []*gantryv1.PortPublish{tcpPort(8080, 80), {HostPort: 5353, ContainerPort: 53, Protocol: "udp"}}
	for _, m := range l.machines {
		m.publish("prod/shop/web", web.Ports...)
	}
	l.apply(front(), web)
	for i, m := range l.machines {
		want := "192.0.2.254" // where the instance is local it sees the client
		if m.id != "n2" {
			want = fmt.Sprintf("10.64.%d.1", i+1)
		}
		if who, from, err := neighbour.ask(m.IPv4.String() + ":8080"); who != "b" || from != want {
			t.Errorf("at %s: answered by %q, which sees %q, want %q: %v", m.id, who, from, want, err)
		}
		if who, from, err := askUDP(neighbour.dialUDP(m.IPv4.String() + ":5353")); who != "b" || from != want {
			t.Errorf("at %s by UDP: answered by %q, which sees %q, want %q: %v", m.id, who, from, want, err)
		}
		for _, to := range []string{"127.0.0.1:8080", "[::1]:8080", m.IPv4.String() + ":8080", m.opts.Subnet.Addr().Next().String() + ":8080"} {
			if who, _, err := ask(dialIn(t, m.ns, to)); who != "b" {
				t.Errorf("on %s itself at %s: %v", m.id, to, err)
			}
		}
		if who, _, err := passer.ask(m.IPv4.String() + ":8080"); who != "b" { // published is public
			t.Errorf("a container of n1 at %s: %v", m.id, err)
		}
	}
	neighbour.cannotReach("192.0.2.1:80")
}

func TestPortsInHostModeAnswerWhereAnInstanceRuns(t *testing.T) {
	l := newLAN(t, 2)
	neighbour, a, b := outside(t), l.machines[0].run("a"), l.machines[1].run("b")
	a.serve(80)
	b.serve(80)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, b)
	web.Ports = []*gantryv1.PortPublish{{HostPort: 8080, ContainerPort: 80, Mode: "host"}}
	l.machines[1].publish("prod/shop/web", web.Ports...)
	l.apply(front(), web, service("prod", "other", "", []string{"front"}, a))
	if _, from, err := neighbour.ask("192.0.2.2:8080"); from != "192.0.2.254" {
		t.Errorf("where it runs: seen as %q, %v", from, err)
	}
	neighbour.cannotReach("192.0.2.1:8080")
	more := service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	more.Ports = web.Ports
	l.machines[0].publish("prod/shop/web", more.Ports...)
	l.apply(front(), more)
	for i, want := range []string{"a", "b"} {
		for range 3 {
			if who, _, err := neighbour.ask(l.machines[i].IPv4.String() + ":8080"); who != want {
				t.Errorf("at n%d: answered by %q, %v", i+1, who, err)
			}
		}
	}
}

func TestWeightsShareConnectionsBetweenNodes(t *testing.T) {
	l := newLAN(t, 2)
	a, b, client := l.machines[0].run("a"), l.machines[1].run("b"), l.machines[0].run("client")
	a.serve(80)
	b.serve(80)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b)
	web.Endpoints[0].Weight, web.Endpoints[1].Weight = 75, 25
	l.apply(front(), web, service("prod", "client", "", []string{"front"}, client))
	hits := map[string]int{}
	for range 12 {
		who, _, err := client.ask("10.96.0.1:80")
		must(t, err)
		hits[who]++
	}
	if hits["a"] != 9 || hits["b"] != 3 {
		t.Errorf("12 connections at 75 to 25 went to %v", hits)
	}
}

func TestIsolationHoldsBetweenNodes(t *testing.T) {
	l := newLAN(t, 2)
	neighbour, db := outside(t), l.machines[1].run("db")
	db.serve(5432)
	web, thief, proxy, vault := l.machines[0].run("web"), l.machines[0].run("thief"), l.machines[0].run("proxy"), l.machines[0].run("vault")
	serveIn(t, l.machines[1].ns, 8088, "host")
	neighbour.serve(80)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false), network("prod/shop/back", 2, false),
		network("staging/shop/back", 3, false), network("prod/shop/cellar", 4, true)}
	l.apply(nets, service("prod", "db", "10.96.0.1", []string{"back", "cellar"}, db), service("prod", "web", "", []string{"front", "back"}, web),
		service("staging", "thief", "", []string{"back"}, thief), service("prod", "proxy", "", []string{"front"}, proxy),
		service("prod", "vault", "", []string{"cellar"}, vault))
	targets := []string{"10.96.0.1:5432", db.IPv4.String() + ":5432", "[" + db.IPv6.String() + "]:5432"}
	for _, to := range targets {
		for _, c := range []*container{web, vault} {
			if who, _, err := c.ask(to); who != "db" {
				t.Errorf("%s cannot reach db at %s: %v", c.id, to, err)
			}
		}
		for _, c := range []*container{thief, proxy} {
			c.cannotReach(to)
		}
	}
	// Neither the neighbour, by way of a node, nor a container gets at what only nodes may use.
	for _, r := range []string{"10.64.0.0/12", "10.96.0.0/16"} {
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(r)), Gw: net.ParseIP("192.0.2.1")}))
	}
	for _, to := range append(targets[:2], "10.64.1.1:8088", "10.64.2.1:8088") {
		neighbour.cannotReach(to)
	}
	web.cannotReach("10.64.2.1:8088")
	vault.cannotReach("192.0.2.254:80")
	if _, from, err := web.ask("192.0.2.254:80"); from != "192.0.2.1" {
		t.Errorf("outside sees web as %q, %v", from, err)
	}
}

// TestWhatNoNodeHasStaysInside sends to an address of the range that no node has, while somebody outside does.
func TestWhatNoNodeHasStaysInside(t *testing.T) {
	l := newLAN(t, 1)
	neighbour, a := outside(t), l.machines[0].run("a")
	neighbour.serve(80)
	lan, err := netlink.LinkByName("lan")
	must(t, err)
	must(t, address4(lan, "10.70.0.1/32"))
	l.machines[0].inside(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("192.0.2.254")}) })
	l.apply(front(), service("prod", "a", "", []string{"front"}, a))
	a.cannotReach("10.70.0.1:80")
	if _, _, err := a.ask("192.0.2.254:80"); err != nil {
		t.Errorf("the neighbour is not there at all: %v", err)
	}
}

// TestFramesOfStrangersAreDropped injects VXLAN frames that carry a datagram in an instance's name. The same frame from the
// node itself is taken, which shows that it is whole.
func TestFramesOfStrangersAreDropped(t *testing.T) {
	l := newLAN(t, 2)
	n1, n2 := l.machines[0], l.machines[1]
	a, b := n1.run("a"), n2.run("b")
	l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "", []string{"front"}, b))
	var heard net.PacketConn
	must(t, do(t, b.ns, func() (err error) {
		heard, err = net.ListenPacket("udp4", ":5300")
		return err
	}))
	defer heard.Close()
	second := n2.secondCable(t)
	send := func(ns *os.File, source, to, text string) {
		must(t, do(t, ns, func() error {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(source))}
			conn, err := d.Dial("udp4", to+":7452")
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(frame(n2.opts.Subnet, a.IPv4, b.IPv4, text))
			return err
		}))
	}
	send(outside(t).ns, "192.0.2.254:0", "192.0.2.2", "by a neighbour")
	send(second, "192.0.2.1:0", "198.51.100.1", "in a node's name by another way")
	send(a.ns, a.IPv4.String()+":0", "192.0.2.2", "by a container, masqueraded as its node")
	send(b.ns, b.IPv4.String()+":0", "192.0.2.2", "by a container of the same node")
	send(n1.ns, "192.0.2.1:0", "192.0.2.2", "honest")
	buf := make([]byte, 100)
	_ = heard.SetReadDeadline(time.Now().Add(2 * time.Second))
	n, _, err := heard.ReadFrom(buf)
	must(t, err)
	if string(buf[:n]) != "honest" {
		t.Errorf("a frame sent %s was taken", buf[:n])
	}
}

// secondCable joins the machine to another network, 198.51.100.0/24, whose other end claims to be n1 and is returned.
func (m *machine) secondCable(t *testing.T) *os.File {
	t.Helper()
	var ns *os.File
	must(t, onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}))
	t.Cleanup(func() { ns.Close() })
	m.inside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth1"
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(ns.Fd())
		return errors.Join(netlink.LinkAdd(veth), address4(veth, "198.51.100.1/24"),
			os.WriteFile("/proc/sys/net/ipv4/conf/eth1/rp_filter", []byte("0"), 0))
	})
	must(t, do(t, ns, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(address4(eth, "198.51.100.2/24"), address4(eth, "192.0.2.1/32"))
	}))
	return ns
}

// frame is a VXLAN packet's content: a datagram "text" to port 5300 in an Ethernet frame to a node.
func frame(node netip.Prefix, source, target netip.Addr, text string) []byte {
	gateway := overlay.Gateway(node).As4()
	f := []byte{8, 0, 0, 0, 7452 >> 16, 7452 >> 8, 7452 & 0xff, 0}
	f = append(f, 0x02, 0x76, gateway[0], gateway[1], gateway[2], gateway[3], 2, 0, 0, 0, 0, 9, 8, 0)
	return append(f, datagram(source, target, 5300, text)...)
}

// listen collects the text of all packets that pass a device of the test process until its stop is called.
func listen(t *testing.T, device string) (stop func() string) {
	t.Helper()
	link, err := net.InterfaceByName(device)
	must(t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
	must(t, err)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Index}))
	f := os.NewFile(uintptr(fd), "capture")
	done := make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				done <- all.String()
				return
			}
			all.Write(buf[:n])
		}
	}()
	return func() string {
		_ = f.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // what has been sent is in the socket by now
		defer f.Close()
		return <-done
	}
}

const canary = "the-canary-sings-at-midnight"

func TestOnlyVXLANShowsWhatPasses(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		a, b := l.machines[0].run("a"), l.machines[1].run("b")
		b.serve(80)
		l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "10.96.0.1", []string{"front"}, b))
		stop := listen(t, "lan1")
		conn, err := a.dial("10.96.0.1:80")
		must(t, err)
		defer conn.Close()
		banner(t, conn)
		_, err = conn.Write([]byte(canary))
		must(t, err)
		_, err = conn.Read(make([]byte, len(canary))) // it has been there and back
		must(t, err)
		seen, encrypted := stop(), l.machines[0].opts.Overlay == overlay.WireGuard
		if len(seen) == 0 || strings.Contains(seen, canary) == encrypted {
			t.Errorf("the canary is seen: %v, in %d bytes", strings.Contains(seen, canary), len(seen))
		}
	})
}

func TestEncryptionFailsClosed(t *testing.T) {
	encrypted := func(o *Options) { o.Overlay = overlay.WireGuard }
	t.Run("a node without a key", func(t *testing.T) {
		l := newLAN(t, 2, encrypted)
		a, b := l.machines[0].run("a"), l.machines[1].run("b")
		b.serve(80)
		l.machines[1].key = ""
		l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "10.96.0.1", []string{"front"}, b))
		a.cannotReach("10.96.0.1:80")
		a.cannotReach(b.IPv4.String() + ":80")
	})
	t.Run("no WireGuard in the kernel and no TUN", func(t *testing.T) {
		if err := tryKernelWireGuard(t); err == nil {
			t.Skip("the kernel has WireGuard")
		}
		must(t, unix.Mount("/dev/null", "/dev/net/tun", "", unix.MS_BIND, ""))
		defer func() { must(t, unix.Unmount("/dev/net/tun", unix.MNT_DETACH)) }()
		l := newLAN(t, 0)
		bridge, err := netlink.LinkByName("lan")
		must(t, err)
		m := l.add(bridge, 1)
		encrypted(&m.opts)
		if err := m.open(); err == nil || !strings.Contains(err.Error(), "encrypted overlay") {
			t.Errorf("opened all the same: %v", err)
		}
	})
}

func tryKernelWireGuard(t *testing.T) error {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wgtest"
	w := &netlink.Wireguard{LinkAttrs: attrs}
	if err := netlink.LinkAdd(w); err != nil {
		return err
	}
	return netlink.LinkDel(w)
}

func TestInstanceThatMovedIsLeftByAll(t *testing.T) {
	l := newLAN(t, 3)
	old, client := l.machines[1].run("web-old"), l.machines[0].run("client")
	old.serve(80)
	caller := service("prod", "client", "", []string{"front"}, client)
	l.apply(front(), service("prod", "web", "10.96.0.1", []string{"front"}, old), caller)
	conn, err := client.dial("10.96.0.1:80")
	must(t, err)
	defer conn.Close()
	banner(t, conn)
	moved := l.machines[2].run("web-new")
	moved.serve(80)
	l.apply(front(), service("prod", "web", "10.96.0.1", []string{"front"}, moved), caller)
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err = conn.Write([]byte("x")); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the old connection ended with %v, want a reset", err)
	}
	for range 3 {
		if who, _, err := client.ask("10.96.0.1:80"); who != "web-new" {
			t.Errorf("answered by %q, %v", who, err)
		}
	}
	client.cannotReach(old.IPv4.String() + ":80") // it still runs, and is no member any more
}

func TestNodesComeMoveAndGo(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		a, b := l.machines[0].run("a"), l.machines[1].run("b")
		b.serve(80)
		services := []*gantryv1.ServiceEndpoints{service("prod", "a", "", []string{"front"}, a), service("prod", "b", "", []string{"front"}, b)}
		to := b.IPv4.String() + ":80"
		all := l.nodes()
		told := func(nodes ...*gantryv1.Node) {
			l.machines[0].apply(&gantryv1.NodeUpdate{Endpoints: services, Networks: front(), Nodes: nodes})
		}
		l.machines[1].apply(&gantryv1.NodeUpdate{Endpoints: services, Networks: front(), Nodes: all})
		told(all[0])
		a.cannotReach(to)
		wrong := l.machines[1].node()
		wrong.Address = "192.0.2.77"
		told(all[0], wrong)
		a.cannotReach(to)
		told(all...)
		await(t, "b to be reached when its node's address is right", func() bool { return reaches(t, a, to) })
		former := l.machines[1].node() // the same machine, by the range it had before
		former.Subnet = "10.64.7.0/24"
		told(append(all, former)...)
		told(all...)
		await(t, "b to be reached when its node's former range is forgotten", func() bool { return reaches(t, a, to) })
		told()
		a.cannotReach(to)
		told(append(all, &gantryv1.Node{Name: "thief", Address: "192.0.2.9", Subnet: "10.64.1.0/25"}, &gantryv1.Node{Name: "half"},
			&gantryv1.Node{Name: "broken", Address: "192.0.2.8", Subnet: "10.64.8.0/24", OverlayKey: "garbage"})...)
		await(t, "b to be reached beside nodes that make no sense", func() bool { return reaches(t, a, to) })
		l.machines[0].kill()
		l.machines[0].revive() // with the same nodes on record
		await(t, "b to be reached after a restart", func() bool { return reaches(t, a, to) })
	})
}

func TestOverlaySurvivesTheDaemon(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		n1, n2 := l.machines[0], l.machines[1]
		a, b := n1.run("a"), n2.run("b")
		b.serve(80)
		l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "10.96.0.1", []string{"front"}, b))
		conn, err := a.dial("10.96.0.1:80")
		must(t, err)
		defer conn.Close()
		banner(t, conn)
		n1.kill()
		n2.kill()
		if n1.opts.Overlay == overlay.VXLAN {
			echo(t, conn)
			if who, _, err := a.ask("10.96.0.1:80"); who != "b" {
				t.Errorf("without any daemon: %v", err)
			}
		} else {
			a.cannotReach("10.96.0.1:80") // rather than in the open
		}
		n1.revive()
		n2.revive()
		n1.awaitPing(overlay.Gateway(n2.opts.Subnet)) // no server has been heard
		echo(t, conn)
		if who, _, err := a.ask("10.96.0.1:80"); who != "b" {
			t.Errorf("after the restart: %v", err)
		}
	})
}

func TestWhatSomebodyRemovesComesBack(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		n1 := l.machines[0]
		a, b, c := n1.run("a"), l.machines[1].run("b"), n1.run("c")
		for _, server := range []*container{b, c} {
			server.serve(80)
		}
		l.apply(front(), service("prod", "a", "", []string{"front"}, a), service("prod", "b", "10.96.0.1", []string{"front"}, b),
			service("prod", "c", "10.96.0.2", []string{"front"}, c))
		works := func() bool {
			for _, to := range []string{"10.96.0.1:80", "[" + b.IPv6.String() + "]:80", "10.96.0.2:80"} {
				if !reaches(t, a, to) {
					return false
				}
			}
			return reaches(t, &container{t: t, ns: n1.ns}, "10.96.0.1:80")
		}
		await(t, "the network", works)
		device := overlayDevice(n1.opts.Bridge)
		for what, remove := range map[string]func() error{ // in any order
			"the overlay":           func() error { return deleteLink(device) },
			"the bridge":            func() error { return deleteLink(n1.opts.Bridge) },
			"a container's link":    func() error { return deleteLink(linkName(c.IPv4)) },
			"the overlay is down":   func() error { return onLink(device, netlink.LinkSetDown) },
			"the bridge is down":    func() error { return onLink(n1.opts.Bridge, netlink.LinkSetDown) },
			"a container's route":   func() error { return deleteRoute(linkName(c.IPv4), single(c.IPv4)) },
			"the route to a node":   func() error { return deleteRoute(device, l.machines[1].opts.Subnet) },
			"the route by IPv6":     func() error { return deleteRoute(device, overlay.Subnet6("test", l.machines[1].opts.Subnet)) },
			"forwarding":            func() error { return writeSysctl(forward4, "0") },
			"forwarding of IPv6":    func() error { return writeSysctl(forward6, "0") },
			"the gateway's address": func() error { return onLink(n1.opts.Bridge, deleteAddresses) },
			"neighbours":            func() error { return onLink(device, deleteNeighbours) },
		} {
			if err := do(t, n1.ns, remove); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			await(t, what+" to come back", works)
		}
	})
}

func reaches(t *testing.T, c *container, to string) bool {
	ok := false
	_ = do(t, c.ns, func() error {
		conn, err := net.DialTimeout("tcp", to, 200*time.Millisecond)
		if err == nil {
			ok = true
			conn.Close()
		}
		return nil
	})
	return ok
}

func onLink(name string, f func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return f(link)
}

func deleteLink(name string) error { return onLink(name, netlink.LinkDel) }

func deleteRoute(device string, to netip.Prefix) error {
	return onLink(device, func(link netlink.Link) error {
		return netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Scope: netlink.SCOPE_NOWHERE})
	})
}

func deleteAddresses(link netlink.Link) error {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	for _, a := range addrs {
		err = errors.Join(err, netlink.AddrDel(link, &a))
	}
	return err
}

func deleteNeighbours(link netlink.Link) error {
	var failures []error
	for _, family := range []int{unix.AF_BRIDGE, netlink.FAMILY_V4, netlink.FAMILY_V6} {
		entries, err := whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, family) })
		failures = append(failures, err)
		for _, e := range entries {
			if e.State&netlink.NUD_PERMANENT != 0 {
				failures = append(failures, netlink.NeighDel(&e))
			}
		}
	}
	return errors.Join(failures...)
}

func TestMachineThatJoinsAClusterChangesItsLinks(t *testing.T) {
	var alone netip.Addr
	l := newLAN(t, 1, func(o *Options) { o.Address = alone })
	m := l.machines[0]
	a := m.run("a")
	if got := mtu(t, a); got != 1500 {
		t.Errorf("alone: MTU %d", got)
	}
	for kind, want := range map[string]int{overlay.VXLAN: 1450, overlay.WireGuard: 1420, "": 1500} { // in any order
		m.kill()
		m.opts.Overlay, m.opts.Address = kind, m.IPv4
		if kind == "" {
			m.opts.Address = alone
		}
		m.revive()
		if got := mtu(t, a); got != want {
			t.Errorf("overlay %q: MTU %d, want %d", kind, got, want)
		}
		if link := m.linkIn(overlayDevice(m.opts.Bridge)); (link != nil) != (kind != "") {
			t.Errorf("overlay %q: the device is %v", kind, link)
		}
		if routes := m.overlayRoutes(); len(routes) > 0 != (kind != "") {
			t.Errorf("overlay %q: the routes are %v", kind, routes)
		}
	}
}

func TestOverlayRefusesWhatCannotWork(t *testing.T) {
	l := newLAN(t, 0)
	bridge, err := netlink.LinkByName("lan")
	must(t, err)
	for i, c := range []struct {
		change func(*machine)
		want   string
	}{
		{func(m *machine) { m.opts.Overlay = "gre" }, "no kind of overlay"},
		{func(m *machine) { m.opts.Address = netip.MustParseAddr("127.0.0.1") }, "cannot reach"},
		{func(m *machine) { m.opts.NodeRange = netip.MustParsePrefix("10.80.0.0/16") }, "not in the cluster's"},
		{func(m *machine) { m.opts.NodeRange = netip.MustParsePrefix("10.0.0.0/8") }, "virtual addresses"},
		{func(m *machine) { m.opts.Address = netip.MustParseAddr("10.65.0.9") }, "in the range of instances"},
		{func(m *machine) { m.inside(func() error { return onLink("eth0", addAddress("10.71.0.1/24")) }) }, "in use"},
		{func(m *machine) { m.occupy(t, 7452) }, "port 7452 of the overlay is taken"},
		{func(m *machine) { m.opts.Overlay = overlay.WireGuard; m.occupy(t, 7453) }, "port 7453 of the overlay is taken"},
		{func(m *machine) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "gantry0-x"
			m.inside(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}) })
		}, "exists already"},
	} {
		m := l.add(bridge, i+1)
		c.change(m)
		if err := m.open(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q: %v", c.want, err)
		}
	}
}

func addAddress(cidr string) func(netlink.Link) error {
	return func(l netlink.Link) error { return address4(l, cidr) }
}

// overlayRoutes are the IPv4 routes of the overlay.
func (m *machine) overlayRoutes() (routes []netlink.Route) {
	m.inside(func() (err error) {
		routes, err = netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: overlay.Protocol}, netlink.RT_FILTER_PROTOCOL)
		return err
	})
	return routes
}

// occupy takes a UDP port of the machine.
func (m *machine) occupy(t *testing.T, port int) {
	m.inside(func() error {
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
}

func TestCleanupLeavesNothingOfTheOverlay(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		l.apply(nil)
		m := l.machines[0]
		_, err := m.call(order{Call: "cleanup"})
		must(t, err)
		if routes := m.overlayRoutes(); len(routes) > 0 {
			t.Errorf("routes stay: %v", routes)
		}
		m.inside(func() error {
			links, err := whole(netlink.LinkList)
			for _, link := range links {
				if name := link.Attrs().Name; name != "lo" && name != "eth0" {
					t.Errorf("the device %s stays", name)
				}
			}
			return err
		})
	})
}

func TestKeyOfTheOverlayStaysOnTheMachine(t *testing.T) {
	root := t.TempDir()
	first, err := OverlayKey(root)
	must(t, err)
	again, err := OverlayKey(root)
	must(t, err)
	info, err := os.Stat(overlayKeyFile(root))
	must(t, err)
	if first != again || len(first) != 44 || info.Mode().Perm() != 0o600 {
		t.Errorf("key %q, then %q, mode %v", first, again, info.Mode())
	}
	must(t, os.WriteFile(overlayKeyFile(root), []byte("damaged"), 0o600))
	if _, err := OverlayKey(root); err == nil {
		t.Error("a damaged key is silently replaced")
	}
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}
