// Package overlay is the way from the instances of one node to those of the others: one device, a route per other node, and
// no other state. VXLAN carries packets as they are; WireGuard, the kernel's or the one in this process, encrypts them.
//
// Open makes the device, Run stays beside it, Set says which machines there are, Ensure puts back what somebody else took
// away; all are safe in parallel. Close leaves the device to the instances that go on running, except that WireGuard in this process ends with it.
//
// The package decides nothing about who may talk to whom: package network filters what comes and goes through the device.
package overlay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// Kinds of overlay.
const (
	VXLAN     = "vxlan"
	WireGuard = "wireguard"
)

// Default UDP ports.
const (
	VXLANPort     = 7452
	WireGuardPort = 7453
)

// Protocol marks our routes, so that they can be told from those of others: a number that /etc/iproute2/rt_protos leaves free.
const Protocol = 71

// Options of an Overlay. All but Subnet6, Range, Range6 and Logger are required.
type Options struct {
	// Kind is VXLAN or WireGuard.
	Kind string
	// Device is the name of the device, Group its interface group.
	Device string
	Group  uint32
	// Address is where other machines reach this one, Port the UDP port of all of them.
	Address netip.Addr
	Port    uint16
	// Subnet and Subnet6 are this node's ranges of instance addresses.
	Subnet, Subnet6 netip.Prefix
	// Range and Range6 are the ranges that all nodes' come from. What no node has is unreachable, so that no packet for an
	// instance ever takes the way to the outside.
	Range, Range6 netip.Prefix
	// MTU of the device.
	MTU int
	// KeyFile holds the private key of WireGuard.
	KeyFile string
	Logger  *slog.Logger
}

// Peer is another machine.
type Peer struct {
	Address netip.Addr   `json:"address"`
	Subnet  netip.Prefix `json:"subnet"`
	Subnet6 netip.Prefix `json:"subnet6"`
	// Key is its public key, base64; needed by WireGuard only.
	Key string `json:"key,omitempty"`
}

// tunnel is what an overlay's packets go through.
type tunnel interface {
	// ensure makes the device, or corrects the one that is there. made says that it forgot all peers.
	ensure() (link netlink.Link, made bool, err error)
	// takes reports whether a peer can be put.
	takes(p Peer) bool
	// put adds a peer or changes it.
	put(link netlink.Link, p Peer) error
	// drop removes a peer. One that is not there is no error.
	drop(link netlink.Link, p Peer) error
	// retain removes all but these.
	retain(link netlink.Link, peers []Peer) error
	// met reports whether nothing more is to be done for a peer that was put.
	met(p Peer) bool
	// route completes the route to a peer.
	route(r *netlink.Route, gateway netip.Addr)
	close()
}

// Overlay is one node's end. Make it with Open.
type Overlay struct {
	o      Options
	links  *netlink.Handle
	tunnel tunnel

	mu    sync.Mutex
	link  netlink.Link
	made  bool                  // the device is new and knows no peers
	peers map[netip.Prefix]Peer // by Subnet
	young map[netip.Prefix]int  // peers not known to have been met, and how often they were put
	wake  chan struct{}
}

// Open makes the device and the ways to the peers, or takes over what an earlier daemon left.
func Open(links *netlink.Handle, o Options, peers []Peer) (*Overlay, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	v := &Overlay{o: o, links: links, peers: map[netip.Prefix]Peer{}, young: map[netip.Prefix]int{}, wake: make(chan struct{}, 1)}
	for _, p := range peers {
		v.peers[p.Subnet] = p
	}
	var err error
	switch o.Kind {
	case VXLAN:
		v.tunnel = &vxlan{o: o, links: links}
	case WireGuard:
		v.tunnel, err = newWireGuard(links, o)
	default:
		err = fault.New(fault.Invalid, "%q is no kind of overlay", o.Kind).WithHint("it is %s or %s", VXLAN, WireGuard)
	}
	if err != nil {
		return nil, err
	}
	if err := v.ensureDevice(); err != nil {
		v.Close()
		return nil, err
	}
	if err := v.ensurePeers(); err != nil {
		o.Logger.Warn("not every node can be reached; this is tried again", "err", err)
	}
	return v, nil
}

// Ensure makes device and routes what they should be, whatever happened to them.
func (v *Overlay) Ensure() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.ensureDevice(); err != nil {
		return err
	}
	return v.ensurePeers()
}

func (v *Overlay) ensureDevice() error {
	if err := v.catch(); err != nil {
		return fault.Wrap(fault.Unsupported, err, "make %s unreachable but for the nodes in it", v.o.Range)
	}
	link, made, err := v.tunnel.ensure()
	if err != nil {
		return err
	}
	if made && v.link != nil {
		v.o.Logger.Warn("the overlay's device was removed; it is made anew", "device", v.o.Device)
	}
	v.link, v.made = link, v.made || made
	return nil
}

