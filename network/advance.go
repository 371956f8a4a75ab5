package network

import (
	"net/netip"
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/overlay"
)

// advance makes the model that of a state in which nothing is new but endpoints of services: what happens all day, at a cost
// that depends on what has changed. It reports false, and changes nothing, if more is new.
func (b *builder) advance(s State, peers []overlay.Peer) (changes, bool) {
	if b.mixed || len(s.Endpoints) != len(b.parts) || !slices.Equal(peers, b.peers) || !b.sameNetworks(s.Networks) {
		return changes{}, false
	}
	var turned []*gantryv1.ServiceEndpoints
	for _, e := range s.Endpoints {
		p := b.parts[e.Service]
		switch {
		case p == nil || p.source != e && !sameFrame(p.source, e):
			return changes{}, false
		case p.source != e && !slices.EqualFunc(p.source.Endpoints, e.Endpoints, sameEndpoint):
			turned = append(turned, e)
		}
	}
	c := newChanges()
	steps, ok := b.plan(turned)
	if !ok {
		return c, false
	}
	for _, t := range steps { // all who go before any who come: somebody may go from one service to another
		for _, a := range t.gone {
			b.leave(&c, a, t.part.segment)
		}
	}
	for _, t := range steps {
		b.settle(&c, t)
	}
	c.trim()
	return c, true
}

func (b *builder) sameNetworks(networks []*gantryv1.Network) bool {
	if len(networks) != len(b.networks) {
		return false
	}
	for _, n := range networks {
		old := b.networks[n.GetMeta().GetKey()]
		if old != n && (old == nil || old.Number != n.Number || old.Internal != n.Internal) {
			return false
		}
	}
	return true
}

// sameFrame compares all of two states of a service but its endpoints.
func sameFrame(a, b *gantryv1.ServiceEndpoints) bool {
	samePort := func(p, q *gantryv1.PortPublish) bool {
		return p.HostIp == q.HostIp && p.HostPort == q.HostPort && p.ContainerPort == q.ContainerPort && p.Protocol == q.Protocol && p.Mode == q.Mode
	}
	sameNetwork := func(p, q *gantryv1.NetworkAttachment) bool { return p.Network == q.Network }
	return a.Environment == b.Environment && a.VirtualIp == b.VirtualIp && slices.EqualFunc(a.Ports, b.Ports, samePort) &&
		slices.EqualFunc(a.Attachments, b.Attachments, sameNetwork)
}

func sameEndpoint(a, b *gantryv1.Endpoint) bool {
	return a == b || a.Address == b.Address && a.Address6 == b.Address6 && a.Ready == b.Ready && a.Weight == b.Weight
}

// turn is what is new about one service.
type turn struct {
	part       *part
	now        *gantryv1.ServiceEndpoints
	come, gone []netip.Addr
}

// plan finds out who comes and goes. It fails if somebody comes who is there already, or a segment comes alive or dies.
func (b *builder) plan(turned []*gantryv1.ServiceEndpoints) ([]turn, bool) {
	steps, leaving, coming := make([]turn, 0, len(turned)), map[netip.Addr]bool{}, map[netip.Addr]bool{}
	balance := map[uint32]int{}
	for _, e := range turned {
		t := turn{part: b.parts[e.Service], now: e}
		was, is := addressesOf(t.part.source), addressesOf(e)
		t.gone, t.come = without(was, is), without(is, was)
		for _, a := range t.gone {
			leaving[a] = true
		}
		if segment := t.part.segment; segment != 0 {
			balance[segment] += len(t.come) - len(t.gone)
		}
		steps = append(steps, t)
	}
	for _, t := range steps {
		for _, a := range t.come {
			if _, known := b.instances[a]; known && !leaving[a] || coming[a] {
				return nil, false
			}
			coming[a] = true
		}
	}
	for segment, n := range balance {
		if before := b.count[segment]; (before > 0) != (before+n > 0) {
			return nil, false
		}
	}
	return steps, true
}

func without(all, others map[netip.Addr]struct{}) []netip.Addr {
	var out []netip.Addr
	for a := range all {
		if _, there := others[a]; !there {
			out = append(out, a)
		}
	}
	return out
}

// settle brings one service up to date, when those who go have gone.
func (b *builder) settle(c *changes, t turn) {
	for _, a := range t.come {
		b.enter(c, a, t.part)
	}
	t.part.source = t.now
	if vip, to := b.service(t.now); vip.IsValid() {
		put(b.services, &c.services, vip, to, len(to.backends) > 0)
	}
	for key, to := range b.targets(t.now) {
		put(b.ports, &c.ports, key, to, len(to.backends) > 0)
	}
}

func (b *builder) leave(c *changes, a netip.Addr, segment uint32) {
	put(b.instances, &c.instances, a, struct{}{}, false)
	put(b.internal, &c.internal, a, struct{}{}, false)
	put(b.hairpins, &c.hairpins, a, struct{}{}, false)
	if segment == 0 {
		return
	}
	b.count[segment]--
	put(b.segments, &c.segments, a, 0, false)
	for _, s := range b.sharers[segment] {
		put(b.reach, &c.reach, reach{s, a}, struct{}{}, false)
	}
}

func (b *builder) enter(c *changes, a netip.Addr, p *part) {
	put(b.instances, &c.instances, a, struct{}{}, true)
	put(b.internal, &c.internal, a, struct{}{}, p.internal)
	put(b.hairpins, &c.hairpins, a, struct{}{}, b.local.Contains(a))
	if p.segment == 0 {
		return
	}
	b.count[p.segment]++
	put(b.segments, &c.segments, a, p.segment, true)
	for _, s := range b.sharers[p.segment] {
		put(b.reach, &c.reach, reach{s, a}, struct{}{}, true)
	}
}

// put sets a key of a map, or removes it, and notes the difference to what the kernel has.
func put[K comparable, V any](m map[K]V, d *delta[K, V], k K, v V, there bool) {
	old, was := m[k]
	if _, ours := d.add[k]; was && !ours {
		d.del[k] = old
	}
	delete(d.add, k)
	delete(m, k)
	if there {
		m[k], d.add[k] = v, v
	}
}

func newChanges() changes {
	return changes{
		instances: newDelta[netip.Addr, struct{}](), segments: newDelta[netip.Addr, uint32](), live: newDelta[uint32, struct{}](),
		reach: newDelta[reach, struct{}](), internal: newDelta[netip.Addr, struct{}](), hairpins: newDelta[netip.Addr, struct{}](),
		services: newDelta[netip.Addr, target](), ports: newDelta[portKey, target](), nodes: newDelta[netip.Addr, struct{}](),
		gateways: newDelta[netip.Addr, struct{}](),
	}
}

func newDelta[K comparable, V any]() delta[K, V] { return delta[K, V]{map[K]V{}, map[K]V{}} }

// trim forgets what was taken out and put in again.
func (c *changes) trim() {
	same := func(struct{}, struct{}) bool { return true }
	trim(c.instances, same)
	trim(c.segments, func(a, b uint32) bool { return a == b })
	trim(c.reach, same)
	trim(c.internal, same)
	trim(c.hairpins, same)
	trim(c.services, target.equal)
	trim(c.ports, target.equal)
}

func trim[K comparable, V any](d delta[K, V], equal func(a, b V) bool) {
	for k, was := range d.del {
		if now, again := d.add[k]; again && equal(was, now) {
			delete(d.del, k)
			delete(d.add, k)
		}
	}
}
