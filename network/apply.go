package network

import (
	"context"
	"errors"
	"net/netip"
	"time"

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
