package machines

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
)

// memberOf is the ID of a server's member: what its object says, or the one at its address that is no other machine's, as one is
// that was added by a leader which could not note it any more. It is empty if there is none.
func (a *API) memberOf(nodes []*gantryv1.Node, n *gantryv1.Node) string {
	members := a.members.Members()
	if n.Role != string(identity.Server) || slices.ContainsFunc(members, func(m cluster.Info) bool { return m.ID == n.Member }) {
		return n.Member
	}
	for _, m := range members {
		if u, err := url.Parse(m.PeerURL); err == nil && n.Address != "" && u.Hostname() == n.Address && !noted(nodes, m.ID) {
			return m.ID
		}
	}
	return n.Member
}

// noted reports whether a member is that of a machine as its object says.
func noted(nodes []*gantryv1.Node, member string) bool {
	return slices.ContainsFunc(nodes, func(n *gantryv1.Node) bool { return n.Member == member })
}

// stray reports whether there is a member with the ID and no machine that it could be of.
func (a *API) stray(nodes []*gantryv1.Node, id string) bool {
	return id != a.members.ID() && slices.ContainsFunc(a.members.Members(), func(m cluster.Info) bool { return m.ID == id }) &&
		!slices.ContainsFunc(nodes, func(n *gantryv1.Node) bool { return a.memberOf(nodes, n) == id })
}

// memberStatus is what is known of each member. A member that does not take part is not reachable, however well its machine is.
// Where it is not known who takes part, the machine's session stands for it.
func (h *clusterService) memberStatus(nodes []*gantryv1.Node, status map[string]*gantryv1.NodeStatus) []*gantryv1.MemberStatus {
	byMember := map[string]*gantryv1.Node{}
	for _, n := range nodes {
		byMember[h.memberOf(nodes, n)] = n
	}
	var out []*gantryv1.MemberStatus
	answering := h.members.Answering()
	for _, m := range h.members.Members() {
		n := byMember[m.ID]
		st := status[n.GetMeta().GetKey()]
		reachable := answering[m.ID]
		if answering == nil {
			reachable = st.GetState() == "ready" || m.ID == h.members.ID()
		}
		out = append(out, &gantryv1.MemberStatus{
			Member: m.ID, Node: n.GetMeta().GetKey(), Name: n.GetName(), PeerUrl: m.PeerURL, Learner: m.Learner,
			Reachable: reachable, Version: st.GetVersion(),
		})
	}
	return out
}

// examineMembers says which servers have no part in the state, and how many may still be lost.
func examineMembers(h Health) []*gantryv1.Finding {
	var out []*gantryv1.Finding
	add := func(severity, subject, hint, format string, args ...any) {
		out = append(out, &gantryv1.Finding{Severity: severity, Subject: subject, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	voters, answer := 0, 0
	known := map[string]bool{} // nodes that have a member
	for _, m := range h.Cluster.Members {
		known[m.Node] = true
		if !m.Learner {
			voters++
			if m.Reachable {
				answer++
			}
		}
	}
	for _, m := range h.Cluster.Members {
		name := cmp.Or(m.Name, m.Member)
		if h.Cluster.Leader != "" && !m.Reachable {
			why, hint := absence(m, name, h.Status[m.Node])
			add("error", name, hint, "server %s is no member that answers: %s; %d of %d with a vote do", name, why, answer, voters)
		}
		if m.Learner {
			add("warning", name, "it becomes a full server by itself once it has caught up", "server %s has no vote yet", name)
		}
	}
	for _, n := range h.Nodes {
		st := h.Status[n.Meta.Key]
		if st.GetServerError() != "" && n.Role == string(identity.Server) && !known[n.Meta.Key] {
			add("error", n.Name, onItself(n.Name, st), "server %s has no member yet: it says that %s", n.Name, st.ServerError)
		}
	}
	if voters == 2 {
		add("warning", "cluster", "add a third server: gantry cluster token create --role server",
			"with two servers the loss of either one stops all changes")
	}
	return out
}

// absence is why a member does not take part, as far as its machine says, and what to do.
func absence(m *gantryv1.MemberStatus, name string, st *gantryv1.NodeStatus) (why, hint string) {
	switch {
	case st.GetState() == "ready" && st.GetServerError() != "":
		return "it says that " + st.ServerError, onItself(name, st)
	case st.GetState() == "ready":
		return "its machine is ready, but nothing comes from " + m.PeerUrl,
			"is that port open between servers, and does the disk of " + name + " work? see journalctl -u gantryd there; if its state is lost: " +
				"gantry node demote " + name + ", then gantry node promote " + name
	}
	return "nothing comes from its machine at " + m.PeerUrl,
		"start gantryd there; if the machine is lost for good: gantry node rm --force " + name
}

// onItself is what a server says that is to be done there.
func onItself(name string, st *gantryv1.NodeStatus) string {
	return "on " + name + ": " + cmp.Or(st.GetServerHint(), "journalctl -u gantryd")
}
