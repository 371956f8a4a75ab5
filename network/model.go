package network

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/overlay"
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
	segments map[netip.Addr]uint32   // container to the set of networks it is in
	pairs    map[[2]uint32]struct{}  // segments that share a network
	reach    map[reach]struct{}      // what each segment may talk to
	internal map[netip.Addr]struct{} // containers that reach nothing outside
	hairpins map[netip.Addr]struct{} // containers of this node that can meet themselves behind a virtual address
	services map[netip.Addr]target   // virtual address to its ready instances
	live     map[uint32]struct{}     // segments that containers are in
	ports    map[portKey]target      // published port to its ready instances
	peers    []overlay.Peer          // other nodes, sorted
	nodes    map[netip.Addr]struct{} // addresses of other nodes
	gateways map[netip.Addr]struct{} // addresses of other nodes on the containers' side
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

// segmentTable gives each set of networks a number. Numbers are never used twice in one run of the daemon, so that a change
// of one service cannot renumber another.
type segmentTable struct {
	numbers map[string]uint32
	last    uint32
}

func newSegmentTable() *segmentTable { return &segmentTable{numbers: map[string]uint32{}} }

func (t *segmentTable) number(networks []uint32) uint32 {
	key := make([]byte, 0, 4*len(networks))
	for _, n := range networks {
		key = append(key, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	if s, ok := t.numbers[string(key)]; ok {
		return s
	}
	t.last++
	t.numbers[string(key)] = t.last
	return t.last
}

// builder turns a State into a model.
type builder struct {
	model
	local    netip.Prefix
	virtual  netip.Prefix
	table    *segmentTable
	networks map[string]*gantryv1.Network
	members  map[uint32]map[uint32]struct{} // network to the segments that contain it
}

// newModel is pure but for the segments it names in table. Endpoints of this node are those with an address in local.
func newModel(s State, peers []overlay.Peer, local, virtual netip.Prefix, table *segmentTable) *model {
	instances := 0
	for _, e := range s.Endpoints {
		instances += len(e.Endpoints)
	}
	b := &builder{local: local, virtual: virtual, table: table, networks: make(map[string]*gantryv1.Network, len(s.Networks)),
		members: make(map[uint32]map[uint32]struct{}, len(s.Networks))}
	b.model = model{segments: make(map[netip.Addr]uint32, 2*instances), pairs: map[[2]uint32]struct{}{}, live: map[uint32]struct{}{},
		reach: make(map[reach]struct{}, 2*instances), internal: map[netip.Addr]struct{}{}, ports: map[portKey]target{},
		hairpins: map[netip.Addr]struct{}{}, services: make(map[netip.Addr]target, len(s.Endpoints)),
		peers: peers, nodes: map[netip.Addr]struct{}{}, gateways: map[netip.Addr]struct{}{}}
	for _, n := range s.Networks {
		b.networks[n.GetMeta().GetKey()] = n
	}
	for _, e := range s.Endpoints {
		b.add(e)
	}
	b.pair()
	b.meet()
	return &b.model
}

// meet lists the addresses of other nodes.
func (b *builder) meet() {
	for _, p := range b.peers {
		b.nodes[p.Address] = struct{}{}
		b.gateways[overlay.Gateway(p.Subnet)] = struct{}{}
		if p.Subnet6.IsValid() {
			b.gateways[overlay.Gateway6(p.Subnet6, p.Subnet)] = struct{}{}
		}
	}
}

func (b *builder) add(e *gantryv1.ServiceEndpoints) {
	segment, internal := b.segment(e)
	var ready []backend
	for _, ep := range e.Endpoints {
		a, err := netip.ParseAddr(ep.Address)
		if err != nil {
			continue // not attached yet, or without a network of its own
		}
		b.member(a, segment, internal)
		if a6, err := netip.ParseAddr(ep.Address6); err == nil {
			b.member(a6, segment, internal)
		}
		if ep.Ready {
			ready = append(ready, backend{a, ep.Weight})
		}
		if b.local.Contains(a) {
			b.hairpins[a] = struct{}{}
		}
	}
	slices.SortFunc(ready, func(a, b backend) int { return a.address.Compare(b.address) })
	ready = slices.CompactFunc(ready, func(a, b backend) bool { return a.address == b.address })
	if vip, err := netip.ParseAddr(e.VirtualIp); err == nil && b.virtual.Contains(vip) && len(ready) > 0 {
		b.services[vip] = target{backends: turns(ready)}
	}
	b.publish(e, ready)
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
	numbers = slices.Compact(numbers)
	segment = b.table.number(numbers)
	for _, n := range numbers {
		if b.members[n] == nil {
			b.members[n] = map[uint32]struct{}{}
		}
		b.members[n][segment] = struct{}{}
	}
	return segment, internal
}

func (b *builder) member(a netip.Addr, segment uint32, internal bool) {
	if segment != 0 {
		b.segments[a] = segment
	}
	if internal {
		b.internal[a] = struct{}{}
	}
}

// pair lists the segments that share a network, with themselves too, and what each may talk to by that.
func (b *builder) pair() {
	peers := map[uint32][]uint32{}
	for _, segments := range b.members {
		for s := range segments {
			for t := range segments {
				if _, known := b.pairs[[2]uint32{s, t}]; !known {
					b.pairs[[2]uint32{s, t}] = struct{}{}
					peers[t] = append(peers[t], s)
				}
			}
		}
	}
	for _, s := range b.segments {
		b.live[s] = struct{}{}
	}
	for a, t := range b.segments {
		for _, s := range peers[t] {
			if _, lives := b.live[s]; lives {
				b.reach[reach{s, a}] = struct{}{}
			}
		}
	}
}

// publish maps host ports to the ready instances, or in host mode to those of this node.
func (b *builder) publish(e *gantryv1.ServiceEndpoints, ready []backend) {
	if len(e.Ports) == 0 {
		return
	}
	everywhere := turns(ready)
	here := turns(slices.DeleteFunc(slices.Clone(ready), func(r backend) bool { return !b.local.Contains(r.address) }))
	for _, p := range e.Ports {
		if p.HostPort == 0 || p.HostPort > 65535 || p.ContainerPort > 65535 {
			continue // nothing reserved it
		}
		key := newPortKey(p.HostIp, protoNumber(p.Protocol), uint16(p.HostPort))
		t := target{backends: everywhere, port: uint16(p.ContainerPort)}
		if p.Mode == "host" {
			t.backends = here
		}
		if _, taken := b.ports[key]; !taken && len(t.backends) > 0 {
			b.ports[key] = t
		}
	}
}
