package network

import (
	"maps"
	"net/netip"
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/overlay"
)

// advance makes the model that of another state, at a cost that depends on what has changed. It reports false, and changes
// nothing, if several services claim the same, or if a network changes that services are in.
func (b *builder) advance(s State, peers []overlay.Peer) (changes, bool) {
	if b.mixed {
		return changes{}, false
	}
	steps, ok := b.plan(s)
	if !ok {
		return changes{}, false
	}
	c := newChanges()
	b.perform(&c, steps)
	c.trim()
	if !slices.Equal(peers, b.peers) {
		nodes, gateways := b.nodes, b.gateways
		b.peers = peers
		b.meet()
		same := func(struct{}, struct{}) bool { return true }
		c.nodes, c.gateways = compareMaps(nodes, b.nodes, same), compareMaps(gateways, b.gateways, same)
	}
	return c, true
}

// plan is what leads to a state.
type plan struct {
	networks map[string]*gantryv1.Network
	turns    []turn
}

// turn is what is new about one service: part is nil for one that comes, now for one that goes.
type turn struct {
	part *part
	now  *gantryv1.ServiceEndpoints
	gone []netip.Addr
	come map[netip.Addr]bool // and whether it is of this node
}

func (b *builder) arrival(e *gantryv1.ServiceEndpoints) turn {
	return turn{now: e, come: b.addressesOf(e)}
}

func (b *builder) departure(p *part) turn {
	return turn{part: p, gone: slices.Collect(maps.Keys(b.addressesOf(p.source)))}
}

// difference is of a service whose endpoints alone have changed.
func (b *builder) difference(p *part, now *gantryv1.ServiceEndpoints) turn {
	t := turn{part: p, now: now, come: b.addressesOf(now)}
	for a := range b.addressesOf(p.source) {
		if _, stays := t.come[a]; stays {
			delete(t.come, a)
		} else {
			t.gone = append(t.gone, a)
		}
	}
	return t
}

// plan compares a state with the one that the model was made of.
func (b *builder) plan(s State) (plan, bool) {
	b.round++
	out, known := plan{networks: b.networks}, 0
	for _, e := range s.Endpoints {
		p := b.parts[e.Service]
		switch {
		case p == nil:
			out.turns = append(out.turns, b.arrival(e))
			continue
		case p.seen == b.round:
			return out, false
		case p.source == e:
		case !sameFrame(p.source, e):
			out.turns = append(out.turns, b.departure(p), b.arrival(e))
		case !slices.EqualFunc(p.source.Endpoints, e.Endpoints, sameEndpoint):
			out.turns = append(out.turns, b.difference(p, e))
		}
		p.seen = b.round
		known++
	}
	if known < len(b.parts) {
		for _, p := range b.parts {
			if p.seen != b.round {
				out.turns = append(out.turns, b.departure(p))
			}
		}
	}
	if !b.sameNetworks(s.Networks) {
		out.networks = byKey(s.Networks)
	}
	return out, b.distinct(out.turns) && b.unused(out)
}

func (b *builder) sameNetworks(networks []*gantryv1.Network) bool {
	if len(networks) != len(b.networks) {
		return false
	}
	for _, n := range networks {
		if !sameNetwork(b.networks[n.GetMeta().GetKey()], n) {
			return false
		}
	}
	return true
}

func sameNetwork(a, b *gantryv1.Network) bool {
	return a == b || a != nil && b != nil && a.Number == b.Number && a.Internal == b.Internal
}

// distinct reports that no address, port or service is claimed twice afterwards.
func (b *builder) distinct(turns []turn) bool {
	leaving, coming := map[any]bool{}, map[any]bool{}
	for _, t := range turns {
		for _, a := range t.gone {
			leaving[a] = true
		}
		if t.now == nil {
			b.claimed(t.part.source, func(what any) { leaving[what] = true })
		}
	}
	ok := true
	come := func(what any, known bool) {
		ok = ok && (!known || leaving[what]) && !coming[what]
		coming[what] = true
	}
	for _, t := range turns {
		for a := range t.come {
			_, known := b.instances[a]
			come(a, known)
		}
		if t.part == nil {
			come(t.now.Service, false)
			b.claimed(t.now, func(what any) { come(what, b.claims[what]) })
		}
	}
	return ok
}

// virtual is a virtual address that a service claims: containers have addresses too.
type virtual struct{ address netip.Addr }

// claimed calls fn with the ports and the virtual address that a service has for itself.
func (b *builder) claimed(e *gantryv1.ServiceEndpoints, fn func(what any)) {
	for key := range b.targets(e) {
		fn(key)
	}
	if vip, _ := b.service(e); vip.IsValid() {
		fn(virtual{vip})
	}
}

