package schedule

import (
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store/placement"
)

const maxEvictions = 64 // in one plan

// place puts the group's instances on machines until none has room or the limit is reached.
func (p *planner) place(g *group, limit int, out *plan) {
	first := g.first(p.state)
	if first == nil {
		return
	}
	for id := range g.waiting {
		p.letGo(id) // what was kept for the group it may use
	}
	if bound(first.Demand) {
		p.placeEach(g, limit, out)
		return
	}
	pick := p.picker(first, nil)
	for len(out.assign) < limit {
		i := g.first(p.state)
		if i == nil {
			return
		}
		if !pick.best(func(m *placement.Machine) { p.assign(g, i, m, out) }) {
			p.stuck(g, out)
			return
		}
	}
}

// bound reports that instances may differ in where they can be: by volumes, of which the first decides for the others, or
// by instances that they are to be beside.
func bound(d *placement.Demand) bool { return len(d.Joins)+len(d.Volumes) > 0 }

// placeEach looks for each instance anew.
func (p *planner) placeEach(g *group, limit int, out *plan) {
	failed := false
	for _, id := range slices.Clone(g.queue) {
		i := p.state.Instance(id)
		if !g.waiting[id] || i == nil {
			continue
		}
		if len(out.assign) >= limit {
			return
		}
		if !p.picker(i, p.onlyOn(i)).best(func(m *placement.Machine) { p.assign(g, i, m, out) }) {
			failed = true
		}
	}
	if failed {
		p.stuck(g, out)
	}
}

func (p *planner) picker(i *placement.Placed, fit func(*placement.Machine) bool) *picker {
	r := p.state.Rules(i.Service)
	return newPicker(p.state.Machines(), i.Demand, r, p.state.Apart(r), fit)
}

// onlyOn is nil if any machine will do.
func (p *planner) onlyOn(i *placement.Placed) func(*placement.Machine) bool {
	only, bound := p.state.Only(i)
	if !bound {
		return nil
	}
	return func(m *placement.Machine) bool { return only[m.ID()] }
}

func (p *planner) assign(g *group, i *placement.Placed, m *placement.Machine, out *plan) {
	p.state.Place(i, m)
	out.assign = append(out.assign, assignment{i.ID(), m.ID()})
	delete(g.waiting, i.ID())
	if p.joining > 0 {
		p.version++ // others may wait for it
	}
	if p.said[i.ID()] != "" {
		delete(p.said, i.ID())
		p.unsay = append(p.unsay, i.ID())
	}
}

// stuck notes that no more of the group fits, and makes room by sending away what is less important.
func (p *planner) stuck(g *group, out *plan) {
	g.tried = p.version
	lowest, replaced := p.state.Lowest(p.priority(g)), p.replaced(g)
	if lowest && len(replaced) == 0 {
		return
	}
	for _, id := range slices.Clone(g.queue) {
		i := p.state.Instance(id)
		if !g.waiting[id] || i == nil {
			continue
		}
		if len(out.evict) >= maxEvictions {
			g.tried = 0
			return
		}
		if p.takeOver(i, replaced[i.Instance.Slot], out) || lowest {
			continue
		}
		if !p.preempt(i, out) && len(replaced) == 0 {
			return
		}
	}
}

// replaced are the instances, by slot, whose room the group may have while a rolling update to its release is on its way,
// if nobody has said in which order.
func (p *planner) replaced(g *group) map[int32]*placement.Placed {
	i := g.first(p.state)
	if i == nil || i.Instance.Job != 0 {
		return nil
	}
	o := p.state.Service(i.Service)
	u := o.GetSpec().GetUpdate()
	if o.GetRelease() != i.Instance.Release || u.GetOrder() != "" || u.GetStrategy() != "" && u.GetStrategy() != "rolling" {
		return nil
	}
	out := map[int32]*placement.Placed{}
	for _, m := range p.state.Members(i.Service) {
		if m.Machine != nil && m.Instance.Release != i.Instance.Release && m.Instance.Desired != gantryv1.Instance_DESIRED_STOPPED {
			out[m.Instance.Slot] = m
		}
	}
	return out
}

// takeOver gives an instance the room of the one that it replaces.
func (p *planner) takeOver(i, old *placement.Placed, out *plan) bool {
	if old == nil {
		return false
	}
	m, fits := old.Machine, false
	p.state.Without(old, func() {
		r := p.state.Rules(i.Service)
		on := p.onlyOn(i)
		fits = (on == nil || on(m)) && m.Fits(i.Demand, r, p.state.Apart(r))
	})
	switch {
	case !fits:
		return false
	case old.Instance.Desired == gantryv1.Instance_DESIRED_REMOVED:
		p.keep(i, m, nil, out)
	default:
		p.keep(i, m, []*placement.Placed{old}, out)
	}
	return true
}

// keep holds room on a machine for an instance until others have left it.
func (p *planner) keep(i *placement.Placed, m *placement.Machine, leaving []*placement.Placed, out *plan) {
	cause := "makes room for " + i.Service
	for _, v := range leaving {
		out.evict = append(out.evict, eviction{v.ID(), cause})
		p.state.SendAway(v)
	}
	m.Hold(i.Demand)
	p.held[i.ID()] = &holding{m, i.Demand}
}

// preempt keeps the machine for an instance on which the least is lost, and has others leave it.
func (p *planner) preempt(i *placement.Placed, out *plan) bool {
	var best *placement.Machine
	var victims []*placement.Placed
	on := p.onlyOn(i)
	for _, m := range p.state.Machines() {
		if on != nil && !on(m) {
			continue
		}
		v, ok := p.state.Victims(i, m)
		if ok && (best == nil || p.cheaper(v, victims)) {
			best, victims = m, v
		}
	}
	if best == nil {
		return false
	}
	p.keep(i, best, victims, out)
	return true
}

// cheaper compares by the highest priority that is lost, then by number.
func (p *planner) cheaper(a, b []*placement.Placed) bool {
	x, y := p.dearest(a), p.dearest(b)
	if len(a) == 0 || len(b) == 0 || x == y {
		return len(a) < len(b)
	}
	return x < y
}

func (p *planner) dearest(list []*placement.Placed) int32 {
	var out int32
	for n, v := range list {
		if priority := p.state.Rules(v.Service).Priority; n == 0 || priority > out {
			out = priority
		}
	}
	return out
}
