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
			b.leave(&c, a)
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
	part *part
	now  *gantryv1.ServiceEndpoints
	gone []netip.Addr
	come map[netip.Addr]place
}

// plan finds out who comes and goes. It fails if somebody comes who is there already, and if the first container of a segment
// comes, here or elsewhere, or the last one goes.
func (b *builder) plan(turned []*gantryv1.ServiceEndpoints) ([]turn, bool) {
	steps, leaving, coming := make([]turn, 0, len(turned)), map[netip.Addr]bool{}, map[netip.Addr]bool{}
	balance := map[place]int{}
	for _, e := range turned {
		t := turn{part: b.parts[e.Service], now: e, come: map[netip.Addr]place{}}
		was, is := b.addressesOf(t.part.source), b.addressesOf(e)
		for a, local := range was {
			if _, stays := is[a]; !stays {
				t.gone, leaving[a] = append(t.gone, a), true
				balance[place{t.part.segment, local}]--
			}
		}
		for a, local := range is {
			if _, there := was[a]; !there {
				t.come[a] = place{t.part.segment, local}
				balance[t.come[a]]++
			}
		}
		steps = append(steps, t)
	}
	for _, t := range steps {
		for a := range t.come {
			if _, known := b.instances[a]; known && !leaving[a] || coming[a] {
				return nil, false
			}
			coming[a] = true
		}
	}
	for at, n := range balance {
		if before := b.count[at]; (before > 0) != (before+n > 0) {
			return nil, false
		}
	}
	return steps, true
}

// settle brings one service up to date, when those who go have gone.
func (b *builder) settle(c *changes, t turn) {
	for a, at := range t.come {
		b.count[at]++
		put(b.instances, &c.instances, a, at, true)
		b.enter(c, a, at)
	}
	t.part.source = t.now
	if vip, to := b.service(t.now); vip.IsValid() {
		put(b.services, &c.services, vip, to, len(to.backends) > 0)
	}
	for key, to := range b.targets(t.now) {
		put(b.ports, &c.ports, key, to, len(to.backends) > 0)
	}
}

func (b *builder) leave(c *changes, a netip.Addr) {
	at := b.instances[a]
	b.count[at]--
	put(b.instances, &c.instances, a, place{}, false)
	b.tables(c, a, at, false)
}

// enter puts a container into the tables that the kernel has. Without changes to note, it is the first time.
func (b *builder) enter(c *changes, a netip.Addr, at place) {
	if c == nil {
		c = &changes{}
	}
	b.tables(c, a, at, true)
}

func (b *builder) tables(c *changes, a netip.Addr, at place, there bool) {
	put(b.hairpins, &c.hairpins, a, struct{}{}, there && at.local)
	if _, matters := b.live[at.segment]; !matters {
		return
	}
	put(b.internal, &c.internal, a, struct{}{}, there && b.secluded[at.segment])
	put(b.segments, &c.segments, a, at.segment, there)
	for _, s := range b.sharers[at.segment] {
		if at.local || b.homes[s] { // what passes between other nodes does not pass here
			put(b.reach, &c.reach, reach{s, a}, struct{}{}, there)
		}
	}
}

// put sets a key of a map, or removes it, and notes the difference to what the kernel has.
func put[K comparable, V any](m map[K]V, d *delta[K, V], k K, v V, there bool) {
	old, was := m[k]
	if _, ours := d.add[k]; was && !ours && d.del != nil {
		d.del[k] = old
	}
	delete(d.add, k)
	delete(m, k)
	if !there {
		return
	}
	m[k] = v
	if d.add != nil {
		d.add[k] = v
	}
}

func newChanges() changes {
	return changes{
		instances: newDelta[netip.Addr, place](), segments: newDelta[netip.Addr, uint32](), live: newDelta[uint32, struct{}](),
		reach: newDelta[reach, struct{}](), internal: newDelta[netip.Addr, struct{}](), hairpins: newDelta[netip.Addr, struct{}](),
		services: newDelta[netip.Addr, target](), ports: newDelta[portKey, target](), nodes: newDelta[netip.Addr, struct{}](),
		gateways: newDelta[netip.Addr, struct{}](),
	}
}

func newDelta[K comparable, V any]() delta[K, V] { return delta[K, V]{map[K]V{}, map[K]V{}} }

// trim forgets what was taken out and put in again.
func (c *changes) trim() {
	same := func(struct{}, struct{}) bool { return true }
	trim(c.instances, func(place, place) bool { return true })
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
