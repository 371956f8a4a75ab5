package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/gantryd/gantry/fault"
)

// addressPool hands out the addresses of one IPv4 range in turn, so that a freed address rests as long as possible before
// somebody with an old answer could meet its next owner. The network's lock guards it.
type addressPool struct {
	subnet      netip.Prefix
	used        map[netip.Addr]bool
	first, last uint32 // usable hosts; the gateway is before first
	next        uint32
}

func newAddressPool(subnet netip.Prefix) *addressPool {
	base := number(subnet.Addr())
	size := uint32(1) << (32 - subnet.Bits())
	return &addressPool{subnet: subnet, used: map[netip.Addr]bool{}, first: base + 2, last: base + size - 2, next: base + 2}
}

// take gives the next free address.
func (p *addressPool) take() (netip.Addr, error) {
	for range p.last - p.first + 1 {
		a := address(p.next)
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

// reserve takes one address and reports whether it was free.
func (p *addressPool) reserve(a netip.Addr) bool {
	if p.used[a] {
		return false
	}
	p.used[a] = true
	return true
}

// usable reports whether containers may have the address at all.
func (p *addressPool) usable(a netip.Addr) bool {
	return a.Is4() && number(a) >= p.first && number(a) <= p.last
}

func (p *addressPool) left() int { return int(p.last-p.first) + 1 - len(p.used) }

func (p *addressPool) free(a netip.Addr) { delete(p.used, a) }

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
