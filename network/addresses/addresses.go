// Package addresses hands out the addresses of a node's range.
package addresses

import (
	"encoding/binary"
	"net/netip"

	"github.com/gantryd/gantry/fault"
)

// Pool hands out the addresses of one IPv4 range in turn, so that a freed address rests as long as possible before
// somebody with an old answer could meet its next owner. Its caller serialises calls.
type Pool struct {
	subnet      netip.Prefix
	used        map[netip.Addr]bool
	first, last uint32 // hosts; the gateway is before first
	next        uint32
}

// New makes a pool of all addresses of a range that hosts can have, but for the first, which is the gateway's.
func New(subnet netip.Prefix) *Pool {
	base := Number(subnet.Addr())
	size := uint32(1) << (32 - subnet.Bits())
	return &Pool{subnet: subnet, used: map[netip.Addr]bool{}, first: base + 2, last: base + size - 2, next: base + 2}
}

// Take gives the next free address.
func (p *Pool) Take() (netip.Addr, error) {
	for range p.last - p.first + 1 {
		a := At(p.next)
		if p.next++; p.next > p.last {
			p.next = p.first
		}
		if !p.used[a] {
			p.used[a] = true
			return a, nil
		}
	}
	return netip.Addr{}, fault.New(fault.Exhausted, "all %d addresses of this node's range %s are taken", len(p.used), p.subnet).
		WithHint("remove stopped instances (gantry system prune) or give the node a larger range")
}

// Reserve takes one address and reports whether it was free.
func (p *Pool) Reserve(a netip.Addr) bool {
	if p.used[a] {
		return false
	}
	p.used[a] = true
	return true
}

// Range is the first and the last address that containers may have.
func (p *Pool) Range() (first, last netip.Addr) { return At(p.first), At(p.last) }

// Usable reports whether containers may have the address at all.
func (p *Pool) Usable(a netip.Addr) bool {
	return a.Is4() && Number(a) >= p.first && Number(a) <= p.last
}

// Left is the number of addresses that nobody has.
func (p *Pool) Left() int { return int(p.last-p.first) + 1 - len(p.used) }

// Free gives an address back.
func (p *Pool) Free(a netip.Addr) { delete(p.used, a) }

// Number is an IPv4 address as a number.
func Number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// At is the IPv4 address of a number.
func At(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
