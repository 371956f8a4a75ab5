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

const (
	// lookAgain is how often it is looked whether the last move has been made.
	lookAgain = time.Second
	// lookLater is how often it is looked whether a service that was passed over has all its instances.
	lookLater = 5 * time.Second
	// moveTime is how long a move that does not come to an end holds up those of other services.
	moveTime = time.Minute
)

// mover evens out services that allow it after a machine has come, one instance at a time.
type mover struct {
	due  bool // a machine has come or takes instances again, and not all has been looked at since
	next time.Time

	moved string    // the service whose instance was moved last
	until time.Time // when that is waited for no more
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
	if now.Before(p.moves.until) && p.moving(r) {
		return nil, p.moves.next
	}
	movable, all := p.movable(r)
	for _, service := range movable {
		if i := p.uneven(service); i != nil {
			p.state.SendAway(i)
			p.moves.moved, p.moves.until = service, now.Add(moveTime)
			return []eviction{{i.ID(), "is moved to even out " + service}}, p.moves.next
		}
	}
	if all {
		p.moves.due = false
		return nil, time.Time{}
	}
	p.moves.next = now.Add(lookLater)
	return nil, p.moves.next
}

// moving reports that the instance that was moved last has not come up elsewhere.
func (p *planner) moving(r store.Reader) bool {
	s, ok := store.Get[*gantryv1.Service](r, p.moves.moved)
	return ok && p.evens(s) && !p.complete(r, p.moves.moved, int(s.Replicas))
}

// evens reports that a service is one that may be evened out.
func (p *planner) evens(s *gantryv1.Service) bool {
	return p.state.Rules(s.Meta.Key).Rebalance && !s.Stopped && !s.Removing && !placement.IsJob(s.Spec) && !placement.IsGlobal(s.Spec)
}

// movable lists the services that may be evened out now; all is false if others may when they have all their instances.
func (p *planner) movable(r store.Reader) (services []string, all bool) {
	all = true
	for _, s := range store.List[*gantryv1.Service](r, "") {
		switch {
		case !p.evens(s):
		case p.complete(r, s.Meta.Key, int(s.Replicas)):
			services = append(services, s.Meta.Key)
		default:
			all = false
		}
	}
	return services, all
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
