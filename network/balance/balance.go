// Package balance says whose turn it is when connections are spread over backends: a leaf of package network.
//
// Turns lists turns by weight; Keep brings such a list up to date with as few changes as can be. Both are pure.
package balance

import (
	"cmp"
	"net/netip"
	"slices"
)

// mostTurns bounds what weights cost: a service of more instances than that gives each of them one turn.
const mostTurns = 2000

// Backend is one instance that takes connections. A weight below 1 counts as 1.
type Backend struct {
	Address netip.Addr
	Weight  int32
}

func (b Backend) share() int64 { return int64(max(b.Weight, 1)) }

// Turns lists who takes the next connection, and the next, until it begins anew. Those of more weight come more often, spread
// over the list. Weights are reduced to at most mostTurns turns; everybody keeps at least one.
func Turns(ready []Backend) []netip.Addr {
	shares, sum := reduce(ready)
	if sum == int64(len(ready)) {
		out := make([]netip.Addr, len(ready))
		for i, b := range ready {
			out[i] = b.Address
		}
		return out
	}
	type turn struct {
		at      float64
		address netip.Addr
	}
	list := make([]turn, 0, sum)
	for i, b := range ready {
		for k := range shares[i] {
			list = append(list, turn{(float64(k) + 0.5) / float64(shares[i]), b.Address})
		}
	}
	slices.SortFunc(list, func(a, b turn) int { return cmp.Or(cmp.Compare(a.at, b.at), a.address.Compare(b.address)) })
	out := make([]netip.Addr, len(list))
	for i, t := range list {
		out[i] = t.address
	}
	return out
}

// reduce makes weights as small as they can be, and their sum at most mostTurns.
func reduce(ready []Backend) (shares []int64, sum int64) {
	var divisor int64
	for _, b := range ready {
		divisor = gcd(divisor, b.share())
		sum += b.share()
	}
	room := int64(mostTurns - len(ready))
	shares = make([]int64, len(ready))
	over := divisor > 0 && sum/divisor > mostTurns
	total := int64(0)
	for i, b := range ready {
		shares[i] = b.share() / max(divisor, 1)
		if over {
			shares[i] = 1 + max(room, 0)*b.share()/sum
		}
		total += shares[i]
	}
	return shares, total
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Keep lets those who have a turn already keep it. Where somebody has several, as weights ask for, they stay spread as
// they are wanted.
func Keep(has, want []netip.Addr) []netip.Addr {
	missing := make(map[netip.Addr]bool, len(want))
	for _, a := range want {
		missing[a] = true
	}
	if len(has) == 0 || len(missing) < len(want) {
		return want
	}
	out := make([]netip.Addr, len(want))
	for i := range min(len(has), len(out)) {
		if missing[has[i]] {
			out[i] = has[i]
			delete(missing, has[i])
		}
	}
	free := 0
	for _, a := range want {
		if !missing[a] {
			continue
		}
		for out[free].IsValid() {
			free++
		}
		out[free] = a
	}
	return out
}
