package schedule

import (
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// sayAgain is how often the reason of those that wait is found out anew.
const sayAgain = time.Second

// say is what those who wait are to be told, what is over, and when to look again.
func (p *planner) say(now time.Time) (put, gone []store.Object, again time.Time) {
	for _, id := range p.unsay {
		gone = append(gone, &gantryv1.InstanceStatus{Meta: store.NewMeta(id)})
	}
	p.unsay = nil
	for _, g := range p.groups {
		if len(g.waiting) == 0 || g.tried == 0 {
			continue
		}
		if wait := p.findOut(g, now); !wait.IsZero() && (again.IsZero() || wait.Before(again)) {
			again = wait
		}
		if g.unsaid && g.why != "" {
			put = p.tell(g, put)
		}
	}
	return put, gone, again
}

// findOut brings the group's reason up to date, unless that was done a moment ago; then it tells when to do it.
func (p *planner) findOut(g *group, now time.Time) (again time.Time) {
	if g.version == p.version && g.why != "" {
		return time.Time{}
	}
	if due := g.asked.Add(sayAgain); g.why != "" && now.Before(due) {
		return due
	}
	i := g.first(p.state)
	if i == nil {
		return time.Time{}
	}
	why := p.reason(i)
	g.unsaid = g.unsaid || why != g.why
	g.why, g.asked, g.version = why, now, p.version
	return time.Time{}
}

// reason is why an instance waits.
func (p *planner) reason(i *placement.Placed) string {
	if h := p.held[i.ID()]; h != nil {
		return "waits until others have left node " + h.machine.Name()
	}
	return p.state.Why(i)
}

func (p *planner) tell(g *group, put []store.Object) []store.Object {
	g.unsaid = false
	for id := range g.waiting {
		if p.said[id] == g.why {
			continue
		}
		p.said[id] = g.why
		put = append(put, &gantryv1.InstanceStatus{
			Meta: store.NewMeta(id), Phase: gantryv1.InstanceStatus_PHASE_PENDING, Error: g.why, Hint: hint(p.state.Instance(id)),
		})
	}
	return put
}

func hint(p *placement.Placed) string {
	if p == nil {
		return ""
	}
	return "gantry explain " + p.Instance.Service
}

// silence takes back all that has been said.
func (p *planner) silence() (gone []store.Object) {
	for id := range p.said {
		gone = append(gone, &gantryv1.InstanceStatus{Meta: store.NewMeta(id)})
	}
	return gone
}
