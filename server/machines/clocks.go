package machines

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

const clockTolerance = 2 * time.Second

// clocks is how far the machines that are heard have their clocks before the leader's.
type clocks struct {
	ahead map[string]time.Duration // by node ID
	right time.Duration            // of most machines, if they agree
	most  bool                     // more than half of the machines agree
}

func readClocks(nodes []*gantryv1.Node, status map[string]*gantryv1.NodeStatus) clocks {
	c := clocks{ahead: map[string]time.Duration{}}
	var all []time.Duration
	for _, n := range nodes {
		if st := status[n.Meta.Key]; st.GetState() == "ready" && st.Clock != nil && st.LastSeen != nil {
			d := st.Clock.AsTime().Sub(st.LastSeen.AsTime())
			c.ahead[n.Meta.Key], all = d, append(all, d)
		}
	}
	if len(all) == 0 {
		return c
	}
	slices.Sort(all)
	middle, agree := all[len(all)/2], 0 // where more than half agree, the one in the middle is one of them
	for _, d := range all {
		if (d - middle).Abs() <= clockTolerance {
			agree++
		}
	}
	if c.most = 2*agree > len(all); c.most {
		c.right = middle
	}
	return c
}

// examine names the machines whose clocks are not as those of most, the leader's too. Where no more than half agree, as of
// two machines, nobody can tell whose is wrong.
func (c clocks) examine(nodes []*gantryv1.Node, leader string) []*gantryv1.Finding {
	i := slices.IndexFunc(nodes, func(n *gantryv1.Node) bool { return n.Meta.Key == leader })
	var out []*gantryv1.Finding
	for _, n := range nodes {
		ahead, heard := c.ahead[n.Meta.Key]
		off := ahead - c.right
		if !heard || off.Abs() <= clockTolerance {
			continue
		}
		f := &gantryv1.Finding{
			Severity: "warning", Subject: n.Name, Message: fmt.Sprintf("the clock of node %s is off by %s", n.Name, round(off)),
			Hint: "synchronise it: systemctl status systemd-timesyncd, or chrony",
		}
		if !c.most {
			other := "the server that leads"
			if i >= 0 {
				other = "node " + nodes[i].Name + ", which leads,"
			}
			f.Message = fmt.Sprintf("the clocks of node %s and of %s differ by %s: too few machines agree to say which is wrong", n.Name, other, round(off.Abs()))
			f.Hint = "compare both with a clock that is right, with date, and synchronise the wrong one: systemctl status systemd-timesyncd, or chrony"
		}
		out = append(out, f)
	}
	return out
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }

// maySign refuses to sign while this server's clock is so far before those of most machines that they would not take what it
// signs.
func (a *API) maySign() error {
	r := a.store.Snapshot()
	nodes := store.List[*gantryv1.Node](r, "")
	c := readClocks(nodes, statuses(r, nodes))
	if -c.right <= identity.Backdate {
		return nil
	}
	name := a.o.Node
	if n, ok := store.Get[*gantryv1.Node](r, a.o.Node); ok {
		name = cmp.Or(n.Name, name)
	}
	return fault.New(fault.Unavailable, "the clock of node %s, which leads, is %s ahead of those of most machines: they would refuse what it signs", name, round(-c.right)).
		WithHint("synchronise it: systemctl status systemd-timesyncd, or chrony; then try again")
}

func statuses(r store.Reader, nodes []*gantryv1.Node) map[string]*gantryv1.NodeStatus {
	out := map[string]*gantryv1.NodeStatus{}
	for _, n := range nodes {
		if s, ok := store.Get[*gantryv1.NodeStatus](r, n.Meta.Key); ok {
			out[n.Meta.Key] = s
		}
	}
	return out
}