// unused reports that no service that stays is in a network that changes.
func (b *builder) unused(p plan) bool {
	users := map[string]int{}
	changed := func(key string) {
		if !sameNetwork(b.networks[key], p.networks[key]) {
			users[key] = b.attached[key]
		}
	}
	for key := range b.networks {
		changed(key)
	}
	for key := range p.networks {
		changed(key)
	}
	for _, t := range p.turns {
		if t.now == nil {
			for _, at := range t.part.source.Attachments {
				users[at.Network]--
			}
		}
	}
	for _, n := range users {
		if n > 0 {
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

// perform brings the model from one state to the next: all who go before any who come, for somebody may go from one service
// to another. Where a segment gets its first container or loses its last, here or at all, all of those who share a network with
// it are looked at again.
func (b *builder) perform(c *changes, p plan) {
	b.networks = p.networks
	arrivals := b.arrive(p.turns)
	around := b.around(p.turns, arrivals)
	b.enter(c, p.turns, around, false)
	for _, t := range p.turns {
		b.depart(c, t)
	}
	for i, t := range p.turns {
		if t.now != nil {
			b.settle(c, t, arrivals[i])
		}
	}
	for s := range around {
		b.link(c, s)
	}
	b.enter(c, p.turns, around, true)
}

// arrive makes the parts of services that come; the others are those there are.
func (b *builder) arrive(turns []turn) []*part {
	out := make([]*part, len(turns))
	for i, t := range turns {
		if out[i] = t.part; t.part != nil {
			continue
		}
		segment, internal := b.segment(t.now)
		b.secluded[segment] = internal
		for _, n := range b.table.Networks(segment) {
			if b.members[n] == nil {
				b.members[n] = map[uint32]int{}
			}
			b.members[n][segment]++
		}
		out[i] = &part{source: t.now, segment: segment, seen: b.round}
	}
	return out
}

// around lists the segments that turns make come to life here or at all, or end there, and their neighbours.
func (b *builder) around(turns []turn, parts []*part) map[uint32]bool {
	balance := map[place]int{}
	for i, t := range turns {
		for _, a := range t.gone {
			balance[b.instances[a]]--
		}
		for _, local := range t.come {
			balance[place{parts[i].segment, local}]++
		}
	}
	out := map[uint32]bool{}
	for at, n := range balance {
		if before := b.count[at]; (before > 0) != (before+n > 0) {
			out[at.segment] = true
			b.neighbours(at.segment, func(s uint32) { out[s] = true })
		}
	}
	return out
}

// enter puts the containers of segments and those who come with turns into the tables that the kernel has, or takes those
// segments and who goes with turns out. What the model knows of who is where must be that of before, or after all turns.
func (b *builder) enter(c *changes, turns []turn, around map[uint32]bool, there bool) {
	for s := range around {
		for a := range b.inside[s] {
			if at := b.instances[a]; at.segment == s {
				b.tables(c, a, at, there)
			}
		}
	}
	for _, t := range turns {
		who := slices.Values(t.gone)
		if there {
			who = maps.Keys(t.come)
		}
		for a := range who {
			if at := b.instances[a]; !around[at.segment] {
				b.tables(c, a, at, there)
			}
		}
	}
}

// depart takes out what a turn takes away.
func (b *builder) depart(c *changes, t turn) {
	for _, a := range t.gone {
		at := b.instances[a]
		b.tally(at, -1)
		if delete(b.inside[at.segment], a); len(b.inside[at.segment]) == 0 {
			delete(b.inside, at.segment)
		}
		put(b.instances, &c.instances, a, place{}, false)
	}
	if t.now != nil || t.part == nil {
		return
	}
	e := t.part.source
	for key := range b.targets(e) {
		put(b.ports, &c.ports, key, target{}, false)
	}
	if vip, _ := b.service(e); vip.IsValid() {
		put(b.services, &c.services, vip, target{}, false)
	}
	b.claimed(e, func(what any) { delete(b.claims, what) })
	for _, at := range e.Attachments {
		if b.attached[at.Network]--; b.attached[at.Network] == 0 {
			delete(b.attached, at.Network)
		}
	}
	for _, n := range b.table.Networks(t.part.segment) {
		if b.members[n][t.part.segment]--; b.members[n][t.part.segment] == 0 {
			delete(b.members[n], t.part.segment)
		}
	}
	delete(b.parts, e.Service)
}

func (b *builder) tally(at place, n int) {
	if b.count[at] += n; b.count[at] == 0 {
		delete(b.count, at)
	}
}

// settle brings one service up to date, when those who go have gone.
func (b *builder) settle(c *changes, t turn, p *part) {
	for a, local := range t.come {
		at := place{p.segment, local}
		_, known := b.instances[a]
		b.mixed = b.mixed || known
		b.tally(at, 1)
		if b.inside[p.segment] == nil {
			b.inside[p.segment] = map[netip.Addr]struct{}{}
		}
		b.inside[p.segment][a] = struct{}{}
		put(b.instances, &c.instances, a, at, true)
	}
	mine := func(any) bool { return true }
	if p.source = t.now; t.part == nil {
		mine = b.enrol(p)
	}
	if vip, to := b.service(t.now); vip.IsValid() && mine(virtual{vip}) {
		put(b.services, &c.services, vip, to, len(to.backends) > 0)
	}
	for key, to := range b.targets(t.now) {
		if mine(key) {
			put(b.ports, &c.ports, key, to, len(to.backends) > 0)
		}
	}
}

// enrol notes a service that has come, and says what it claims that nobody uses yet.
func (b *builder) enrol(p *part) (mine func(what any) bool) {
	e := p.source
	b.mixed = b.mixed || b.parts[e.Service] != nil
	b.parts[e.Service] = p
	for _, at := range e.Attachments {
		b.attached[at.Network]++
	}
	b.claimed(e, func(what any) {
		b.mixed = b.mixed || b.claims[what]
		b.claims[what] = true
	})
	return func(what any) bool {
		var taken bool
		switch what := what.(type) {
		case portKey:
			_, taken = b.ports[what]
		case virtual:
			_, taken = b.services[what.address]
		}
		return !taken
	}
}

func (b *builder) tables(c *changes, a netip.Addr, at place, there bool) {
	put(b.hairpins, &c.hairpins, a, struct{}{}, there && at.local)
	if _, matters := b.live[at.segment]; !matters {
		return
	}
	put(b.internal, &c.internal, a, struct{}{}, there && b.secluded[at.segment])
	put(b.segments, &c.segments, a, at.segment, there)
	for _, s := range b.sharers[at.segment] {
		if at.local || b.home(s) { // what passes between other nodes does not pass here
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
	trim(c.live, same)
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
