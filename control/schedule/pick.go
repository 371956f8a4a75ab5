package schedule

import (
	"cmp"
	"container/heap"

	"github.com/gantryd/gantry/store/placement"
)

// picker finds the best machine for one instance of a service after another. Machines that cannot have any are left out
// at the start, those that are full as they are found to be.
type picker struct {
	rules  *placement.Rules
	demand *placement.Demand
	apart  []string
	root   *branch
}

// branch is the machines that have the same values of the first preferences. Leaves have seats.
type branch struct {
	value    string
	count    int32 // instances of the service
	children []*branch
	seats    seats
}

// newPicker looks at all machines once. fit may be nil.
func newPicker(machines []*placement.Machine, d *placement.Demand, r *placement.Rules, apart []string, fit func(*placement.Machine) bool) *picker {
	p := &picker{rules: r, demand: d, apart: apart, root: &branch{}}
	p.root.seats.binpack = r.Binpack
	if len(r.Preferences) == 0 {
		p.root.seats.list = make([]seat, 0, len(machines))
	}
	for _, m := range machines {
		if (fit == nil || fit(m)) && m.Fits(d, r, apart) {
			p.add(m)
		} else if len(r.Preferences) > 0 && m.Services[r.Service] > 0 {
			p.count(m)
		}
	}
	p.root.each(func(b *branch) { heap.Init(&b.seats) })
	return p
}

func (b *branch) each(fn func(*branch)) {
	fn(b)
	for _, c := range b.children {
		c.each(fn)
	}
}

// leaf is the branch of a machine, made if need be; n more instances of the service are counted on the way.
func (p *picker) leaf(m *placement.Machine, n int32) *branch {
	b := p.root
	b.count += n
	for _, a := range p.rules.Preferences {
		b = b.child(m.Value(a), p.rules.Binpack)
		b.count += n
	}
	return b
}

func (b *branch) child(value string, binpack bool) *branch {
	for _, c := range b.children {
		if c.value == value {
			return c
		}
	}
	c := &branch{value: value, seats: seats{binpack: binpack}}
	b.children = append(b.children, c)
	return c
}

func (p *picker) add(m *placement.Machine) {
	b := p.leaf(m, m.Services[p.rules.Service])
	b.seats.list = append(b.seats.list, p.seat(m))
}

// count notes instances on a machine that takes no more.
func (p *picker) count(m *placement.Machine) { p.leaf(m, m.Services[p.rules.Service]) }

// best has place put the next instance on the best machine; false if none has room.
func (p *picker) best(place func(*placement.Machine)) bool { return p.take(p.root, place) }

func (p *picker) take(b *branch, place func(*placement.Machine)) bool {
	for len(b.children) > 0 {
		c := b.children[0]
		at := 0
		for i, o := range b.children {
			if o.count < c.count || o.count == c.count && o.value < c.value {
				c, at = o, i
			}
		}
		if p.take(c, place) {
			b.count++
			return true
		}
		b.children = append(b.children[:at], b.children[at+1:]...)
	}
	for len(b.seats.list) > 0 {
		m := b.seats.list[0].machine
		if m.Fits(p.demand, p.rules, p.apart) {
			place(m)
			b.count++
			b.seats.list[0] = p.seat(m)
			heap.Fix(&b.seats, 0)
			return true
		}
		heap.Pop(&b.seats)
	}
	return false
}

// seat is a machine with what it is compared by.
type seat struct {
	machine   *placement.Machine
	own       int32 // instances of the service
	full      int32 // in steps of a twentieth
	instances int32
}

const steps = 20

func (p *picker) seat(m *placement.Machine) seat {
	return seat{m, m.Services[p.rules.Service], int32(m.Fullness() * steps), m.Load.Instances}
}

// spread orders machines with few instances of the service first, then those with much room.
func spread(a, b seat) int {
	return cmp.Or(cmp.Compare(a.own, b.own), cmp.Compare(a.full, b.full), cmp.Compare(a.instances, b.instances))
}

// packed orders full machines first.
func packed(a, b seat) int {
	return cmp.Or(cmp.Compare(b.full, a.full), cmp.Compare(b.instances, a.instances))
}

// seats is a heap of machines, the best first.
type seats struct {
	binpack bool
	list    []seat
}

func (s *seats) Len() int { return len(s.list) }

func (s *seats) Less(i, j int) bool {
	a, b := s.list[i], s.list[j]
	order := spread(a, b)
	if s.binpack {
		order = packed(a, b)
	}
	return cmp.Or(order, cmp.Compare(a.machine.ID(), b.machine.ID())) < 0
}

func (s *seats) Swap(i, j int) { s.list[i], s.list[j] = s.list[j], s.list[i] }

func (s *seats) Push(x any) { s.list = append(s.list, x.(seat)) }

func (s *seats) Pop() any {
	last := s.list[len(s.list)-1]
	s.list = s.list[:len(s.list)-1]
	return last
}
