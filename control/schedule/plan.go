package schedule

import (
	"cmp"
	"maps"
	"slices"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// assignment gives one instance a node.
type assignment struct{ instance, node string }

// eviction sends an instance away.
type eviction struct{ instance, cause string }

// plan is what is to be written.
type plan struct {
	assign []assignment
	evict  []eviction // of instances that make room for others, or move
	pins   []placement.Pin
}

func (p plan) empty() bool { return len(p.assign)+len(p.evict)+len(p.pins) == 0 }

// group is the pending instances of one release.
type group struct {
	key     string
	order   int64    // groups that came first go first
	queue   []string // in the order they came; some may have gone
	waiting map[string]bool
	joins   bool  // they share namespaces with others
	tried   int64 // the planner's version when nothing more of it fitted; 0 while that is not known
	unsaid  bool  // some have not been told why they wait
	why     string
	asked   time.Time // when why was found out
	version int64     // and the planner's version then
}

// planner follows the store and plans. It is not safe in parallel.
type planner struct {
	state   *placement.State
	groups  map[string]*group
	joining int // groups whose instances share namespaces with others
	arrived int64
	version int64               // grows with whatever may make room
	held    map[string]*holding // by instance: room kept for it
	said    map[string]string   // by instance: why it waits, as published
	unsay   []string            // instances that were told something that is over
	moves   mover
}

// holding is room on a machine, kept for an instance until others have left.
type holding struct {
	machine *placement.Machine
	demand  *placement.Demand
}

func newPlanner(r store.Reader) *planner {
	p := &planner{
		state: placement.NewState(r), groups: map[string]*group{}, version: 1, held: map[string]*holding{}, said: map[string]string{},
		moves: mover{due: true}, // what has come before is not known
	}
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		p.enqueue(i)
	}
	return p
}

// apply follows changes; r is the store as it is now.
func (p *planner) apply(r store.Reader, events []store.Event) {
	for _, ev := range events {
		p.state.Apply(r, ev)
		switch newest(ev).(type) {
		case *gantryv1.Instance:
			p.instance(ev)
		case *gantryv1.NodeStatus:
			if differs(ev) {
				p.version++
			}
			p.moves.node(ev)
		case *gantryv1.Node:
			p.version++
			p.moves.activated(ev)
		case *gantryv1.Volume, *gantryv1.Service, *gantryv1.Release:
			p.version++
		}
	}
}

// differs reports that a node's status has changed in what placement looks at, and not only in when it was heard of.
func differs(ev store.Event) bool {
	was, _ := ev.Old.(*gantryv1.NodeStatus)
	is, _ := ev.New.(*gantryv1.NodeStatus)
	return was.GetState() != is.GetState() || was.GetNanoCpus() != is.GetNanoCpus() || was.GetMemory() != is.GetMemory() ||
		was.GetPids() != is.GetPids() || was.GetArchitecture() != is.GetArchitecture() || was.GetOs() != is.GetOs() ||
		!maps.Equal(was.GetDevices(), is.GetDevices())
}

func newest(ev store.Event) store.Object {
	if ev.New != nil {
		return ev.New
	}
	return ev.Old
}

func (p *planner) instance(ev store.Event) {
	was, _ := ev.Old.(*gantryv1.Instance)
	is, _ := ev.New.(*gantryv1.Instance)
	if is == nil || !pending(is) {
		p.dequeue(was, is)
	} else {
		p.enqueue(is)
	}
	switch {
	case was.GetNode() != "" && (is == nil || is.Outcome != was.Outcome || is.Node != was.Node || is.Desired != was.Desired):
		p.version++
	case is.GetNode() != "" && p.joining > 0:
		p.version++ // one that others wait for
	}
}

func pending(i *gantryv1.Instance) bool {
	return i.Node == "" && i.Outcome == "" && i.Desired != gantryv1.Instance_DESIRED_REMOVED
}

func (p *planner) enqueue(i *gantryv1.Instance) {
	if !pending(i) {
		return
	}
	key := placement.SpecKey(i)
	g := p.groups[key]
	if g == nil {
		p.arrived++
		g = &group{key: key, order: p.arrived, waiting: map[string]bool{}}
		p.groups[key] = g
		if len(p.state.Instance(i.Meta.Key).Demand.Joins) > 0 {
			g.joins = true
			p.joining++
		}
	}
	if !g.waiting[i.Meta.Key] {
		g.waiting[i.Meta.Key] = true
		g.queue = append(g.queue, i.Meta.Key)
		g.tried, g.unsaid = 0, true
	}
}

// dequeue forgets an instance that waits no longer.
func (p *planner) dequeue(was, is *gantryv1.Instance) {
	i := is
	if i == nil {
		i = was
	}
	id := i.GetMeta().GetKey()
	p.letGo(id)
	if p.said[id] != "" {
		delete(p.said, id)
		p.unsay = append(p.unsay, id)
	}
	if g := p.groups[placement.SpecKey(i)]; g != nil {
		delete(g.waiting, id)
	}
}

// letGo gives back the room kept for an instance.
func (p *planner) letGo(id string) {
	if h := p.held[id]; h != nil {
		h.machine.Free(h.demand)
		delete(p.held, id)
	}
}

// plan places up to limit instances, the highest priority first, then those that came first. The state is as if the plan
// had been carried out already. more tells that the limit cut it short.
func (p *planner) plan(limit int) (out plan, more bool) {
	for _, g := range p.sorted() {
		if len(out.assign) >= limit || len(out.evict) >= maxEvictions {
			more = true
			break
		}
		p.place(g, limit, &out)
		more = more || g.tried == 0 && len(g.waiting) > 0
	}
	out.pins = p.state.Pins()
	return out, more
}

// waiting counts the instances that fit nowhere.
func (p *planner) waiting() (n int) {
	for _, g := range p.groups {
		if g.tried != 0 {
			n += len(g.waiting)
		}
	}
	return n
}

// sorted are the groups that are worth a try.
func (p *planner) sorted() []*group {
	var out []*group
	for key, g := range p.groups {
		switch {
		case len(g.waiting) == 0:
			p.end(key, g)
		case g.tried != p.version:
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b *group) int {
		return cmp.Or(cmp.Compare(p.priority(b), p.priority(a)), cmp.Compare(a.order, b.order))
	})
	return out
}

func (p *planner) end(key string, g *group) {
	delete(p.groups, key)
	if g.joins {
		p.joining--
	}
}

func (p *planner) priority(g *group) int32 {
	if i := g.first(p.state); i != nil {
		return p.state.Rules(i.Service).Priority
	}
	return 0
}

// first is the oldest that waits.
func (g *group) first(s *placement.State) *placement.Placed {
	for len(g.queue) > 0 {
		if g.waiting[g.queue[0]] {
			if i := s.Instance(g.queue[0]); i != nil {
				return i
			}
			delete(g.waiting, g.queue[0])
		}
		g.queue = g.queue[1:]
	}
	return nil
}
