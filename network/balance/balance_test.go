package balance

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func TestTurnsFollowWeights(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for _, c := range []struct {
		ready []Backend
		want  map[netip.Addr]int
	}{
		{nil, map[netip.Addr]int{}},
		{[]Backend{{a, 0}, {b, 0}, {c, 1}}, map[netip.Addr]int{a: 1, b: 1, c: 1}},
		{[]Backend{{a, 50}, {b, 50}}, map[netip.Addr]int{a: 1, b: 1}},
		{[]Backend{{a, 90}, {b, 10}}, map[netip.Addr]int{a: 9, b: 1}},
		{[]Backend{{a, -5}, {b, 2}}, map[netip.Addr]int{a: 1, b: 2}},
		{[]Backend{{a, 1 << 30}, {b, 1}}, map[netip.Addr]int{a: 1998, b: 1}},
	} {
		got := map[netip.Addr]int{}
		list := Turns(c.ready)
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
	list := Turns([]Backend{{a, 2}, {b, 1}, {c, 1}})
	for i := range list[1:] {
		if list[i] == list[i+1] {
			t.Errorf("two turns of the same after one another: %v", list)
		}
	}
}

func TestTurnsAreBoundedAndNobodyIsLeftOut(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		ready := make([]Backend, 1+rng.IntN(1500))
		for i := range ready {
			ready[i] = Backend{address(i + 1), rng.Int32N(1 << uint(rng.IntN(31)))}
		}
		list, seen := Turns(ready), map[netip.Addr]bool{}
		for _, a := range list {
			seen[a] = true
		}
		if len(list) > mostTurns || len(seen) != len(ready) {
			t.Fatalf("%d backends have %d turns and %d of them one", len(ready), len(list), len(seen))
		}
	}
}

// TestTurnsStay has instances come and go: what the kernel is told is what has changed, and everybody has one turn.
func TestTurnsStay(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var has []netip.Addr
	for range 500 {
		there := map[netip.Addr]bool{}
		var want []netip.Addr
		for range rng.IntN(40) {
			if a := address(rng.IntN(60) + 1); !there[a] {
				there[a], want = true, append(want, a)
			}
		}
		is := Keep(has, want)
		moved := 0
		for i, a := range is {
			if i < len(has) && has[i] != a && there[has[i]] {
				moved++
			}
		}
		// Only those whose turn is past the end of a shorter list may have to move.
		if tail := max(0, len(has)-len(is)); moved > tail {
			t.Fatalf("%v became %v: %d moved", has, is, moved)
		}
		got := slices.SortedFunc(slices.Values(is), netip.Addr.Compare)
		if slices.SortFunc(want, netip.Addr.Compare); !slices.Equal(got, want) {
			t.Fatalf("%v instead of %v", got, want)
		}
		has = is
	}
}

func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }
