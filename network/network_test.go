package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// inNamespace marks the test process that runs in network and mount namespaces of its own.
const inNamespace = "GANTRY_NETWORK_TEST_NAMESPACE"

// TestMain runs the tests in namespaces of their own, so that they cannot meet the machine's network and leave nothing.
func TestMain(m *testing.M) {
	if os.Getenv(asMachine) != "" {
		os.Exit(runMachine())
	}
	if os.Getenv(inNamespace) != "" {
		// The kernel rations ICMP errors by address, and tests share addresses.
		_ = os.WriteFile("/proc/sys/net/ipv4/icmp_ratemask", []byte("0"), 0)
	}
	if os.Getenv(inNamespace) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "start the tests in a network namespace:", err)
		os.Exit(1)
	}
}

func needKernel(t testing.TB) {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		t.Skip("needs root, for network namespaces")
	}
	if _, err := os.Stat("/proc/sys/net/netfilter"); err != nil {
		t.Skip("the kernel has no netfilter")
	}
}

// lab is a host with one Network, in the namespace of the test process.
type lab struct {
	*Network
	t    testing.TB
	opts Options
	stop func()
}

func newLab(t testing.TB, change ...func(*Options)) *lab {
	needKernel(t)
	dir := t.TempDir()
	l := &lab{t: t, opts: Options{Root: dir + "/root", Run: dir + "/run", Bridge: "gantry0", PoolSize: 4,
		Subnet: netip.MustParsePrefix("10.64.3.0/24"), VirtualIPs: netip.MustParsePrefix("10.96.0.0/16")}}
	if testing.Verbose() {
		l.opts.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	for _, c := range change {
		c(&l.opts)
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	l.open()
	t.Cleanup(func() {
		l.stop()
		must(t, l.Network.Cleanup(context.Background()))
		l.Network.Close()
	})
	return l
}

// open starts the network as a daemon does.
func (l *lab) open() {
	l.t.Helper()
	n, err := Open(l.t.Context(), l.opts)
	must(l.t, err)
	l.Network = n
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return n.Run(ctx) })
	l.stop = func() {
		cancel()
		must(l.t, g.Wait())
	}
}

// restart is a daemon that dies and comes back.
func (l *lab) restart() {
	l.t.Helper()
	l.stop()
	must(l.t, l.Network.Close())
	l.open()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await polls until a condition holds.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	awaitFor(t, 5*time.Second, what, ok)
}

func awaitFor(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// container is an attached namespace that the test can act in.
type container struct {
	Attachment
	t  testing.TB
	id string
	ns *os.File
}

func (l *lab) container(id string) *container {
	l.t.Helper()
	at, err := l.Attach(l.t.Context(), id, AttachOptions{})
	must(l.t, err)
	return enter(l.t, id, at)
}

func enter(t testing.TB, id string, at Attachment) *container {
	t.Helper()
	ns, err := os.Open(at.Netns)
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return &container{Attachment: at, t: t, id: id, ns: ns}
}

// do runs f on a thread in a namespace. Sockets made there stay there.
func do(t testing.TB, ns *os.File, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// serve answers each TCP connection to a port with the container's id and the client's address.
func (c *container) serve(port int) {
	c.t.Helper()
	serveIn(c.t, c.ns, port, c.id)
}

func listenIn(t testing.TB, ns *os.File, port int) (l net.Listener) {
	t.Helper()
	must(t, do(t, ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { l.Close() })
	return l
}

func serveIn(t testing.TB, ns *os.File, port int, name string) {
	t.Helper()
	l := listenIn(t, ns, port)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s\n", name, host)
				_, _ = io.Copy(c, c) // echo, for tests that keep a connection
			}()
		}
	}()
}

// dial connects from the container.
func (c *container) dial(addr string) (net.Conn, error) { return dialIn(c.t, c.ns, addr) }

// cannotReach fails the test if a connection comes about. On one machine one that can takes less than a millisecond.
func (c *container) cannotReach(addr string) {
	c.t.Helper()
	_ = do(c.t, c.ns, func() error {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err == nil {
			conn.Close()
			c.t.Errorf("%s reaches %s", c.id, addr)
		}
		return err
	})
}

