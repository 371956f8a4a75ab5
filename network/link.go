package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/addresses"
)

// inside is the name of the device in a container.
const inside = "eth0"

// trash is the interface group of links about to be deleted: the kernel deletes a whole group with one wait.
const trash = 0x3fffffff

// hostMAC is the address of our end of every link. Each link is a segment of its own, so that they cannot collide.
func hostMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x67, 0, 0, 0, 1} }

// linkName names the host's end of an address's link, and the namespace's file.
func linkName(a netip.Addr) string { return fmt.Sprintf("gv%08x", addresses.Number(a)) }

func (n *Network) netnsPath(a netip.Addr) string { return filepath.Join(n.names.netns, linkName(a)) }

func (r *record) mac() net.HardwareAddr {
	if m, err := net.ParseMAC(r.MAC); err == nil {
		return m
	}
	b := r.Address.As4()
	return net.HardwareAddr{0x02, 0x67, b[0], b[1], b[2], b[3]}
}

// build makes the namespace and the link of a record. It leaves nothing behind when it fails.
func (n *Network) build(r *record) error {
	path := n.netnsPath(r.Address)
	dropNetns(path)
	h, err := n.newNetns(path)
	if err == nil {
		defer h.Close()
		err = n.wire(r, path, h)
	}
	if err != nil {
		n.destroy([]*record{r})
		return fault.Wrap(exhaustedOr(err, fault.Internal), err, "make the network of %s", r.Address)
	}
	r.live = true
	return nil
}

func exhaustedOr(err error, other fault.Kind) fault.Kind {
	switch err {
	case syscall.ENOSPC, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE:
		return fault.Exhausted
	}
	return other
}

// newNetns makes a namespace that lives as long as its file, and returns a netlink handle inside of it.
func (n *Network) newNetns(path string) (*netlink.Handle, error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := n.makeNamespace(path); err != nil {
		return nil, err
	}
	var h *netlink.Handle
	err := n.entered(path, func() (err error) {
		if err := namespaceSysctls(); err != nil {
			return err
		}
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// makeNamespace makes a namespace that is mounted at path.
func (n *Network) makeNamespace(path string) error {
	if n.opts.Namespace != nil {
		return n.opts.Namespace(path)
	}
	return n.elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the namespace: %w", err)
		}
		return nil
	})
}

// elsewhere runs do on a thread that enter has moved to another network namespace, and brings the thread back.
func (n *Network) elsewhere(enter, do func() error) error {
	runtime.LockOSThread()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err := do()
	if back := unix.Setns(int(n.host.Fd()), unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked and dies with its goroutine rather than serve others from a wrong namespace
	}
	runtime.UnlockOSThread()
	return err
}

// namespaceSysctls are the defaults of a container's namespace, as Docker has them: processes without privileges may bind
// low ports and ping, and nobody can talk the container into another route.
func namespaceSysctls() error {
	for _, kv := range [][2]string{
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
		{"net/ipv4/conf/all/accept_redirects", "0"},
	} {
		if err := os.WriteFile("/proc/sys/"+kv[0], []byte(kv[1]), 0); err != nil {
			return fmt.Errorf("set %s: %w", kv[0], err)
		}
	}
	for _, key := range []string{"accept_ra", "accept_dad", "accept_redirects"} { // absent without IPv6
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/"+key, []byte("0"), 0)
	}
	return nil
}

// wire joins a namespace to the host by a veth pair.
func (n *Network) wire(r *record, path string, h *netlink.Handle) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group, attrs.HardwareAddr = linkName(r.Address), n.opts.MTU, n.group, hostMAC()
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = inside, r.mac(), uint32(n.opts.MTU)
	veth.PeerNamespace = netlink.NsFd(ns.Fd())
	if err := n.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the veth pair: %w", err)
	}
	if err := n.wireInside(r, h); err != nil {
		return fmt.Errorf("inside: %w", err)
	}
	if err := n.wireHost(r, veth.Attrs().Index); err != nil {
		return fmt.Errorf("outside: %w", err)
	}
	return awaitCarrier(h)
}

// awaitCarrier waits until the container's end sends. It came up before the host's end, and the kernel drops what a device
// sends between the moment its carrier appears and the work that notices. Since Linux 6.13 the first look does that work.
func awaitCarrier(h *netlink.Handle) error {
	for range 1000 {
		eth, err := h.LinkByName(inside)
		if err != nil {
			return err
		}
		if eth.Attrs().OperState == netlink.OperUp {
			return nil
		}
		<-time.After(time.Millisecond)
	}
	return fmt.Errorf("%s has no carrier", inside)
}

