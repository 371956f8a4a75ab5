package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/overlay"
)

// asMachine marks a test process that is one machine of several: a Network in a network namespace of its own, told what to
// do on its standard input. A process, because threads of one process cannot be trusted to stay in different namespaces, and
// because it can be killed.
const (
	asMachine = "GANTRY_NETWORK_TEST_MACHINE"
	withLog   = "GANTRY_NETWORK_TEST_LOG"
)

// order is one call of a machine's Network.
type order struct {
	Call    string
	Options Options
	ID      string
	State   []byte // a NodeUpdate: endpoints, networks and nodes
	Ports   []byte // a ServiceEndpoints: ports
}

type answer struct {
	Error      string
	Attachment Attachment
	Key        string
}

// runMachine is the process of a machine.
func runMachine() int {
	_ = os.WriteFile("/proc/sys/net/ipv4/icmp_ratemask", []byte("0"), 0)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var m served
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return 0
		}
		a, err := m.obey(o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return 1
		}
	}
}

// served is the Network of a machine's process.
type served struct {
	n    *Network
	stop func() error
}

func (m *served) obey(o order) (a answer, err error) {
	ctx := context.Background()
	switch o.Call {
	case "open":
		if os.Getenv(withLog) != "" {
			o.Options.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		return a, m.open(o.Options)
	case "key":
		a.Key, err = OverlayKey(o.Options.Root)
	case "attach":
		a.Attachment, err = m.n.Attach(ctx, o.ID, AttachOptions{})
	case "detach":
		err = m.n.Detach(ctx, o.ID)
	case "apply":
		u := &gantryv1.NodeUpdate{}
		if err := protojson.Unmarshal(o.State, u); err != nil {
			return a, err
		}
		err = m.n.Apply(ctx, State{Endpoints: u.Endpoints, Networks: u.Networks, Nodes: u.Nodes})
	case "publish":
		s := &gantryv1.ServiceEndpoints{}
		if err := protojson.Unmarshal(o.Ports, s); err != nil {
			return a, err
		}
		_, err = m.n.Publish(ctx, o.ID, s.Ports)
	case "cleanup":
		err = errors.Join(m.stop(), m.n.Cleanup(ctx), m.n.Close())
	default:
		err = fmt.Errorf("no call %q", o.Call)
	}
	return a, err
}

func (m *served) open(o Options) (err error) {
	if m.n, err = Open(context.Background(), o); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return m.n.Run(ctx) })
	m.stop = func() error {
		cancel()
		return g.Wait()
	}
	return nil
}

// machine is one machine of several as the test sees it.
type machine struct {
	container // its host, in which the test can act; IPv4 is its address in the LAN
	opts      Options
	cmd       *exec.Cmd
	in        *json.Encoder
	out       *json.Decoder
	stdin     io.Closer
	key       string
}

// lan joins machines by a bridge in the namespace of the test process, which is a neighbour of theirs: 192.0.2.254.
type lan struct {
	t        testing.TB
	machines []*machine
}

func newLAN(t testing.TB, size int, change ...func(*Options)) *lan {
	needKernel(t)
	l := &lan{t: t}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(bridge))
	t.Cleanup(func() { must(t, netlink.LinkDel(bridge)) })
	must(t, address4(bridge, "192.0.2.254/24"))
	for i := range size {
		m := l.add(bridge, i+1)
		for _, c := range change {
			c(&m.opts)
		}
		must(t, m.open())
	}
	return l
}

// add starts the process of a machine and plugs it into the LAN.
func (l *lan) add(bridge netlink.Link, number int) *machine {
	l.t.Helper()
	dir := l.t.TempDir()
	m := &machine{container: container{t: l.t, id: fmt.Sprint("n", number)}, opts: Options{
		Root: dir + "/root", Run: dir + "/run", Bridge: "gantry0", PoolSize: 2, VirtualIPs: netip.MustParsePrefix("10.96.0.0/16"),
		Subnet: netip.MustParsePrefix(fmt.Sprintf("10.64.%d.0/24", number)), NodeRange: netip.MustParsePrefix("10.64.0.0/12"),
		Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(number)}), Cluster: "test",
	}}
	m.IPv4 = m.opts.Address
	m.spawn(syscall.CLONE_NEWNET)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.cmd.Process.Pid))
	must(l.t, err)
	m.ns = ns
	l.t.Cleanup(func() {
		m.kill()
		ns.Close()
		left, _ := filepath.Glob(dir + "/run/netns/*")
		for _, f := range left {
			dropNetns(f)
		}
	})
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprint("lan", number), bridge.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(ns.Fd())
	must(l.t, netlink.LinkAdd(veth))
	l.t.Cleanup(func() { must(l.t, netlink.LinkDel(veth)) })
	must(l.t, netlink.LinkSetUp(veth))
	m.inside(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		six := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(address6Of(m.IPv4), 64)), Flags: syscall.IFA_F_NODAD}
		return errors.Join(netlink.LinkSetUp(lo), address4(eth, m.IPv4.String()+"/24"), netlink.AddrAdd(eth, six))
	})
	l.machines = append(l.machines, m)
	return m
}

