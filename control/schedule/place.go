package schedule

import (
	"slices"

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
	out.assign = append(out.assign, assignment{instance: i.ID(), node: m.ID(), volumes: p.state.Place(i, m)})
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
	if p.state.Lowest(p.priority(g)) {
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
		if !p.preempt(i, out) {
			return
		}
	}
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
	for _, v := range victims {
		out.evict = append(out.evict, v.ID())
		p.state.SendAway(v)
	}
	best.Hold(i.Demand)
	p.held[i.ID()] = &holding{best, i.Demand}
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
