package network

import (
	"bufio"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

func (n *Network) readyCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ready)
}

// ourLinks lists the host's ends of containers' links.
func (l *lab) ourLinks() []string {
	l.t.Helper()
	links, err := whole(netlink.LinkList)
	must(l.t, err)
	var names []string
	for _, link := range links {
		if link.Type() == "veth" && strings.HasPrefix(link.Attrs().Name, "gv") {
			names = append(names, link.Attrs().Name)
		}
	}
	return names
}

func TestAttachIsIdempotentAndFillsThePool(t *testing.T) {
	l := newLab(t)
	await(t, "a full pool", func() bool { return l.readyCount() == 4 })
	if at, ok := l.Attached("a"); ok || l.readyCount() != 4 {
		t.Errorf("asked for, it was given %v", at)
	}
	a, err := l.Attach(t.Context(), "a", AttachOptions{})
	must(t, err)
	again, err := l.Attach(t.Context(), "a", AttachOptions{})
	must(t, err)
	if at, ok := l.Attached("a"); a != again || at != a || !ok {
		t.Errorf("attached twice: %v, %v; looked up: %v, %v", a, again, at, ok)
	}
	await(t, "the pool to be refilled", func() bool { return l.readyCount() == 4 })
	must(t, l.Detach(t.Context(), "a"))
	must(t, l.Detach(t.Context(), "a"))
	await(t, "the link to be deleted", func() bool { return len(l.ourLinks()) == 4 })
	if _, err := os.Stat(a.Netns); !os.IsNotExist(err) {
		t.Errorf("the namespace stays: %v", err)
	}
}

func TestAddressesAskedFor(t *testing.T) {
	l := newLab(t)
	await(t, "a full pool", func() bool { return l.readyCount() == 4 })
	pooled, far := netip.MustParseAddr("10.64.3.3"), netip.MustParseAddr("10.64.3.77")
	for id, a := range map[string]netip.Addr{"pooled": pooled, "far": far} {
		at, err := l.Attach(t.Context(), id, AttachOptions{Address: a})
		must(t, err)
		if at.IPv4 != a {
			t.Errorf("asked for %s, got %s", a, at.IPv4)
		}
	}
	_, err := l.Attach(t.Context(), "late", AttachOptions{Address: far})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "far") {
		t.Errorf("a taken address: %v", err)
	}
	for _, a := range []string{"10.64.4.1", "10.64.3.0", "10.64.3.1", "10.64.3.255", "fd00::1"} {
		if _, err := l.Attach(t.Context(), "x", AttachOptions{Address: netip.MustParseAddr(a)}); !fault.Is(err, fault.Invalid) {
			t.Errorf("address %s: %v", a, err)
		}
	}
	if _, err := l.Attach(t.Context(), "../x", AttachOptions{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a path as id: %v", err)
	}
}

