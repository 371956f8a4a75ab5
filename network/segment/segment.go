// Package segment numbers sets of networks: containers in the same set, a segment, may talk to the same others.
//
// New, then Number for each set that a service is in, and Keep now and then. A Table is not safe in parallel.
package segment

import (
	"maps"
	"slices"
)

// Table gives each set of networks a number. Numbers are never used twice in one run of the daemon, so that a change of one
// service cannot renumber another.
type Table struct {
	numbers  map[string]uint32
	networks map[uint32][]uint32
	last     uint32
}

// New makes a table that knows no set.
func New() *Table { return &Table{numbers: map[string]uint32{}, networks: map[uint32][]uint32{}} }

// Number is that of a set of networks, which is sorted; from 1.
func (t *Table) Number(networks []uint32) uint32 {
	key := make([]byte, 0, 4*len(networks))
	for _, n := range networks {
		key = append(key, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	if s, ok := t.numbers[string(key)]; ok {
		return s
	}
	t.last++
	t.numbers[string(key)], t.networks[t.last] = t.last, networks
	return t.last
}

// Networks is the set of a number, sorted.
func (t *Table) Networks(segment uint32) []uint32 { return t.networks[segment] }

// Len is how many sets are known.
func (t *Table) Len() int { return len(t.networks) }

// Keep forgets all sets but those. Their numbers are not used again.
func (t *Table) Keep(used map[uint32]bool) {
	maps.DeleteFunc(t.numbers, func(_ string, s uint32) bool { return !used[s] })
	maps.DeleteFunc(t.networks, func(s uint32, _ []uint32) bool { return !used[s] })
}

// Share reports whether two sets have a network in common.
func (t *Table) Share(a, b uint32) bool {
	return slices.ContainsFunc(t.networks[a], func(n uint32) bool { return slices.Contains(t.networks[b], n) })
}