// ensurePeers does what it can for all of them before it fails for one.
func (v *Overlay) ensurePeers() error {
	peers := v.sorted()
	failures := []error{v.tunnel.retain(v.link, peers), v.retainRoutes()}
	for _, p := range peers {
		failures = append(failures, v.put(p))
		if v.made {
			v.meet(p)
		}
	}
	v.made = false
	return v.failed(errors.Join(failures...))
}

func (v *Overlay) failed(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Internal, err, "set up the overlay %s", v.o.Device).WithHint("ip -d link show %s; ip route", v.o.Device)
}

func (v *Overlay) sorted() []Peer {
	out := make([]Peer, 0, len(v.peers))
	for _, p := range v.peers {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Peer) int { return a.Subnet.Addr().Compare(b.Subnet.Addr()) })
	return out
}

// catch makes the whole range unreachable; routes to single nodes and containers come before it.
func (v *Overlay) catch() error {
	if err := freeRanges(v.links, v.o.Subnet, v.o.Range); err != nil {
		return err
	}
	for _, p := range []netip.Prefix{v.o.Range, v.o.Range6} {
		if !p.IsValid() {
			continue
		}
		r := &netlink.Route{Dst: ipNet(p), Type: unix.RTN_UNREACHABLE, Protocol: Protocol}
		if err := v.links.RouteReplace(r); err != nil {
			return err
		}
	}
	return nil
}

// Set says which other machines there are. Only what changed costs anything. It does what it can for all of them before it
// fails for one.
func (v *Overlay) Set(peers []Peer) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	want := make(map[netip.Prefix]Peer, len(peers))
	for _, p := range peers {
		want[p.Subnet] = p
	}
	var failures []error
	for subnet, old := range v.peers {
		if now, stays := want[subnet]; stays && (now == old || v.replaces(now, old)) {
			continue
		}
		delete(v.peers, subnet)
		failures = append(failures, v.remove(old))
	}
	for subnet, p := range want {
		if v.peers[subnet] == p {
			continue
		}
		v.peers[subnet] = p
		if err := v.put(p); err != nil {
			delete(v.peers, subnet) // so that the next Set tries again
			failures = append(failures, err)
			continue
		}
		v.meet(p)
	}
	return v.failed(errors.Join(failures...))
}

// replaces reports whether putting a peer leaves nothing of what it was before. WireGuard would go on waiting for answers
// from an old address.
func (v *Overlay) replaces(now, old Peer) bool {
	return now.Subnet6 == old.Subnet6 && now.Key == old.Key && (now.Address == old.Address || v.o.Kind == VXLAN)
}

func (v *Overlay) put(p Peer) error {
	if !v.tunnel.takes(p) {
		v.o.Logger.Warn("a node has no key for the encrypted overlay; its instances are not reachable", "address", p.Address, "subnet", p.Subnet)
		return v.remove(p)
	}
	if err := v.tunnel.put(v.link, p); err != nil {
		return fmt.Errorf("peer %s: %w", p.Address, err)
	}
	for _, r := range v.routes(p) {
		if err := v.links.RouteReplace(r); err != nil {
			return fmt.Errorf("route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

func (v *Overlay) remove(p Peer) error {
	for _, r := range v.routes(p) {
		if err := v.links.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("route to %s: %w", r.Dst, err)
		}
	}
	for _, other := range v.peers { // a node that changed its range is a peer still
		if p.Key != "" && other.Key == p.Key && other.Subnet != p.Subnet {
			return nil
		}
	}
	if err := v.tunnel.drop(v.link, p); err != nil {
		return fmt.Errorf("peer %s: %w", p.Address, err)
	}
	return nil
}

// routes to a peer's instances. Their source is our gateway, so that processes of this machine can be answered.
func (v *Overlay) routes(p Peer) []*netlink.Route {
	index := v.link.Attrs().Index
	r := &netlink.Route{LinkIndex: index, Dst: ipNet(p.Subnet), Src: Gateway(v.o.Subnet).AsSlice(), Protocol: Protocol}
	v.tunnel.route(r, Gateway(p.Subnet))
	out := []*netlink.Route{r}
	if p.Subnet6.IsValid() && v.o.Subnet6.IsValid() {
		r6 := &netlink.Route{LinkIndex: index, Dst: ipNet(p.Subnet6), Src: Gateway6(v.o.Subnet6, v.o.Subnet).AsSlice(), Protocol: Protocol}
		v.tunnel.route(r6, Gateway6(p.Subnet6, p.Subnet))
		out = append(out, r6)
	}
	return out
}

// retainRoutes removes the routes of our device that lead to no peer.
func (v *Overlay) retainRoutes() error {
	keep := map[string]bool{}
	for _, p := range v.peers {
		keep[p.Subnet.String()], keep[p.Subnet6.String()] = true, true
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{LinkIndex: v.link.Attrs().Index, Protocol: Protocol}
		routes, err := v.links.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return err
		}
		for _, r := range routes {
			if r.Dst != nil && !keep[prefix(r.Dst).String()] {
				_ = v.links.RouteDel(&r) // it may have gone meanwhile
			}
		}
	}
	return nil
}

// Two nodes that learn of each other in the same moment both begin, and then neither answers; one that learns first speaks
// to somebody who does not know it yet. WireGuard tries again after five seconds. We begin anew earlier, each at a time of its
// own, until they have met. Each wait is twice as long as the one before, so that there is time enough for slow ways too.
const (
	meetAfter  = 500 * time.Millisecond
	meetSpread = 500 * time.Millisecond
	meetTries  = 4
)

// meet has Run look after a new peer.
func (v *Overlay) meet(p Peer) {
	if v.tunnel.met(p) {
		return
	}
	v.young[p.Subnet] = 0
	select {
	case v.wake <- struct{}{}:
	default: // it has not seen the last one yet
	}
}

// Run helps new peers meet until ctx ends.
func (v *Overlay) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-v.wake:
		}
		for wait, more := meetAfter+rand.N(meetSpread), true; more; wait *= 2 {
			select {
			case <-ctx.Done():
				return nil
			case <-v.wake: // somebody else is new
				wait = (meetAfter + rand.N(meetSpread)) / 2 // doubled before it counts
			case <-time.After(wait):
				more = v.introduce()
			}
		}
	}
}