func TestMACAndSysctls(t *testing.T) {
	l := newLab(t)
	at, err := l.Attach(t.Context(), "a", AttachOptions{MAC: "02:42:ac:11:00:02", Sysctls: map[string]string{"net.ipv4.tcp_syncookies": "0"}})
	must(t, err)
	c := enter(t, "a", at)
	c.serve(80)
	if _, _, err := askHost(at.IPv4.String() + ":80"); err != nil {
		t.Error(err)
	}
	must(t, do(t, c.ns, func() error {
		eth, err := net.InterfaceByName("eth0")
		must(t, err)
		if eth.HardwareAddr.String() != "02:42:ac:11:00:02" {
			t.Errorf("MAC %s", eth.HardwareAddr)
		}
		for key, want := range map[string]string{"net/ipv4/tcp_syncookies": "0", "net/ipv4/ip_unprivileged_port_start": "0",
			"net/ipv4/ping_group_range": "0\t2147483647"} {
			if v, err := readSysctl(key); v != want {
				t.Errorf("%s is %q, %v", key, v, err)
			}
		}
		lo, err := net.InterfaceByName("lo")
		must(t, err)
		if lo.Flags&net.FlagUp == 0 {
			t.Error("loopback is down")
		}
		return nil
	}))
	for _, o := range []AttachOptions{{MAC: "no"}, {MAC: "01:00:5e:00:00:01"}, {Sysctls: map[string]string{"kernel.hostname": "x"}},
		{Sysctls: map[string]string{"net.ipv4.nothing": "1"}}, {Sysctls: map[string]string{"net.../../x": "1"}}} {
		if _, err := l.Attach(t.Context(), "bad", o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := l.Attach(t.Context(), "bad", AttachOptions{}); err != nil {
		t.Errorf("a failed attach stays in the way: %v", err)
	}
}

func TestRestartKeepsWhatRuns(t *testing.T) {
	l := newLab(t)
	a, b, client, gone := l.container("a"), l.container("b"), l.container("client"), l.container("gone")
	a.serve(80)
	b.serve(80)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	services := []*gantryv1.ServiceEndpoints{service("prod", "web", "10.96.0.1", []string{"front"}, a, b), service("prod", "client", "", []string{"front"}, client)}
	l.apply(nets, services...)
	conn, err := client.dial("10.96.0.1:80")
	must(t, err)
	defer conn.Close()
	banner(t, conn)

	l.stop()
	must(t, l.Close())
	echo(t, conn) // no daemon
	if _, _, err := client.ask("10.96.0.1:80"); err != nil {
		t.Errorf("without a daemon: %v", err)
	}
	// What a crash may leave: half a namespace, a record without sense, a lost route, a lost link.
	stray := l.names.netns + "/gv0a40034d"
	must(t, os.WriteFile(stray, nil, 0o600))
	must(t, os.WriteFile(l.names.records+"/broken.json", []byte("{"), 0o600))
	link, err := netlink.LinkByName(linkName(a.IPv4))
	must(t, err)
	must(t, netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(single(a.IPv4)), Scope: netlink.SCOPE_LINK}))
	link, err = netlink.LinkByName(linkName(b.IPv4))
	must(t, err)
	must(t, netlink.LinkDel(link))

	l.open()
	must(t, l.Retain(t.Context(), []string{"a", "b", "client"}))
	if _, err := os.Stat(stray); !os.IsNotExist(err) {
		t.Errorf("half a namespace stays: %v", err)
	}
	if _, err := os.Stat(gone.Netns); err == nil {
		await(t, "the released container to go", func() bool { _, err := os.Stat(gone.Netns); return os.IsNotExist(err) })
	}
	if at, err := l.Attach(t.Context(), "a", AttachOptions{}); err != nil || at != a.Attachment {
		t.Errorf("a was %v, is %v, %v", a.Attachment, at, err)
	}
	for _, c := range []*container{a, b} {
		if _, _, err := client.ask(c.IPv4.String() + ":80"); err != nil {
			t.Errorf("%s is not repaired: %v", c.id, err)
		}
	}
	echo(t, conn)
	l.apply(nets, services...)
	echo(t, conn)
}

func TestAddressComesBackAfterReboot(t *testing.T) {
	l := newLab(t)
	first, err := l.Attach(t.Context(), "a", AttachOptions{Address: netip.MustParseAddr("10.64.3.40"), MAC: "02:42:ac:11:00:02"})
	must(t, err)
	l.stop()
	must(t, l.Close())
	namespaces, err := os.ReadDir(l.names.netns)
	must(t, err)
	for _, e := range namespaces { // a reboot empties the directory and the kernel
		must(t, unix.Unmount(l.names.netns+"/"+e.Name(), unix.MNT_DETACH))
	}
	must(t, os.RemoveAll(l.opts.Run))
	link, err := netlink.LinkByName(linkName(first.IPv4))
	must(t, err)
	must(t, netlink.LinkDel(link))
	l.open()
	if at, ok := l.Attached("a"); ok {
		t.Errorf("before it is attached again: %v", at)
	}
	again, err := l.Attach(t.Context(), "a", AttachOptions{})
	must(t, err)
	if again != first {
		t.Errorf("%v, after a reboot %v", first, again)
	}
	enter(t, "a", again).serve(80)
	if _, _, err := askHost(again.IPv4.String() + ":80"); err != nil {
		t.Error(err)
	}
}

func TestFullRangeSaysSo(t *testing.T) {
	l := newLab(t, func(o *Options) { o.Subnet = netip.MustParsePrefix("10.64.3.0/29") })
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		_, err := l.Attach(t.Context(), id, AttachOptions{})
		must(t, err)
	}
	_, err := l.Attach(t.Context(), "f", AttachOptions{})
	if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	must(t, l.Detach(t.Context(), "c"))
	await(t, "the address to be free", func() bool { _, err := l.Attach(t.Context(), "f", AttachOptions{}); return err == nil })
}

func TestFlushedTableComesBack(t *testing.T) {
	l := newLab(t)
	a, client, stranger := l.container("a"), l.container("client"), l.container("stranger")
	a.serve(80)
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, service("prod", "web", "10.96.0.1", []string{"front"}, a),
		service("prod", "client", "", []string{"front"}, client))
	works := func() bool { _, _, err := client.ask("10.96.0.1:80"); return err == nil }
	c, err := nftables.New()
	must(t, err)
	await(t, "the watch", works)
	for what, change := range map[string]func(){
		"the ruleset is flushed": c.FlushRuleset,
		"a chain is flushed": func() {
			c.FlushChain(&nftables.Chain{Name: "forward", Table: &nftables.Table{Name: "gantry0", Family: nftables.TableFamilyINet}})
		},
	} {
		await(t, what, func() bool { // a second repair may be under way
			change()
			return c.Flush() == nil
		})
		await(t, "repair after "+what, func() bool {
			rules, err := c.GetRules(&nftables.Table{Name: "gantry0", Family: nftables.TableFamilyINet}, &nftables.Chain{Name: "forward"})
			return err == nil && len(rules) == 4
		})
		if !works() {
			t.Errorf("%s, and the service does not come back", what)
		}
		if l.Figures().Rewrites.Value() == 0 {
			t.Errorf("%s, and no writing of the whole table is counted", what)
		}
		stranger.cannotReach(a.IPv4.String() + ":80")
	}
}

