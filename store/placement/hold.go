package placement

import (
	"cmp"
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Hold keeps room on the machine free for an instance that is to come; Free gives it back.
func (m *Machine) Hold(d *Demand) { m.Load.add(d, 1) }

// Free gives back what Hold has kept.
func (m *Machine) Free(d *Demand) { m.Load.add(d, -1) }

// Victims are instances of lower priority whose leave would make room for one more of a demand on the machine, the fewest
// and least important that do; none if room comes by itself as soon as those that are leaving have left. ok is false if
// there is no way.
func (s *State) Victims(p *Placed, m *Machine) (victims []*Placed, ok bool) {
	r := s.Rules(p.Service)
	if m.may(p.Demand, r) != fits {
		return nil, false
	}
	left := m.Load.clone()
	var below []*Placed
	for _, o := range m.Here {
		switch {
		case !o.stays():
			left.add(o.Demand, -1)
		case s.movable(o) && s.Rules(o.Service).Priority < r.Priority:
			below = append(below, o)
		}
	}
	if !s.suits(m, r) {
		return nil, false
	}
	slices.SortFunc(below, s.dearer)
	for len(below) > 0 && m.holds(p.Demand, &left) != fits {
		last := below[len(below)-1]
		below = below[:len(below)-1]
		left.add(last.Demand, -1)
		victims = append(victims, last)
	}
	if m.holds(p.Demand, &left) != fits {
		return nil, false
	}
	return m.spare(p.Demand, &left, victims), true
}

// suits reports that nothing on the machine but a want of room keeps the service away.
func (s *State) suits(m *Machine, r *Rules) bool {
	why := m.room(&Demand{}, r, s.Apart(r))
	return why != missApart && why != missMax
}

// spare lets those stay, the dearest first, without whom there is room too.
func (m *Machine) spare(d *Demand, left *Load, victims []*Placed) []*Placed {
	var out []*Placed
	for _, v := range slices.Backward(victims) {
		left.add(v.Demand, 1)
		if m.holds(d, left) != fits {
			left.add(v.Demand, -1)
			out = append(out, v)
		}
	}
	return out
}

// movable reports that something else is made for an instance that is sent away, and that it may go to another machine.
func (s *State) movable(p *Placed) bool {
	o := s.services[p.Service]
	return o != nil && !IsGlobal(o.Spec) && p.Instance.Desired == gantryv1.Instance_DESIRED_RUNNING
}

// dearer orders by priority, the highest first, then older before younger.
func (s *State) dearer(a, b *Placed) int {
	x, y := a.Instance.Meta, b.Instance.Meta
	return cmp.Or(cmp.Compare(s.Rules(b.Service).Priority, s.Rules(a.Service).Priority),
		x.CreatedAt.AsTime().Compare(y.CreatedAt.AsTime()), cmp.Compare(x.Key, y.Key))
}

// Lowest reports that no service has a lower priority.
func (s *State) Lowest(priority int32) bool {
	for _, o := range s.services {
		if o.GetSpec().GetPriority() < priority {
			return false
		}
	}
	return true
}