func dialIn(t testing.TB, ns *os.File, addr string) (conn net.Conn, err error) {
	t.Helper()
	err = do(t, ns, func() (err error) {
		// Go's dialer moves to other threads only for names and for several addresses.
		conn, err = net.DialTimeout("tcp", addr, 2*time.Second)
		return err
	})
	return conn, err
}

// ask connects and returns the server's id and the client's address as the server saw it.
func ask(conn net.Conn, err error) (server, client string, failure error) {
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = fmt.Fscanln(conn, &server, &client)
	return server, client, err
}

func (c *container) ask(addr string) (string, string, error) { return ask(c.dial(addr)) }

func askHost(addr string) (string, string, error) {
	return ask(net.DialTimeout("tcp", addr, 2*time.Second))
}

// service describes one service of app "shop" in an environment, in networks given as "name".
func service(env, name, vip string, networks []string, members ...*container) *gantryv1.ServiceEndpoints {
	e := &gantryv1.ServiceEndpoints{Service: env + "/shop/" + name, Environment: env, App: "shop", Name: name, VirtualIp: vip}
	for _, n := range networks {
		e.Attachments = append(e.Attachments, &gantryv1.NetworkAttachment{Network: env + "/shop/" + n})
	}
	for i, c := range members {
		ep := &gantryv1.Endpoint{Instance: c.id, Slot: int32(i + 1), Address: c.IPv4.String(), Ready: true}
		if c.IPv6.IsValid() {
			ep.Address6 = c.IPv6.String()
		}
		e.Endpoints = append(e.Endpoints, ep)
	}
	return e
}

func network(key string, number uint32, internal bool) *gantryv1.Network {
	return &gantryv1.Network{Meta: &gantryv1.Meta{Key: key}, Number: number, Internal: internal}
}

func (l *lab) apply(networks []*gantryv1.Network, services ...*gantryv1.ServiceEndpoints) {
	l.t.Helper()
	must(l.t, l.Apply(l.t.Context(), State{Endpoints: services, Networks: networks}))
}

// remote is another machine, joined to the host by a cable: the host is 192.0.2.1, the machine 192.0.2.2.
func (l *lab) remote() *container {
	l.t.Helper()
	var ns *os.File
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	must(l.t, <-done)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(ns.Fd())
	must(l.t, netlink.LinkAdd(veth))
	l.t.Cleanup(func() {
		must(l.t, netlink.LinkDel(veth))
		ns.Close()
	})
	must(l.t, address4(veth, "192.0.2.1/24"))
	must(l.t, do(l.t, ns, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return address4(eth, "192.0.2.2/24")
	}))
	return &container{t: l.t, id: "remote", ns: ns, Attachment: Attachment{IPv4: netip.MustParseAddr("192.0.2.2")}}
}

func address4(l netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// route gives a remote machine a way to addresses behind the host, as a neighbour in the same LAN can make for itself.
func (c *container) route(cidr string) {
	c.t.Helper()
	must(c.t, do(c.t, c.ns, func() error {
		_, dst, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP("192.0.2.1")})
	}))
}

// serveUDP answers each datagram with the container's id and the client's address.
func (c *container) serveUDP(port int) {
	c.t.Helper()
	var pc net.PacketConn
	must(c.t, do(c.t, c.ns, func() (err error) {
		pc, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	c.t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 2000)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = pc.WriteTo([]byte(c.id+" "+host), from)
		}
	}()
}

// dialUDP makes a datagram socket in the container.
func (c *container) dialUDP(addr string) net.Conn {
	c.t.Helper()
	var conn net.Conn
	must(c.t, do(c.t, c.ns, func() (err error) {
		conn, err = net.Dial("udp", addr)
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// askUDP sends a datagram and returns what comes back.
func askUDP(conn net.Conn) (server, client string, err error) {
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", "", err
	}
	buf := make([]byte, 200)
	n, err := conn.Read(buf)
	if err != nil {
		return "", "", err
	}
	_, err = fmt.Sscan(string(buf[:n]), &server, &client)
	return server, client, err
}

func tcpPort(host, container uint32) *gantryv1.PortPublish {
	return &gantryv1.PortPublish{HostPort: host, ContainerPort: container, Protocol: "tcp"}
}
