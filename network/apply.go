package network

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/overlay"
)

// Apply makes the kernel say what the state says, in one transaction, and cuts connections of instances that are gone.
// Connections of an instance that is merely not ready any more go on; new ones go elsewhere at once. It keeps what it is given,
// which must not be changed afterwards; an object that is the same as in the call before costs next to nothing. Published ports must carry their host port, as Publish returns them.
func (n *Network) Apply(_ context.Context, s State) (err error) {
	n.applying.Lock()
	defer n.applying.Unlock()
	defer func(begun time.Time) {
		if n.figures.Applies.Since(begun); err != nil {
			n.figures.Failed.Add(1)
		}
	}(time.Now())
	peers := n.peers(s.Nodes)
	if n.applied == nil {
		return n.applyAnew(s, peers)
	}
	c, ok := n.applied.advance(s, peers)
	if !ok {
		want := newModel(s, peers, n.opts.Subnet, n.opts.VirtualIPs, n.segments)
		c = compare(&n.applied.model, &want.model)
		n.applied = want
	}
	if err := n.write(c); err != nil {
		n.applied = nil // nobody knows what the kernel has: the next Apply replaces it
		return err
	}
	n.ports.route(n.applied.ports)
	stale := staleFlows(c, &n.applied.model)
	n.lose(stale.left)
	err = errors.Join(n.meet(&n.applied.model), n.cut(stale))
	if n.applied.wasteful() {
		n.applied.forget()
	}
	return err
}

// applyAnew replaces the whole table: it may be an earlier daemon's. That disturbs neither what is connected nor what connects.
func (n *Network) applyAnew(s State, peers []overlay.Peer) error {
	want := newModel(s, peers, n.opts.Subnet, n.opts.VirtualIPs, n.segments)
	if err := n.nft.replace(&want.model); err != nil {
		return err
	}
	n.applied = want
	n.ports.route(want.ports)
	return n.meet(&want.model)
}

// write brings the kernel's table from one model to the next, which is applied already.
func (n *Network) write(c changes) error {
	if c.empty() {
		return nil
	}
	err := n.nft.change(c)
	if err == nil {
		return nil
	}
	n.log.Warn("the nftables table did not take a change and is written anew", "err", err)
	n.figures.Rewrites.Add(1)
	return n.nft.replace(&n.applied.model)
}

// reassert writes the whole table again.
func (n *Network) reassert() error {
	n.applying.Lock()
	defer n.applying.Unlock()
	if n.removed {
		return nil
	}
	if n.applied == nil {
		return n.nft.ensureBase()
	}
	n.figures.Rewrites.Add(1)
	return n.nft.replace(&n.applied.model)
}

// delta is the difference of two maps: what to take out (with its old value), then what to put in.
type delta[K comparable, V any] struct{ del, add map[K]V }

func compareMaps[K comparable, V any](old, want map[K]V, equal func(a, b V) bool) delta[K, V] {
	d := delta[K, V]{map[K]V{}, map[K]V{}}
	for k, v := range old {
		if w, ok := want[k]; !ok || !equal(v, w) {
			d.del[k] = v
		}
	}
	for k, w := range want {
		if v, ok := old[k]; !ok || !equal(v, w) {
			d.add[k] = w
		}
	}
	return d
}

func (d delta[K, V]) empty() bool { return len(d.del) == 0 && len(d.add) == 0 }

// changes is what turns the kernel's tables from one model into another.
type changes struct {
	instances delta[netip.Addr, place]

	segments delta[netip.Addr, uint32]
	live     delta[uint32, struct{}]
	reach    delta[reach, struct{}]
	internal delta[netip.Addr, struct{}]
	hairpins delta[netip.Addr, struct{}]
	services delta[netip.Addr, target]
	ports    delta[portKey, target]
	nodes    delta[netip.Addr, struct{}]
	gateways delta[netip.Addr, struct{}]
}

func compare(old, want *model) changes {
	same := func(struct{}, struct{}) bool { return true }
	return changes{
		instances: compareMaps(old.instances, want.instances, func(place, place) bool { return true }),

		segments: compareMaps(old.segments, want.segments, func(a, b uint32) bool { return a == b }),
		live:     compareMaps(old.live, want.live, same),
		reach:    compareMaps(old.reach, want.reach, same),
		internal: compareMaps(old.internal, want.internal, same),
		hairpins: compareMaps(old.hairpins, want.hairpins, same),
		services: compareMaps(old.services, want.services, target.equal),
		ports:    compareMaps(old.ports, want.ports, target.equal),
		nodes:    compareMaps(old.nodes, want.nodes, same),
		gateways: compareMaps(old.gateways, want.gateways, same),
	}
}

func (c changes) empty() bool {
	return c.segments.empty() && c.reach.empty() && c.internal.empty() && c.hairpins.empty() && c.services.empty() && c.ports.empty() &&
		c.nodes.empty() && c.gateways.empty()
}

// flows says which tracked connections are to be forgotten.
type flows struct {
	gone  map[netip.Addr]bool // every flow of these containers
	moved map[netip.Addr]bool // flows with containers they may not talk to any more
	left  map[netip.Addr]bool // datagrams translated to these, which a service has lost: there is no connection to drain
	ports map[uint16]bool     // datagrams that reached these ports of the node before they were published
	model *model
}

func (f flows) empty() bool { return len(f.gone)+len(f.moved)+len(f.left)+len(f.ports) == 0 }

// staleFlows lists what must not go on after changes that led to a model.
func staleFlows(c changes, want *model) flows {
	f := flows{map[netip.Addr]bool{}, map[netip.Addr]bool{}, map[netip.Addr]bool{}, map[uint16]bool{}, want}
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

// has6 reports whether IPv6 flows can be among them.
func (f flows) has6() bool {
	for _, m := range []map[netip.Addr]bool{f.gone, f.moved} {
		for a, is := range m {
			if is && a.Is6() {
				return true
			}
		}
	}
	return false
}

// cut forgets flows, so that their next packet is judged anew: by then its backend is gone, and it is answered by a reset.
func (n *Network) cut(f flows) error {
	if f.empty() {
		return nil
	}
	if err := deleteFlows(n.links, f); err != nil {
		return fault.Wrap(fault.Internal, err, "cut connections of instances that are gone")
	}
	return nil
}
