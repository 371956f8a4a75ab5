package network

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/balance"
	"github.com/gantryd/gantry/network/overlay"
	"github.com/gantryd/gantry/network/segment"
)

// State is all that the kernel's tables are to say: where every service of the cluster can be reached, which isolation groups
// exist, and which machines. A `gantry run` instance is a ServiceEndpoints without app and virtual address.
type State struct {
	Endpoints []*gantryv1.ServiceEndpoints
	Networks  []*gantryv1.Network
	// Nodes are the machines of the cluster; this one may be among them. Of interest are address, subnet, subnet6 and
	// overlay_key.
	Nodes []*gantryv1.Node
}

// model is State in the kernel's terms, as maps and sets whose differences are what has to be written.
type model struct {
	// instances are the addresses of all containers. The kernel has no such table; what leaves it is cut.
	instances map[netip.Addr]place

	// What follows leaves out containers of other nodes that none of this node may talk to.
	segments map[netip.Addr]uint32   // container to the set of networks it is in
	reach    map[reach]struct{}      // what each segment may talk to
	internal map[netip.Addr]struct{} // containers that reach nothing outside
	hairpins map[netip.Addr]struct{} // containers of this node that can meet themselves behind a virtual address
	services map[netip.Addr]target   // virtual address to its ready instances
	live     map[uint32]struct{}     // segments that containers are in
	ports    map[portKey]target      // published port to its ready instances
	peers    []overlay.Peer          // other nodes, sorted
	nodes    map[netip.Addr]struct{} // addresses of other nodes
	gateways map[netip.Addr]struct{} // addresses of other nodes on the containers' side

	table *segment.Table
}

// place is where a container is: in which segment, 0 for none, and on which node.
type place struct {
	segment uint32
	local   bool
}

// reach is one container that a segment may talk to.
type reach struct {
	segment uint32
	address netip.Addr
}

// target is where new connections go: one of backends in turn, on port if that is not 0. A backend of more weight has more
// turns.
type target struct {
	backends []netip.Addr
	port     uint16
}

func (t target) equal(o target) bool { return t.port == o.port && slices.Equal(t.backends, o.backends) }

// portKey is a published port; host is invalid for all addresses of the node.
type portKey struct {
	host  netip.Addr
	proto uint8
	port  uint16
}

func newPortKey(host string, proto uint8, port uint16) portKey {
	k := portKey{proto: proto, port: port}
	if a, err := netip.ParseAddr(host); err == nil && a != netip.IPv4Unspecified() {
		k.host = a
	}
	return k
}

// inKernel reports whether rules carry the port. IPv6 goes through the proxy.
func (k portKey) inKernel() bool { return !k.host.Is6() }

func (k portKey) compare(o portKey) int {
	return cmp.Or(k.host.Compare(o.host), cmp.Compare(k.proto, o.proto), cmp.Compare(k.port, o.port))
}

const (
	protoTCP = 6
	protoUDP = 17
)

func protoNumber(name string) uint8 {
	if strings.EqualFold(name, "udp") {
		return protoUDP
	}
	return protoTCP
}

// builder turns a State into a model, and one into the next.
type builder struct {
	model
	local    netip.Prefix
	virtual  netip.Prefix
	networks map[string]*gantryv1.Network
	attached map[string]int                     // services that name a network, whether it is there or not
	members  map[uint32]map[uint32]int          // network to the segments that contain it, with their services
	parts    map[string]*part                   // services
	inside   map[uint32]map[netip.Addr]struct{} // segment to its containers
	count    map[place]int                      // containers of each segment, here and elsewhere
	sharers  map[uint32][]uint32                // segment to the live ones that may talk to it
	secluded map[uint32]bool                    // segments of internal networks only
	claims   map[any]bool                       // published ports and virtual addresses
	mixed    bool                               // several services claim an address or a port
	round    int
}

// part is what a service is in a model, besides its endpoints.
type part struct {
	source  *gantryv1.ServiceEndpoints
	segment uint32
	seen    int // the last round that had it
}

// newModel is pure but for the segments it names in table. Endpoints of this node are those with an address in local.
func newModel(s State, peers []overlay.Peer, local, virtual netip.Prefix, table *segment.Table) *builder {
	instances := 0
	for _, e := range s.Endpoints {
		instances += len(e.Endpoints)
	}
	b := &builder{local: local, virtual: virtual, attached: map[string]int{},
		members: make(map[uint32]map[uint32]int, len(s.Networks)), parts: make(map[string]*part, len(s.Endpoints)),
		inside: map[uint32]map[netip.Addr]struct{}{}, count: map[place]int{}, sharers: map[uint32][]uint32{},
		secluded: map[uint32]bool{}, claims: map[any]bool{}}
	b.model = model{segments: make(map[netip.Addr]uint32, instances), live: map[uint32]struct{}{},
		reach: make(map[reach]struct{}, instances), internal: map[netip.Addr]struct{}{}, ports: map[portKey]target{},
		hairpins: map[netip.Addr]struct{}{}, services: make(map[netip.Addr]target, len(s.Endpoints)),
		instances: make(map[netip.Addr]place, instances),
		peers:     peers, table: table}
	steps := plan{networks: byKey(s.Networks)}
	for _, e := range s.Endpoints {
		steps.turns = append(steps.turns, b.arrival(e))
	}
	b.perform(&changes{}, steps)
	b.meet()
	return b
}

func byKey(networks []*gantryv1.Network) map[string]*gantryv1.Network {
	out := make(map[string]*gantryv1.Network, len(networks))
	for _, n := range networks {
		out[n.GetMeta().GetKey()] = n
	}
	return out
}

