// Package network connects the containers of one node: addresses, isolation between networks, virtual addresses of
// services, published ports and the way to the outside, all by netlink and nftables in this process.
//
// Call Open first, then run Run beside it; Attach gives a container its network namespace and address, Publish reserves
// ports of the host, and Apply makes the kernel match the endpoints of the whole cluster. Close leaves everything in place
// for the containers that go on running, and the next Open finds it; Cleanup removes it. All methods are safe in parallel.
//
// The package knows no containers, services or stores: it is told addresses, names of owners and isolation groups. It
// answers no DNS; that is package discovery. DESIGN.md beside this file says why the links are routed and not bridged.
package network

import (
	"context"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/addresses"
	"github.com/gantryd/gantry/network/overlay"
	"github.com/gantryd/gantry/network/segment"
)

// Options of a Network. Root, Run, Bridge and Subnet are required.
type Options struct {
	// Root is the directory for what must survive a restart of the daemon: who has which address and port.
	Root string
	// Run is the directory for network namespaces, normally on a tmpfs that a reboot empties.
	Run string
	// Bridge names the device that holds the node's gateway address, and the nftables table. At most 15 bytes.
	Bridge string
	// Subnet is the node's range of container addresses; its first address is the gateway.
	Subnet netip.Prefix
	// VirtualIPs is the range of services' virtual addresses, the same on every node. It must not overlap Subnet.
	VirtualIPs netip.Prefix
	// Subnet6 is the node's IPv6 range, at most a /96. Unset, a private one is derived and kept under Root.
	Subnet6 netip.Prefix
	// Address is where other machines reach this one; packets between nodes come from it and go there. Unset, the machine
	// stands alone.
	Address netip.Addr
	// Overlay carries packets between nodes: "vxlan", which is the default, or "wireguard", which encrypts them. Open fails
	// rather than go without encryption that was asked for.
	Overlay string
	// OverlayPort is the overlay's UDP port, the same on every node; 0 means 7452 for VXLAN and 7453 for WireGuard.
	OverlayPort uint16
	// NodeRange is the range that the Subnets of all nodes come from. What of it no known node has is unreachable.
	NodeRange netip.Prefix
	// Cluster is the cluster's ID. IPv6 ranges of nodes that are not given follow from it; without it and Subnet6, containers
	// of a machine with an Address have no IPv6.
	Cluster string
	// DisableIPv6 leaves containers without IPv6 even where the host has it.
	DisableIPv6 bool
	// MTU of the containers' links; 0 takes that of the host's default route, or of the device that has Address less what the
	// overlay adds.
	MTU int
	// Namespace makes a network namespace at path, which exists, for containers in user namespaces. Unset, namespaces belong
	// to the daemon's own user.
	Namespace func(path string) error `json:"-"`
	// PoolSize is the number of namespaces kept ready for Attach; 0 means 16, negative none.
	PoolSize int
	Logger   *slog.Logger
}

// Network is the network of one node. Make it with Open.
type Network struct {
	opts  Options
	log   *slog.Logger
	group uint32
	names names
	host  *os.File // the daemon's own network namespace
	links *netlink.Handle
	nft   *ruleset
	ports *portTable
	// overlay is the way to other nodes, nil for a machine that stands alone.
	overlay *overlay.Overlay

	mu        sync.Mutex
	addresses *addresses.Pool
	attached  map[string]*record
	ready     []*record // links made ahead, without an owner
	dying     []*record // links whose owner is gone, to be deleted together
	wake      chan struct{}

	applying sync.Mutex
	segments *segment.Table
	applied  *builder            // the model that the kernel has; nil until the first Apply
	met      *[]overlay.Peer     // that the overlay has; nil before the first time
	removed  bool                // by Cleanup: nobody may put the table back
	lost     unanswered          // backends that a service has lost since unanswered connections were last looked for
	losing   chan struct{}       // has one when there are such
	closed   map[netip.Addr]bool // containers that are gone, and had closed connections left
	uncut    flows               // what could not be forgotten, and is to be with the next Apply

	figures Figures
}

type names struct{ root, netns, records, ports, host, nodes string }