func TestATableThatCouldNotBeWrittenComesBackALittleLater(t *testing.T) {
	l := newLab(t)
	l.apply(nil)
	c, err := nftables.New()
	must(t, err)
	forward := &nftables.Chain{Name: "forward", Table: &nftables.Table{Name: "gantry0", Family: nftables.TableFamilyINet}}
	await(t, "the watch", func() bool { // somebody listens to the group of nftables, the seventh
		sockets, err := os.ReadFile("/proc/thread-self/net/netlink")
		must(t, err)
		return strings.Contains(string(sockets), " 00000040 ")
	})
	fails := func([]mdlayher.Message) ([]mdlayher.Message, error) { return nil, syscall.ENOBUFS }
	l.applying.Lock()
	l.nft.close()
	l.nft.conn, err = nftables.New(nftables.WithTestDial(fails))
	must(t, err)
	c.FlushChain(forward) // a single event
	must(t, c.Flush())
	l.applying.Unlock()
	await(t, "the second attempt", func() bool {
		all, err := c.GetRules(forward.Table, forward) // which may be interrupted
		return err == nil && len(all) > 0
	})
}

func TestTheTableCanBeListed(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal("no nft on this machine: apt-get install nftables")
	}
	l := newLab(t)
	a, b := l.container("a"), l.container("b")
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, true)}, service("prod", "web", "10.96.0.1", []string{"front"}, a, b))
	out, err := exec.Command(nft, "list", "table", "inet", "gantry0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		t.Log(s.Text())
	}
	if !strings.Contains(string(out), a.IPv4.String()) {
		t.Errorf("the list does not name %s", a.IPv4)
	}
}

func TestForeignDeviceIsNotTouched(t *testing.T) {
	l := newLab(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other0"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other1"}))
	t.Cleanup(func() { must(t, netlink.LinkDel(&netlink.Device{LinkAttrs: attrs})) })
	o := l.opts
	o.Bridge, o.Root, o.Subnet = "other0", t.TempDir(), netip.MustParsePrefix("10.65.0.0/24")
	if _, err := Open(t.Context(), o); !fault.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
		t.Errorf("a device of another kind in the bridge's place: %v", err)
	}
	if _, err := netlink.LinkByName("other0"); err != nil {
		t.Errorf("the device is gone: %v", err)
	}
}

func TestRangeOfTheHostIsRefused(t *testing.T) {
	l := newLab(t)
	l.remote() // 192.0.2.0/24 is the uplink's
	o := l.opts
	o.Bridge, o.Root, o.Run = "gantry1", t.TempDir(), t.TempDir()
	for _, ranges := range [][2]string{{"192.0.2.0/24", "10.97.0.0/16"}, {"10.65.0.0/24", "192.0.0.0/16"}, {"10.64.0.0/16", "10.97.0.0/16"}} {
		o.Subnet, o.VirtualIPs = netip.MustParsePrefix(ranges[0]), netip.MustParsePrefix(ranges[1])
		if _, err := Open(t.Context(), o); !fault.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
			t.Errorf("%v: %v", ranges, err)
		}
	}
	link, err := netlink.LinkByName("gantry1")
	must(t, err)
	must(t, netlink.LinkDel(link))
}

// TestAContainerThatBreaksItsNetworkKeepsNoDaemonFromStarting has one, which may have CAP_NET_ADMIN, put something else in the
// place of its link.
func TestAContainerThatBreaksItsNetworkKeepsNoDaemonFromStarting(t *testing.T) {
	l := newLab(t)
	broken, sound := l.container("broken"), l.container("sound")
	l.stop() // it mends what is missing at once
	must(t, l.Close())
	for _, args := range [][]string{{"link", "delete", "eth0"}, {"link", "add", "eth0", "type", "bridge"}} {
		if out, err := exec.Command("nsenter", append([]string{"--net=" + broken.Netns, "ip"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	l.open()
	again, err := l.Attach(t.Context(), "sound", AttachOptions{})
	must(t, err)
	if again.IPv4 != sound.IPv4 {
		t.Errorf("the other one had %s and has %s", sound.IPv4, again.IPv4)
	}
}