// meet lists the addresses of other nodes.
func (b *builder) meet() {
	b.nodes, b.gateways = map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
	for _, p := range b.peers {
		b.nodes[p.Address] = struct{}{}
		b.gateways[overlay.Gateway(p.Subnet)] = struct{}{}
		if p.Subnet6.IsValid() {
			b.gateways[overlay.Gateway6(p.Subnet6, p.Subnet)] = struct{}{}
		}
	}
}

// addressesOf are the addresses of a service's containers that have one, and whether they are of this node. Those that are
// not attached yet, or have no network of their own, have none.
func (b *builder) addressesOf(e *gantryv1.ServiceEndpoints) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, 2*len(e.Endpoints))
	for _, ep := range e.Endpoints {
		a, err := netip.ParseAddr(ep.Address)
		if err != nil {
			continue
		}
		out[a] = b.local.Contains(a)
		if a6, err := netip.ParseAddr(ep.Address6); err == nil {
			out[a6] = out[a]
		}
	}
	return out
}

// readyOf are the containers of a service that take connections, sorted.
func readyOf(e *gantryv1.ServiceEndpoints) []balance.Backend {
	var ready []balance.Backend
	for _, ep := range e.Endpoints {
		if a, err := netip.ParseAddr(ep.Address); err == nil && ep.Ready {
			ready = append(ready, balance.Backend{Address: a, Weight: ep.Weight})
		}
	}
	slices.SortFunc(ready, func(a, b balance.Backend) int { return a.Address.Compare(b.Address) })
	return slices.CompactFunc(ready, func(a, b balance.Backend) bool { return a.Address == b.Address })
}

// service is where a service's virtual address leads; to nothing if it has none.
func (b *builder) service(e *gantryv1.ServiceEndpoints) (netip.Addr, target) {
	vip, err := netip.ParseAddr(e.VirtualIp)
	if err != nil || !b.virtual.Contains(vip) {
		return vip, target{}
	}
	return vip, target{backends: balance.Turns(readyOf(e))}
}

// segment names the set of networks a service is in. A network of another environment does not count, whatever the
// endpoints say: environments never share one.
func (b *builder) segment(e *gantryv1.ServiceEndpoints) (segment uint32, internal bool) {
	var numbers []uint32
	for _, at := range e.Attachments {
		n := b.networks[at.Network]
		env, _, _ := strings.Cut(at.Network, "/")
		if n == nil || n.Number == 0 || env != e.Environment {
			continue
		}
		internal = n.Internal && (internal || len(numbers) == 0)
		numbers = append(numbers, n.Number)
	}
	if len(numbers) == 0 {
		return 0, false
	}
	slices.Sort(numbers)
	return b.table.Number(slices.Compact(numbers)), internal
}

// home reports whether this node has a container of the segment, alive whether any has.
func (b *builder) home(s uint32) bool  { return b.count[place{s, true}] > 0 }
func (b *builder) alive(s uint32) bool { return b.home(s) || b.count[place{s, false}] > 0 }

// neighbours calls fn with each segment of a service that shares a network with one, itself included.
func (b *builder) neighbours(segment uint32, fn func(uint32)) {
	seen := map[uint32]bool{}
	for _, n := range b.table.Networks(segment) {
		for s := range b.members[n] {
			if !seen[s] {
				seen[s] = true
				fn(s)
			}
		}
	}
}

// link finds out who may talk to a segment, and whether it matters here: if it has a container of this node, or may talk to
// one.
func (b *builder) link(c *changes, segment uint32) {
	var sharers []uint32
	b.neighbours(segment, func(s uint32) {
		if b.alive(s) && b.alive(segment) && (b.home(s) || b.home(segment)) {
			sharers = append(sharers, s)
		}
	})
	if b.sharers[segment] = sharers; len(sharers) == 0 {
		delete(b.sharers, segment)
	}
	put(b.live, &c.live, segment, struct{}{}, len(sharers) > 0)
}

// wasteful reports that most of the segments that were ever named are no service's any more.
func (b *builder) wasteful() bool { return b.table.Len() > 2*len(b.parts)+64 }

// forget drops segments that no service is in. While several services claim the same, there may be some that parts does not
// list.
func (b *builder) forget() {
	if b.mixed {
		return
	}
	used := make(map[uint32]bool, len(b.parts))
	for _, p := range b.parts {
		used[p.segment] = true
	}
	maps.DeleteFunc(b.secluded, func(s uint32, _ bool) bool { return !used[s] })
	b.table.Keep(used)
}

// targets maps the host ports of a service to its ready instances, or in host mode to those of this node.
func (b *builder) targets(e *gantryv1.ServiceEndpoints) map[portKey]target {
	if len(e.Ports) == 0 {
		return nil
	}
	ready := readyOf(e)
	everywhere := balance.Turns(ready)
	here := balance.Turns(slices.DeleteFunc(ready, func(r balance.Backend) bool { return !b.local.Contains(r.Address) }))
	out := map[portKey]target{}
	for _, p := range e.Ports {
		if p.HostPort == 0 || p.HostPort > 65535 || p.ContainerPort > 65535 {
			continue // nothing reserved it
		}
		key := newPortKey(p.HostIp, protoNumber(p.Protocol), uint16(p.HostPort))
		t := target{backends: everywhere, port: uint16(p.ContainerPort)}
		if p.Mode == "host" {
			t.backends = here
		}
		if _, twice := out[key]; !twice {
			out[key] = t
		}
	}
	return out
}