// Open prepares the node's network. It is idempotent: what an earlier daemon left is found, links of recorded containers
// are kept and repaired, everything half-made is removed. IP forwarding is switched on; the value before is recorded.
func Open(ctx context.Context, opts Options) (*Network, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	n := &Network{opts: opts, log: opts.Logger, group: groupOf(opts.Bridge), attached: map[string]*record{},
		wake: make(chan struct{}, 1), losing: make(chan struct{}, 1), lost: unanswered{}, closed: map[netip.Addr]bool{}, segments: segment.New(), names: namesUnder(opts)}
	for _, dir := range []string{n.names.netns, n.names.records} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "make the network's directory")
		}
	}
	if err := n.open(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) open(ctx context.Context) (err error) {
	if n.host, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return fault.Wrap(fault.Unsupported, err, "open the daemon's network namespace")
	}
	if n.links, err = netlink.NewHandle(); err != nil {
		return fault.Wrap(fault.Unsupported, err, "open netlink")
	}
	if err := n.chooseIPv6(); err != nil {
		return err
	}
	n.addresses = addresses.New(n.opts.Subnet)
	if err := n.prepareHost(); err != nil {
		return err
	}
	if n.nft, err = openRuleset(n.tableOptions()); err != nil {
		return err
	}
	if n.ports, err = openPortTable(n.names.ports, n.log); err != nil {
		return err
	}
	// The table comes before any link: a container must never be reachable while nothing filters.
	if err := n.nft.ensureBase(); err != nil {
		return err
	}
	if err := n.openOverlay(); err != nil {
		return err
	}
	return n.recover(ctx)
}

func (o Options) complete() (Options, error) {
	switch {
	case o.Root == "" || o.Run == "":
		return o, fault.New(fault.Invalid, "network: Root and Run must be set")
	case o.Bridge == "" || len(o.Bridge) > 15:
		return o, fault.New(fault.Invalid, "network: the bridge's name %q must have 1 to 15 bytes", o.Bridge)
	case !o.Subnet.IsValid() || !o.Subnet.Addr().Is4() || o.Subnet.Bits() > 30:
		return o, fault.New(fault.Invalid, "network: %s is no IPv4 range of at least four addresses", o.Subnet)
	case o.VirtualIPs.IsValid() && (!o.VirtualIPs.Addr().Is4() || o.VirtualIPs.Overlaps(o.Subnet)):
		return o, fault.New(fault.Invalid, "network: virtual addresses %s must be IPv4 and outside of %s", o.VirtualIPs, o.Subnet)
	case o.Subnet6.IsValid() && (!o.Subnet6.Addr().Is6() || o.Subnet6.Bits() > 96):
		return o, fault.New(fault.Invalid, "network: %s is no IPv6 range of /96 or larger", o.Subnet6)
	}
	o.Subnet, o.VirtualIPs, o.Subnet6 = o.Subnet.Masked(), o.VirtualIPs.Masked(), o.Subnet6.Masked()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PoolSize == 0 {
		o.PoolSize = 16
	}
	return o.completeOverlay()
}

func namesUnder(o Options) names {
	root := filepath.Join(o.Root, "network")
	return names{root: root, netns: filepath.Join(o.Run, "netns"), records: filepath.Join(root, "attachments"),
		ports: filepath.Join(root, "ports.json"), host: filepath.Join(root, "host.json"),
		nodes: filepath.Join(root, "nodes.json")}
}

// groupOf gives the interface group that marks our links, so that rules match a number and never a list of names.
func groupOf(bridge string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(bridge))
	return h.Sum32()&0x3fffffff | 0x40000000
}

// Close lets go of netlink and of reserved ports. Kernel state stays, for the containers that go on running.
func (n *Network) Close() error {
	if n.ports != nil {
		n.ports.close()
	}
	if n.nft != nil {
		n.nft.close()
	}
	if n.overlay != nil {
		n.overlay.Close()
	}
	if n.links != nil {
		n.links.Close()
	}
	if n.host != nil {
		n.host.Close()
	}
	return nil
}

// Run keeps links ready for Attach, deletes those of Detach, serves the user-space side of published ports and puts back what
// somebody else removes or changes: the nftables table, devices, routes, forwarding. It returns when ctx ends.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.keepPool(ctx) })
	g.Go(func() error { return n.watchTable(ctx) })
	g.Go(func() error { return n.watchHost(ctx) })
	g.Go(func() error { return n.moveUnanswered(ctx) })
	if n.overlay != nil {
		g.Go(func() error { return n.overlay.Run(ctx) })
	}
	g.Go(func() error { return n.ports.serve(ctx) })
	return g.Wait()
}

// Gateway is the node's address on the containers' side: their default route and name server.
func (n *Network) Gateway() netip.Addr { return overlay.Gateway(n.opts.Subnet) }

// Gateway6 is the IPv6 form of Gateway, invalid where containers have no IPv6.
func (n *Network) Gateway6() netip.Addr { return n.address6(n.Gateway()) }

// address6 is the IPv6 address that belongs to an IPv4 one: the range's prefix and the IPv4 address as the last 32 bits.
func (n *Network) address6(a netip.Addr) netip.Addr {
	if !n.opts.Subnet6.IsValid() {
		return netip.Addr{}
	}
	return overlay.Embed(n.opts.Subnet6, a)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