// wireInside gives the container one address and the way to everything through the host.
func (n *Network) wireInside(r *record, h *netlink.Handle) error {
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	eth, err := h.LinkByName(inside)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(eth); err != nil {
		return err
	}
	for _, side := range n.sides(r) {
		if err := h.AddrReplace(eth, &netlink.Addr{IPNet: ipNet(single(side.container)), Flags: syscall.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", side.container, err)
		}
		// A fixed neighbour saves the first packet a round of address resolution, and nobody can answer in the gateway's name.
		if err := h.NeighSet(permanent(eth.Attrs().Index, side.gateway, hostMAC())); err != nil {
			return fmt.Errorf("neighbour: %w", err)
		}
		route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: side.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
	}
	return nil
}

// side is one address family of a link.
type side struct{ container, gateway netip.Addr }

func (n *Network) sides(r *record) []side {
	s := []side{{r.Address, n.Gateway()}}
	if n.opts.Subnet6.IsValid() {
		s = append(s, side{n.address6(r.Address), n.Gateway6()})
	}
	return s
}

func permanent(link int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
}

// wireHost routes the container's addresses to its link.
func (n *Network) wireHost(r *record, index int) error {
	name := linkName(r.Address)
	if err := n.linkSysctls(name); err != nil {
		return err
	}
	if err := n.links.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index, Name: name}}); err != nil {
		return err
	}
	for _, side := range n.sides(r) {
		if err := n.links.NeighSet(permanent(index, side.container, r.mac())); err != nil {
			return fmt.Errorf("neighbour %s: %w", side.container, err)
		}
		route := &netlink.Route{LinkIndex: index, Dst: ipNet(single(side.container)), Scope: netlink.SCOPE_LINK}
		if side.container.Is6() {
			route.Scope = netlink.SCOPE_UNIVERSE
		}
		if err := n.links.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s: %w", side.container, err)
		}
	}
	return nil
}

// linkSysctls prepares a device that leads to containers.
func (n *Network) linkSysctls(name string) error {
	// Replies to 127.0.0.1 come back through the link, for ports published there. The table drops all else to 127/8.
	if err := writeSysctl("net/ipv4/conf/"+name+"/route_localnet", "1"); err != nil {
		return err
	}
	_ = writeSysctl("net/ipv4/conf/"+name+"/send_redirects", "0") // the default works too, the table drops them
	_ = writeSysctl("net/ipv6/conf/"+name+"/addr_gen_mode", "1")  // no link-local address: nothing would use it
	_ = writeSysctl("net/ipv6/conf/"+name+"/accept_ra", "0")      // absent without IPv6
	return nil
}

// rewire makes sure that a live namespace has its link, as whole as build would have made it.
func (n *Network) rewire(r *record) error {
	link, err := n.links.LinkByName(linkName(r.Address))
	if err == nil && link.Attrs().MTU == n.opts.MTU {
		return n.wireHost(r, link.Attrs().Index)
	}
	h, err2 := n.handleIn(r)
	if err2 != nil {
		return fault.Wrap(fault.Internal, err2, "enter the network of %s", r.ID)
	}
	defer h.Close()
	if err == nil {
		err = errors.Join(n.resize(link, h), n.wireHost(r, link.Attrs().Index))
	} else {
		n.log.Warn("a container's link was gone and is made anew", "container", r.ID, "address", r.Address)
		err = n.wire(r, n.netnsPath(r.Address), h)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "repair the network of %s", r.ID)
	}
	return nil
}

// handleIn is a netlink handle in the record's namespace.
func (n *Network) handleIn(r *record) (h *netlink.Handle, err error) {
	err = n.within(r, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// resize gives both ends of a link the MTU of today: the machine may have joined a cluster since, or left it.
func (n *Network) resize(link netlink.Link, h *netlink.Handle) error {
	if err := n.links.LinkSetMTU(link, n.opts.MTU); err != nil {
		return err
	}
	eth, err := h.LinkByName(inside)
	if err != nil {
		return err
	}
	return h.LinkSetMTU(eth, n.opts.MTU)
}

// within runs do on a thread in the record's namespace.
func (n *Network) within(r *record, do func() error) error {
	return n.entered(n.netnsPath(r.Address), do)
}

// entered runs do on a thread in the namespace at path.
func (n *Network) entered(path string, do func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return n.elsewhere(func() error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) }, do)
}

func (n *Network) setSysctls(r *record, values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	return n.within(r, func() error {
		for key, value := range values {
			path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return fault.Wrap(fault.Invalid, err, "set sysctl %s to %q", key, value).WithHint("sysctl %s shows it on the host", key)
			}
		}
		return nil
	})
}

// destroy deletes namespaces and links of records, all with one wait of the kernel.
func (n *Network) destroy(rs []*record) {
	names := map[string]bool{}
	for _, r := range rs {
		names[linkName(r.Address)] = true
		dropNetns(n.netnsPath(r.Address))
		r.live = false
	}
	n.deleteLinks(func(name string) bool { return names[name] })
}

// dumps bounds how often the kernel is asked for a list that changes while it is told.
const dumps = 20

// whole asks until a list was told in one piece.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for attempt := 1; ; attempt++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == dumps {
			return all, err
		}
	}
}

// deleteLinks deletes those of our links that match.
func (n *Network) deleteLinks(match func(name string) bool) {
	links, err := whole(n.links.LinkList)
	if err != nil {
		n.log.Warn("network links cannot be listed", "err", err)
		return
	}
	found := false
	for _, l := range links {
		a := l.Attrs()
		if l.Type() == "veth" && (a.Group == n.group || a.Group == trash) && match(a.Name) {
			found = n.links.LinkSetGroup(l, trash) == nil || found // a namespace that died first took the link with it
		}
	}
	if found {
		n.deleteGroup()
	}
}

func (n *Network) deleteGroup() {
	if err := deleteGroup(trash); err != nil {
		n.log.Warn("network links cannot be deleted", "err", err)
	}
}