// address6Of is the IPv6 address of a machine in the LAN.
func address6Of(a netip.Addr) netip.Addr {
	return overlay.Embed(netip.MustParsePrefix("2001:db8::/64"), a)
}

// spawn starts a process for the machine.
func (m *machine) spawn(namespaces uintptr) {
	m.t.Helper()
	m.cmd = exec.Command("/proc/self/exe")
	m.cmd.Env = append(os.Environ(), asMachine+"=1")
	if testing.Verbose() {
		m.cmd.Env = append(m.cmd.Env, withLog+"=1")
	}
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces} // it ends with its standard input
	in, err := m.cmd.StdinPipe()
	must(m.t, err)
	out, err := m.cmd.StdoutPipe()
	must(m.t, err)
	must(m.t, m.cmd.Start())
	m.in, m.out, m.stdin = json.NewEncoder(in), json.NewDecoder(out), in
}

// kill ends the machine's process as kill -9 does.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill() // it may have been killed already
	_ = m.cmd.Wait()
}

// revive starts a new process in the machine's namespace, as a service manager does, and opens its network again.
func (m *machine) revive() {
	m.t.Helper()
	must(m.t, do(m.t, m.ns, func() error { m.spawn(0); return nil }))
	must(m.t, m.open())
}

func (m *machine) open() error {
	m.t.Helper()
	a, err := m.call(order{Call: "key", Options: m.opts})
	must(m.t, err)
	m.key = a.Key
	_, err = m.call(order{Call: "open", Options: m.opts})
	return err
}

func (m *machine) call(o order) (answer, error) {
	m.t.Helper()
	must(m.t, m.in.Encode(o))
	var a answer
	must(m.t, m.out.Decode(&a))
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// inside runs f in the machine's namespace.
func (m *machine) inside(f func() error) {
	m.t.Helper()
	must(m.t, do(m.t, m.ns, f))
}

// run attaches a container on the machine.
func (m *machine) run(id string) *container {
	m.t.Helper()
	a, err := m.call(order{Call: "attach", ID: id})
	must(m.t, err)
	return enter(m.t, id, a.Attachment)
}

func (m *machine) publish(owner string, ports ...*gantryv1.PortPublish) {
	m.t.Helper()
	b, err := protojson.Marshal(&gantryv1.ServiceEndpoints{Ports: ports})
	must(m.t, err)
	_, err = m.call(order{Call: "publish", ID: owner, Ports: b})
	must(m.t, err)
}

func (m *machine) node() *gantryv1.Node {
	return &gantryv1.Node{Name: m.id, Address: m.opts.Address.String(), Subnet: m.opts.Subnet.String(), OverlayKey: m.key}
}

func (l *lan) nodes() []*gantryv1.Node {
	var out []*gantryv1.Node
	for _, m := range l.machines {
		out = append(out, m.node())
	}
	return out
}

// apply tells all machines the same and waits until they have met: encryption needs a handshake first.
func (l *lan) apply(networks []*gantryv1.Network, services ...*gantryv1.ServiceEndpoints) {
	l.t.Helper()
	for _, m := range l.machines {
		m.apply(&gantryv1.NodeUpdate{Endpoints: services, Networks: networks, Nodes: l.nodes()})
	}
	for _, m := range l.machines {
		for _, o := range l.machines {
			if m != o && m.key != "" && o.key != "" {
				m.awaitPing(overlay.Gateway(o.opts.Subnet))
			}
		}
	}
}

// awaitPing waits until a host answers an echo request of the machine.
func (m *machine) awaitPing(to netip.Addr) {
	m.t.Helper()
	var socket net.PacketConn
	m.inside(func() (err error) {
		socket, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	defer socket.Close()
	awaitFor(m.t, 20*time.Second, fmt.Sprintf("%s to answer %s", to, m.id), func() bool {
		const echoRequest, checksum = 8, 0xf7ff
		_, _ = socket.WriteTo([]byte{echoRequest, 0, checksum >> 8, checksum & 0xff, 0, 0, 0, 0}, &net.IPAddr{IP: to.AsSlice()})
		_ = socket.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		buf := make([]byte, 100)
		for {
			_, from, err := socket.ReadFrom(buf)
			if err != nil {
				return false
			}
			if from.String() == to.String() && buf[0] == 0 {
				return true
			}
		}
	})
}

func (m *machine) apply(u *gantryv1.NodeUpdate) {
	m.t.Helper()
	b, err := protojson.Marshal(u)
	must(m.t, err)
	_, err = m.call(order{Call: "apply", State: b})
	must(m.t, err)
}

func front() []*gantryv1.Network {
	return []*gantryv1.Network{network("prod/shop/front", 1, false)}
}

// overlays runs a test for each kind of overlay.
func overlays(t *testing.T, test func(t *testing.T, kind func(*Options))) {
	for _, kind := range []string{overlay.VXLAN, overlay.WireGuard} {
		t.Run(kind, func(t *testing.T) { test(t, func(o *Options) { o.Overlay = kind }) })
	}
}

// linkIn is a device as a namespace has it now, nil if it has none.
func (m *machine) linkIn(name string) (link netlink.Link) {
	m.inside(func() (err error) {
		if link, err = netlink.LinkByName(name); errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return err
	})
	return link
}
