package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// change writes a difference in one transaction.
func (r *ruleset) change(c changes) error {
	r.collect(c)
	return r.commit()
}

// collect adds a difference to the transaction. Elements that name a chain go before it and come after it.
func (r *ruleset) collect(c changes) {
	four, six := netip.Addr.Is4, netip.Addr.Is6
	for s := range c.live.add {
		r.addSegment(s)
	}
	jump := func(a netip.Addr, s uint32) nftables.SetElement {
		return nftables.SetElement{Key: a.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: segmentChain(s)}}
	}
	known := func(a netip.Addr, _ uint32) nftables.SetElement { return nftables.SetElement{Key: a.AsSlice()} }
	plain := func(a netip.Addr, _ struct{}) nftables.SetElement { return nftables.SetElement{Key: a.AsSlice()} }
	update(r, r.sets.segments, c.segments, four, jump)
	update(r, r.sets.segments6, c.segments, six, jump)
	update(r, r.sets.containers, c.segments, four, known)
	update(r, r.sets.containers6, c.segments, six, known)
	update(r, r.sets.internal, c.internal, four, plain)
	update(r, r.sets.internal6, c.internal, six, plain)
	update(r, r.sets.nodes, c.nodes, four, plain)
	update(r, r.sets.nodes6, c.nodes, six, plain)
	update(r, r.sets.gateways, c.gateways, four, plain)
	update(r, r.sets.gateways6, c.gateways, six, plain)
	r.updateReach(c)
	for s := range c.live.del {
		r.removeSegment(s)
	}
	update(r, r.sets.hairpins, c.hairpins, four, func(a netip.Addr, _ struct{}) nftables.SetElement {
		return nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)}
	})
	reroute(r, c.services, netip.Addr.Compare, r.wayToService)
	byProxy := func(k portKey, _ target) bool { return !k.inKernel() }
	maps.DeleteFunc(c.ports.del, byProxy)
	maps.DeleteFunc(c.ports.add, byProxy)
	reroute(r, c.ports, portKey.compare, r.wayToPort)
}

func segmentChain(s uint32) string { return fmt.Sprintf("segment.%d", s) }

// reachSets hold what a segment may talk to.
func (r *ruleset) reachSets(s uint32) (four, six *nftables.Set) {
	return &nftables.Set{Table: r.table, Name: fmt.Sprintf("reach.%d", s), KeyType: nftables.TypeIPAddr},
		&nftables.Set{Table: r.table, Name: fmt.Sprintf("reach6.%d", s), KeyType: nftables.TypeIP6Addr}
}

func (r *ruleset) addSegment(s uint32) {
	four, six := r.reachSets(s)
	_ = r.conn.AddSet(four, nil) // only fails for anonymous sets
	_ = r.conn.AddSet(six, nil)
	r.branch(segmentChain(s),
		join(ipv4(), rule{destination4(regA), inSet(regA, four)}, accept()),
		join(ipv6(), rule{destination6(reg1), inSet(reg1, six)}, accept()))
}

func (r *ruleset) removeSegment(s uint32) {
	four, six := r.reachSets(s)
	c := &nftables.Chain{Name: segmentChain(s), Table: r.table}
	r.conn.FlushChain(c)
	r.conn.DelChain(c)
	r.conn.DelSet(four)
	r.conn.DelSet(six)
}

// updateReach changes what segments may talk to, but for those that go with all they have.
func (r *ruleset) updateReach(c changes) {
	type change struct{ del, add []nftables.SetElement }
	bySet := map[string]*change{}
	sets := map[string]*nftables.Set{}
	at := func(k reach) *change {
		s, six := r.reachSets(k.segment)
		if k.address.Is6() {
			s = six
		}
		if bySet[s.Name] == nil {
			bySet[s.Name], sets[s.Name] = &change{}, s
		}
		return bySet[s.Name]
	}
	for k := range c.reach.del {
		if _, gone := c.live.del[k.segment]; !gone {
			ch := at(k)
			ch.del = append(ch.del, nftables.SetElement{Key: k.address.AsSlice()})
		}
	}
	for k := range c.reach.add {
		ch := at(k)
		ch.add = append(ch.add, nftables.SetElement{Key: k.address.AsSlice()})
	}
	for name, ch := range bySet {
		r.elements(r.conn.SetDeleteElements, sets[name], ch.del)
		r.elements(r.conn.SetAddElements, sets[name], ch.add)
	}
}

// update adds a set's differences for the keys that belong to it.
func update[K comparable, V any](r *ruleset, s *nftables.Set, d delta[K, V], belongs func(K) bool, element func(K, V) nftables.SetElement) {
	list := func(m map[K]V) []nftables.SetElement {
		var out []nftables.SetElement
		for k, v := range m {
			if belongs(k) {
				out = append(out, element(k, v))
			}
		}
		return out
	}
	r.elements(r.conn.SetDeleteElements, s, list(d.del))
	r.elements(r.conn.SetAddElements, s, list(d.add))
}

// elementsPerMessage keeps a list of elements below the 64 KiB that a netlink attribute can hold.
const elementsPerMessage = 400

func (r *ruleset) elements(op func(*nftables.Set, []nftables.SetElement) error, s *nftables.Set, list []nftables.SetElement) {
	for chunk := range slices.Chunk(list, elementsPerMessage) {
		_ = op(s, chunk) // only fails for anonymous sets and keys longer than a message
	}
}

func sortedKeys[K comparable](m map[K]target, order func(a, b K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, order)
	return keys
}