// introduce puts young peers anew and reports whether there are some left.
func (v *Overlay) introduce() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for subnet, tries := range v.young {
		p, there := v.peers[subnet]
		if !there || !v.tunnel.takes(p) || tries == meetTries || v.tunnel.met(p) {
			delete(v.young, subnet)
			continue
		}
		v.young[subnet]++
		if err := errors.Join(v.tunnel.drop(v.link, p), v.tunnel.put(v.link, p)); err != nil {
			v.o.Logger.Warn("a node cannot be met", "address", p.Address, "err", err)
		}
	}
	return len(v.young) > 0
}

// Index is the number of the device.
func (v *Overlay) Index() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.link.Attrs().Index
}

// Close lets go of the device.
func (v *Overlay) Close() { v.tunnel.close() }

// Remove takes device and routes away. What another network has made in its place is left alone.
func (v *Overlay) Remove() error {
	v.tunnel.close()
	for _, p := range []netip.Prefix{v.o.Range, v.o.Range6} {
		if p.IsValid() {
			_ = v.links.RouteDel(&netlink.Route{Dst: ipNet(p), Type: unix.RTN_UNREACHABLE, Protocol: Protocol})
		}
	}
	return removeDevice(v.links, v.o.Device, v.o.Group)
}

// freeRanges removes routes that made earlier ranges of nodes around our own unreachable.
func freeRanges(links *netlink.Handle, subnet, keep netip.Prefix) error {
	filter := &netlink.Route{Protocol: Protocol, Type: unix.RTN_UNREACHABLE}
	routes, err := links.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	for _, r := range routes {
		if r.Dst != nil && prefix(r.Dst) != keep && prefix(r.Dst).Overlaps(subnet) {
			_ = links.RouteDel(&r) // it may have gone meanwhile
		}
	}
	return nil
}

// RemoveLeft removes what an earlier overlay has left, for a machine that stands alone again.
func RemoveLeft(links *netlink.Handle, name string, group uint32, subnet netip.Prefix) error {
	if err := freeRanges(links, subnet, netip.Prefix{}); err != nil {
		return err
	}
	return removeDevice(links, name, group)
}

func removeDevice(links *netlink.Handle, name string, group uint32) error {
	link, err := links.LinkByName(name)
	if err != nil || link.Attrs().Group != group {
		return nil
	}
	return links.LinkDel(link)
}

// Overhead is how many bytes of each packet the overlay takes, when its packets go to addresses like this.
func Overhead(kind string, underlay netip.Addr) int {
	const ethernet, udp, vxlanHeader, wireGuardHeader = 14, 8, 8, 32
	ip := 20
	if underlay.Is6() {
		ip = 40
	}
	if kind == WireGuard {
		return ip + udp + wireGuardHeader + 20 // wg-quick leaves room for IPv6 in any case
	}
	return ip + udp + vxlanHeader + ethernet
}

// Gateway is the address that a node has in its own range.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next() }

// Gateway6 is the IPv6 form of Gateway.
func Gateway6(subnet6, subnet netip.Prefix) netip.Addr { return Embed(subnet6, Gateway(subnet)) }

// Embed is the IPv6 address that belongs to an IPv4 one: the range's prefix and the IPv4 address as the last 32 bits.
func Embed(subnet6 netip.Prefix, a netip.Addr) netip.Addr {
	b, a4 := subnet6.Addr().As16(), a.As4()
	copy(b[12:], a4[:])
	return netip.AddrFrom16(b)
}

// Range6 is the private IPv6 range of a cluster, which all of its nodes derive alike.
func Range6(cluster string) netip.Prefix {
	h := sha256.Sum256([]byte("gantry overlay " + cluster))
	b := [16]byte{0: 0xfd}
	copy(b[1:6], h[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// Subnet6 is the part of a cluster's IPv6 range that belongs to the node with an IPv4 range.
func Subnet6(cluster string, subnet netip.Prefix) netip.Prefix {
	b, a4 := Range6(cluster).Addr().As16(), subnet.Addr().As4()
	copy(b[8:12], a4[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 96)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
