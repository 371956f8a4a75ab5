package schedule

import (
	"maps"
	"slices"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// lookAgain is how often it is looked whether the last move has been made.
const lookAgain = time.Second

// mover evens out services that allow it after a machine has come, one instance at a time.
type mover struct {
	due  bool // a machine has come or takes instances again, and not all has been looked at since
	next time.Time
}

// node notes a machine that has come into use.
func (m *mover) node(ev store.Event) {
	is, _ := ev.New.(*gantryv1.NodeStatus)
	was, _ := ev.Old.(*gantryv1.NodeStatus)
	if is.GetState() == "ready" && was.GetState() != "ready" {
		m.due = true
	}
}

// activated notes a machine that takes instances again.
func (m *mover) activated(ev store.Event) {
	is, _ := ev.New.(*gantryv1.Node)
	was, _ := ev.Old.(*gantryv1.Node)
	if is != nil && was != nil && placement.Active(is) && !placement.Active(was) {
		m.due = true
	}
}

// rebalance names the one instance that is to move now, if any, and when to ask again.
func (p *planner) rebalance(r store.Reader, now time.Time) (evict []eviction, again time.Time) {
	if !p.moves.due {
		return nil, time.Time{}
	}
	if now.Before(p.moves.next) {
		return nil, p.moves.next
	}
	p.moves.next = now.Add(lookAgain)
	movable, settled := p.movable(r)
	if !settled {
		return nil, p.moves.next
	}
	for _, service := range movable {
		if i := p.uneven(service); i != nil {
			p.state.SendAway(i)
			return []eviction{{i.ID(), "is moved to even out " + service}}, p.moves.next
		}
	}
	p.moves.due = false
	return nil, time.Time{}
}

// movable lists the services that may be evened out; settled is false while one of them has an instance on its way.
func (p *planner) movable(r store.Reader) (services []string, settled bool) {
	for _, o := range store.List[*gantryv1.Service](r, "") {
		key := o.Meta.Key
		if !p.state.Rules(key).Rebalance || o.Stopped || o.Removing || placement.IsJob(o.Spec) || placement.IsGlobal(o.Spec) {
			continue
		}
		if !p.complete(r, key, int(o.Replicas)) {
			return nil, false
		}
		services = append(services, key)
	}
	return services, true
}

// complete reports that a service has all its instances, that all are ready, and that none is leaving.
func (p *planner) complete(r store.Reader, service string, replicas int) bool {
	members := p.state.Members(service)
	for id, i := range members {
		st, _ := store.Get[*gantryv1.InstanceStatus](r, id)
		if i.Instance.Desired != gantryv1.Instance_DESIRED_RUNNING || !progress.Ready(st) {
			return false
		}
	}
	return len(members) == replicas
}

// uneven is an instance whose service would be spread better if it were made anew; nil if there is none.
func (p *planner) uneven(service string) *placement.Placed {
	r := p.state.Rules(service)
	members := p.state.Members(service)
	for _, id := range slices.Sorted(maps.Keys(members)) {
		i := members[id]
		if i.Machine == nil || bound(i.Demand) || r.Binpack {
			continue
		}
		from := p.crowd(r, i.Machine)
		better := false
		p.picker(i, func(m *placement.Machine) bool { return m != i.Machine }).best(func(m *placement.Machine) {
			better = eases(from, p.crowd(r, m), shared(r, i.Machine, m))
		})
		if better {
			return i
		}
	}
	return nil
}

// crowd counts the service's instances that have each of the machine's values of the preferences, and those on itself.
func (p *planner) crowd(r *placement.Rules, m *placement.Machine) []int32 {
	out := make([]int32, len(r.Preferences)+1)
	for _, o := range p.state.Machines() {
		if o.Services[r.Service] > 0 {
			for level := range shared(r, m, o) + 1 {
				out[level] += o.Services[r.Service]
			}
		}
	}
	out[len(out)-1] = m.Services[r.Service]
	return out
}

// shared is the number of preferences, from the first on, that two machines have the same values of, less one.
func shared(r *placement.Rules, a, b *placement.Machine) int {
	for level, attribute := range r.Preferences {
		if a.Value(attribute) != b.Value(attribute) {
			return level - 1
		}
	}
	return len(r.Preferences) - 1
}

// eases reports that one instance less here and one more there is more even, at the first level at which the two differ.
func eases(from, to []int32, same int) bool {
	level := min(same+1, len(from)-1)
	return from[level] > to[level]+1
}
