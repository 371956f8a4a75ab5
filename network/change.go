package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// change writes a difference in one transaction.
func (r *ruleset) change(c changes) error {
	r.collect(c)
	return r.commit()
}

// collect adds a difference to the transaction. Elements that name a chain go before it and come after it.
func (r *ruleset) collect(c changes) {
	four := netip.Addr.Is4
	six := netip.Addr.Is6
	segment := func(a netip.Addr, s uint32) nftables.SetElement {
		return nftables.SetElement{Key: a.AsSlice(), Val: native32(s)}
	}
	plain := func(a netip.Addr, _ struct{}) nftables.SetElement { return nftables.SetElement{Key: a.AsSlice()} }
	update(r, r.sets.segments, c.segments, four, segment)
	update(r, r.sets.segments6, c.segments, six, segment)
	update(r, r.sets.internal, c.internal, four, plain)
	update(r, r.sets.internal6, c.internal, six, plain)
	update(r, r.sets.pairs, c.pairs, nil, func(p [2]uint32, _ struct{}) nftables.SetElement {
		return nftables.SetElement{Key: append(native32(p[0]), native32(p[1])...)}
	})
	update(r, r.sets.hairpins, c.hairpins, four, func(a netip.Addr, _ struct{}) nftables.SetElement {
		return nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)}
	})
	reroute(r, c.services, netip.Addr.Compare, serviceChain, func(a netip.Addr) (*nftables.Set, []byte) {
		return r.sets.services, a.AsSlice()
	})
	byProxy := func(k portKey, _ target) bool { return !k.inKernel() }
	maps.DeleteFunc(c.ports.del, byProxy)
	maps.DeleteFunc(c.ports.add, byProxy)
	reroute(r, c.ports, portKey.compare, portChain, r.portElement)
}

// update adds a set's differences for the keys that belong to it.
func update[K comparable, V any](r *ruleset, s *nftables.Set, d delta[K, V], belongs func(K) bool, element func(K, V) nftables.SetElement) {
	list := func(m map[K]V) []nftables.SetElement {
		var out []nftables.SetElement
		for k, v := range m {
			if belongs == nil || belongs(k) {
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

// reroute changes chains that spread connections over backends, and the map that leads to them. A chain that stays is
// only refilled: its element stays valid throughout.
func reroute[K comparable](r *ruleset, d delta[K, target], order func(a, b K) int, name func(K) string, element func(K) (*nftables.Set, []byte)) {
	for _, k := range sortedKeys(d.del, order) {
		if _, stays := d.add[k]; stays {
			continue
		}
		s, key := element(k)
		c := &nftables.Chain{Name: name(k), Table: r.table}
		r.elements(r.conn.SetDeleteElements, s, []nftables.SetElement{{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}})
		r.conn.FlushChain(c)
		r.conn.DelChain(c)
	}
	for _, k := range sortedKeys(d.add, order) {
		s, key := element(k)
		c := &nftables.Chain{Name: name(k), Table: r.table}
		_, stays := d.del[k]
		if stays {
			r.conn.FlushChain(c)
		} else {
			r.conn.AddChain(c)
		}
		r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: r.spread(d.add[k])})
		if !stays {
			r.elements(r.conn.SetAddElements, s, []nftables.SetElement{{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}})
		}
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

func serviceChain(a netip.Addr) string { return "service." + a.String() }

func portChain(k portKey) string {
	name := fmt.Sprintf("port.%d.%d", k.proto, k.port)
	if k.host.IsValid() {
		name += "." + k.host.String()
	}
	return name
}

// portElement is the map and key of a published port. Parts of a key fill four bytes each.
func (r *ruleset) portElement(k portKey) (*nftables.Set, []byte) {
	key := append([]byte{k.proto, 0, 0, 0}, append(binaryutil.BigEndian.PutUint16(k.port), 0, 0)...)
	if !k.host.IsValid() {
		return r.sets.ports, key
	}
	return r.sets.hostPorts, append(k.host.AsSlice(), key...)
}

// spread is the rule that gives each new connection the next backend.
func (r *ruleset) spread(t target) rule {
	out := rule{&expr.Immediate{Register: reg1, Data: t.backends[0].AsSlice()}}
	if len(t.backends) > 1 {
		out = r.turn(t.backends)
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}
	if t.port != 0 {
		out = append(out, &expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(t.port)})
		nat.RegProtoMin = unix.NFT_REG_2
	}
	return append(out, nat)
}

// backendsPerRule is what one message can carry. More instances of one service than that do not serve new connections.
const backendsPerRule = 2000

// turn puts the next backend's address into the register: a counter of the rule's own, and a map that goes with the rule.
func (r *ruleset) turn(backends []netip.Addr) rule {
	s := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr}
	backends = backends[:min(len(backends), backendsPerRule)]
	elements := make([]nftables.SetElement, len(backends))
	for i, a := range backends {
		elements[i] = nftables.SetElement{Key: native32(uint32(i)), Val: a.AsSlice()}
	}
	_ = r.conn.AddSet(s, elements) // only fails for keys longer than a message
	return rule{
		&expr.Numgen{Register: reg1, Modulus: uint32(len(backends)), Type: unix.NFT_NG_INCREMENTAL},
		translate(reg1, reg1, s),
	}
}
