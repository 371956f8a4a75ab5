package network

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/tracked"
)

// flows says which tracked connections are to be forgotten.
type flows struct {
	gone   map[netip.Addr]bool // flows of these containers, but closed ones
	closed map[netip.Addr]bool // those of them that were found to have closed ones
	again  map[netip.Addr]bool // closed flows of others that had the addresses of these containers
	moved  map[netip.Addr]bool // flows with containers they may not talk to any more
	left   map[netip.Addr]bool // datagrams translated to these, which a service has lost: there is no connection to drain
	ports  map[uint16]bool     // datagrams that reached these ports of the node before they were published
	model  *model
}

func newFlows(want *model) flows {
	set := func() map[netip.Addr]bool { return map[netip.Addr]bool{} }
	return flows{set(), set(), set(), set(), set(), map[uint16]bool{}, want}
}

// join adds what could not be forgotten before, but for containers that have come back.
func (f flows) join(uncut flows) {
	for a := range uncut.gone {
		if _, there := f.model.instances[a]; !there {
			f.gone[a] = true
		}
	}
	maps.Copy(f.moved, uncut.moved)
	maps.Copy(f.left, uncut.left)
	maps.Copy(f.ports, uncut.ports)
}

func (f flows) empty() bool {
	return len(f.gone)+len(f.again)+len(f.moved)+len(f.left)+len(f.ports) == 0
}

// staleFlows lists what must not go on after changes that led to a model.
func staleFlows(c changes, want *model) flows {
	f := newFlows(want)
	for a := range c.instances.del {
		f.gone[a] = true
	}
	for a := range c.segments.del {
		f.moved[a] = !f.gone[a]
	}
	for a := range c.internal.add {
		_, isNew := c.instances.add[a]
		f.moved[a] = !isNew
	}
	noLonger(&f, c.services)
	noLonger(&f, c.ports)
	for k := range c.ports.add {
		if _, was := c.ports.del[k]; !was && k.proto == protoUDP {
			f.ports[k.port] = true
		}
	}
	return f
}

// noLonger collects backends that a service or port had and has not any more.
func noLonger[K comparable](f *flows, d delta[K, target]) {
	for k, was := range d.del {
		now := map[netip.Addr]bool{}
		for _, a := range d.add[k].backends {
			now[a] = true
		}
		for _, a := range was.backends {
			if !now[a] && !f.gone[a] {
				f.left[a] = true
			}
		}
	}
}

// Ends lists the containers that a flow which matches begins or ends at.
func (f flows) Ends() ([]netip.Addr, bool) {
	ends := slices.Collect(maps.Keys(f.gone))
	for _, m := range []map[netip.Addr]bool{f.again, f.moved, f.left} {
		ends = slices.AppendSeq(ends, maps.Keys(m))
	}
	return ends, len(f.ports) == 0
}

// cut forgets flows, so that their next packet is judged anew: by then its backend is gone, and it is answered by a reset. What
// is closed is left to end by itself, unless somebody gets the address before.
func (n *Network) cut(f flows) error {
	f.join(n.uncut)
	for a := range n.closed {
		if _, there := f.model.instances[a]; there {
			f.again[a] = true
		}
	}
	if f.empty() {
		return nil
	}
	if err := tracked.Forget(f); err != nil {
		n.uncut = f
		return fault.Wrap(fault.Internal, err, "cut connections of instances that are gone")
	}
	n.uncut = flows{}
	for a := range f.again {
		delete(n.closed, a)
	}
	maps.Copy(n.closed, f.closed)
	return nil
}

// Match reports whether a flow is to be forgotten.
func (f flows) Match(flow tracked.Flow) bool {
	from, to := flow.From, flow.To
	if (f.again[from] || f.again[to]) && flow.Closed() {
		return true
	}
	if f.gone[from] || f.gone[to] {
		for _, a := range []netip.Addr{from, to} {
			if flow.Closed() && f.gone[a] {
				f.closed[a] = true
			}
		}
		return !flow.Closed()
	}
	if (f.moved[from] || f.moved[to]) && !f.allowed(from, to) {
		return true
	}
	if flow.Protocol != protoUDP {
		return false
	}
	return flow.Translated() && f.left[to] || !flow.Translated() && f.ports[flow.Port]
}

// allowed repeats what the table's rules would say of a new connection.
func (f flows) allowed(from, to netip.Addr) bool {
	s, isContainer := f.model.segments[from]
	t, toContainer := f.model.segments[to]
	if isContainer && toContainer {
		return f.model.table.Share(s, t)
	}
	_, internal := f.model.internal[from]
	return !internal
}
