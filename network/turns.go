package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/network/balance"
)

// Each virtual address and published port has a chain whose one rule counts connections and looks up whose turn it is, in a
// map that it shares with some others. A map of each rule's own would cost the kernel the square of their number: it looks for
// each such map through the whole transaction, and for its name through all maps of the table. One map for all would too: it
// walks through a map for each rule that begins to use it, and through the rules for each element.

// rowsPerMap is how many chains share a map.
const rowsPerMap = 64

// turnMap is one of those maps: from row and turn to backend.
type turnMap struct {
	set  *nftables.Set
	rows int
}

// row is what one chain has in its map.
type row struct {
	in     *turnMap
	number uint32
	seats  []netip.Addr // who has which turn
}

// turnTable is all maps and rows that the kernel's table has.
type turnTable struct {
	maps       map[*turnMap]bool
	rows       map[string]*row // by chain
	lastMap    int
	lastNumber uint32
}

func newTurnTable() turnTable { return turnTable{maps: map[*turnMap]bool{}, rows: map[string]*row{}} }

// row finds the row of a chain, or makes it in a map that has room.
func (r *ruleset) row(chain string) *row {
	if w := r.turns.rows[chain]; w != nil {
		return w
	}
	r.turns.lastNumber++
	w := &row{in: r.roomyMap(), number: r.turns.lastNumber}
	w.in.rows++
	r.turns.rows[chain] = w
	return w
}

func (r *ruleset) roomyMap() *turnMap {
	for m := range r.turns.maps {
		if m.rows < rowsPerMap {
			return m
		}
	}
	r.turns.lastMap++
	m := &turnMap{set: &nftables.Set{
		Table: r.table, Name: fmt.Sprintf("turns.%d", r.turns.lastMap), Concatenation: true, IsMap: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeMark), DataType: nftables.TypeIPAddr,
	}}
	_ = r.conn.AddSet(m.set, nil) // only fails for anonymous sets
	r.turns.maps[m] = true
	return m
}

// leave gives up the row of a chain.
func (r *ruleset) leave(chain string) {
	if w := r.turns.rows[chain]; w != nil {
		w.in.rows--
		delete(r.turns.rows, chain)
	}
}

// tidy removes the maps that no chain uses any more.
func (r *ruleset) tidy() {
	for m := range r.turns.maps {
		if m.rows == 0 {
			r.conn.DelSet(m.set)
			delete(r.turns.maps, m)
		}
	}
}

// rule gives each new connection the next backend.
func (w *row) rule(to target) rule {
	out := rule{
		&expr.Immediate{Register: regA, Data: native32(w.number)},
		&expr.Numgen{Register: regB, Modulus: uint32(len(to.backends)), Type: unix.NFT_NG_INCREMENTAL},
		translate(regA, reg1, w.in.set),
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}
	if to.port != 0 {
		out = append(out, &expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(to.port)})
		nat.RegProtoMin = unix.NFT_REG_2
	}
	return append(out, nat)
}

func (w *row) element(turn int, a netip.Addr) nftables.SetElement {
	return nftables.SetElement{Key: append(native32(w.number), native32(uint32(turn))...), Val: a.AsSlice()}
}

// edits are elements to be taken out of sets and put into them, all of a set together.
type edits struct {
	del, add map[*nftables.Set][]nftables.SetElement
}

func newEdits() edits {
	return edits{map[*nftables.Set][]nftables.SetElement{}, map[*nftables.Set][]nftables.SetElement{}}
}

// sit notes what gives the turns of a row to backends. Who had one and stays keeps it, so that a change costs what has changed.
func (e edits) sit(w *row, want []netip.Addr) {
	s, has := w.in.set, w.seats
	want = balance.Keep(has, want)
	for i := range max(len(has), len(want)) {
		if i < len(has) && i < len(want) && has[i] == want[i] {
			continue
		}
		if i < len(has) {
			e.del[s] = append(e.del[s], w.element(i, has[i]))
		}
		if i < len(want) {
			e.add[s] = append(e.add[s], w.element(i, want[i]))
		}
	}
	w.seats = want
}

// way is the element of a verdict map that leads to a chain.
type way struct {
	chain string
	in    *nftables.Set
	key   []byte
}

func (w way) element() nftables.SetElement {
	return nftables.SetElement{Key: w.key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: w.chain}}
}

func (r *ruleset) wayToService(a netip.Addr) way {
	return way{"service." + a.String(), r.sets.services, a.AsSlice()}
}

// wayToPort is of a published port. Parts of a key fill four bytes each.
func (r *ruleset) wayToPort(k portKey) way {
	chain := fmt.Sprintf("port.%d.%d", k.proto, k.port)
	key := append([]byte{k.proto, 0, 0, 0}, append(binaryutil.BigEndian.PutUint16(k.port), 0, 0)...)
	if !k.host.IsValid() {
		return way{chain, r.sets.ports, key}
	}
	return way{chain + "." + k.host.String(), r.sets.hostPorts, append(k.host.AsSlice(), key...)}
}

// reroute changes the ways to backends. A chain that stays keeps the element that leads to it, and its rule too if the number
// of turns stays. Rules come before elements: the kernel walks through a map for each rule that begins to use it.
func reroute[K comparable](r *ruleset, d delta[K, target], order func(a, b K) int, wayTo func(K) way) {
	e, gone := newEdits(), map[K]way{}
	for _, k := range sortedKeys(d.del, order) {
		if _, stays := d.add[k]; !stays {
			w := wayTo(k)
			gone[k] = w
			e.del[w.in] = append(e.del[w.in], w.element())
			e.sit(r.row(w.chain), nil)
		}
	}
	r.delete(e)
	for _, k := range sortedKeys(d.del, order) {
		if w, is := gone[k]; is {
			c := &nftables.Chain{Name: w.chain, Table: r.table}
			r.conn.FlushChain(c)
			r.conn.DelChain(c)
			r.leave(w.chain)
		}
	}
	e = newEdits()
	for _, k := range sortedKeys(d.add, order) {
		w, to := wayTo(k), d.add[k]
		seats := r.row(w.chain)
		was, stays := d.del[k]
		if !stays {
			r.branch(w.chain, seats.rule(to))
			e.add[w.in] = append(e.add[w.in], w.element())
		} else if was.port != to.port || len(was.backends) != len(to.backends) {
			c := &nftables.Chain{Name: w.chain, Table: r.table}
			r.conn.FlushChain(c)
			r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: seats.rule(to)})
		}
		e.sit(seats, to.backends)
	}
	r.delete(e)
	for s, list := range e.add {
		r.elements(r.conn.SetAddElements, s, list)
	}
	r.tidy()
}

func (r *ruleset) delete(e edits) {
	for s, list := range e.del {
		r.elements(r.conn.SetDeleteElements, s, list)
	}
}
