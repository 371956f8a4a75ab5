package network

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestTurnsFollowWeights(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for _, c := range []struct {
		ready []backend
		want  map[netip.Addr]int
	}{
		{nil, map[netip.Addr]int{}},
		{[]backend{{a, 0}, {b, 0}, {c, 1}}, map[netip.Addr]int{a: 1, b: 1, c: 1}},
		{[]backend{{a, 50}, {b, 50}}, map[netip.Addr]int{a: 1, b: 1}},
		{[]backend{{a, 90}, {b, 10}}, map[netip.Addr]int{a: 9, b: 1}},
		{[]backend{{a, -5}, {b, 2}}, map[netip.Addr]int{a: 1, b: 2}},
		{[]backend{{a, 1 << 30}, {b, 1}}, map[netip.Addr]int{a: 1998, b: 1}},
	} {
		got := map[netip.Addr]int{}
		list := turns(c.ready)
		for _, x := range list {
			got[x]++
		}
		if len(got) != len(c.want) {
			t.Errorf("%v: %v", c.ready, got)
		}
		for x, n := range c.want {
			if got[x] != n {
				t.Errorf("%v: %s has %d turns, want %d", c.ready, x, got[x], n)
			}
		}
	}
	list := turns([]backend{{a, 2}, {b, 1}, {c, 1}})
	for i := range list[1:] {
		if list[i] == list[i+1] {
			t.Errorf("two turns of the same after one another: %v", list)
		}
	}
}

func TestTurnsAreBoundedAndNobodyIsLeftOut(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		ready := make([]backend, 1+rng.IntN(1500))
		for i := range ready {
			ready[i] = backend{address(uint32(i + 1)), rng.Int32N(1 << uint(rng.IntN(31)))}
		}
		list, seen := turns(ready), map[netip.Addr]bool{}
		for _, a := range list {
			seen[a] = true
		}
		if len(list) > mostTurns || len(seen) != len(ready) {
			t.Fatalf("%d backends have %d turns and %d of them one", len(ready), len(list), len(seen))
		}
	}
}
