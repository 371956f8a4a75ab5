package machines

import (
	"context"
	"path"
	"slices"
	"strings"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// nodeAdmin serves NodeAdminService.
type nodeAdmin struct{ *API }

// List implements the API.
func (h *nodeAdmin) List(context.Context, *connect.Request[gantryv1.ListNodesRequest]) (*connect.Response[gantryv1.ListNodesResponse], error) {
	snap := h.store.Snapshot()
	out := &gantryv1.ListNodesResponse{}
	tallies := tally(snap)
	for _, n := range store.List[*gantryv1.Node](snap, "") {
		out.Nodes = append(out.Nodes, h.view(snap, n, tallies))
	}
	slices.SortFunc(out.Nodes, func(a, b *gantryv1.NodeView) int { return strings.Compare(a.Node.Name, b.Node.Name) })
	return connect.NewResponse(out), nil
}

// count is what a node has to carry.
type count struct{ instances, running int32 }

func tally(r store.Reader) map[string]count {
	out := map[string]count{}
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		c := out[i.Node]
		c.instances++
		if st, ok := store.Get[*gantryv1.InstanceStatus](r, i.Meta.Key); ok && st.Phase == gantryv1.InstanceStatus_PHASE_RUNNING {
			c.running++
		}
		out[i.Node] = c
	}
	return out
}

func (h *nodeAdmin) view(r store.Reader, n *gantryv1.Node, tallies map[string]count) *gantryv1.NodeView {
	st, _ := store.Get[*gantryv1.NodeStatus](r, n.Meta.Key)
	c := tallies[n.Meta.Key]
	return &gantryv1.NodeView{
		Node: n, Status: st, Leader: n.Member != "" && n.Member == h.members.Leader(), Instances: c.instances, Running: c.running,
	}
}

// Find gives the machine that an ID, the beginning of one, or a name means.
func Find(r store.Reader, name string) (*gantryv1.Node, error) {
	if name == "" {
		return nil, fault.New(fault.Invalid, "which node?").WithHint("gantry node ls")
	}
	if n, ok := store.Get[*gantryv1.Node](r, name); ok {
		return n, nil
	}
	var found []*gantryv1.Node
	for _, n := range store.List[*gantryv1.Node](r, "") {
		if n.Name == name || strings.HasPrefix(n.Meta.Key, name) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, fault.New(fault.NotFound, "there is no node %q", name).WithHint("gantry node ls")
	case 1:
		return found[0], nil
	}
	return nil, fault.New(fault.Invalid, "%d nodes are called %q", len(found), name).WithHint("use the ID: gantry node ls")
}

func (h *nodeAdmin) answer(key string, err error) (*connect.Response[gantryv1.NodeView], error) {
	if err != nil {
		return nil, err
	}
	snap := h.store.Snapshot()
	n, ok := store.Get[*gantryv1.Node](snap, key)
	if !ok {
		return nil, NotAMember(key)
	}
	v := h.view(snap, n, tally(snap))
	v.Pinned = pinned(snap, key)
	return connect.NewResponse(v), nil
}

// pinned lists the instances that a node keeps although it is drained.
func pinned(r store.Reader, node string) []*gantryv1.PinnedInstance {
	var out []*gantryv1.PinnedInstance
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		if i.Node != node || i.Desired == gantryv1.Instance_DESIRED_REMOVED {
			continue
		}
		// What `gantry run` has started nobody makes again elsewhere.
		if v := progress.Pinned(r, i); v != "" || i.App == "" {
			out = append(out, &gantryv1.PinnedInstance{Instance: path.Join(i.Environment, i.App, progress.Name(i)), Volume: v})
		}
	}
	slices.SortFunc(out, func(a, b *gantryv1.PinnedInstance) int { return strings.Compare(a.Instance, b.Instance) })
	return out
}

// Get implements the API.
func (h *nodeAdmin) Get(_ context.Context, req *connect.Request[gantryv1.NodeRequest]) (*connect.Response[gantryv1.NodeView], error) {
	n, err := Find(h.store.Snapshot(), req.Msg.Node)
	return h.answer(n.GetMeta().GetKey(), err)
}

// change edits the object of a node and answers with what it is then.
func (h *nodeAdmin) change(ctx context.Context, name string, fn func(tx *store.Tx, n *gantryv1.Node) error) (*connect.Response[gantryv1.NodeView], error) {
	var key string
	err := h.store.Update(ctx, func(tx *store.Tx) error {
		n, err := Find(tx, name)
		if err != nil {
			return err
		}
		key = n.Meta.Key
		return store.Modify(tx, key, func(o *gantryv1.Node) error { return fn(tx, o) })
	})
	return h.answer(key, err)
}

// Label implements the API.
func (h *nodeAdmin) Label(ctx context.Context, req *connect.Request[gantryv1.LabelNodeRequest]) (*connect.Response[gantryv1.NodeView], error) {
	return h.change(ctx, req.Msg.Node, func(_ *store.Tx, n *gantryv1.Node) error {
		for k, v := range req.Msg.Labels {
			if err := checkLabel(k, v); err != nil {
				return err
			}
			if n.Meta.Labels == nil {
				n.Meta.Labels = map[string]string{}
			}
			n.Meta.Labels[k] = v
			if v == "" {
				delete(n.Meta.Labels, k)
			}
		}
		if len(n.Meta.Labels) > maxLabels {
			return fault.New(fault.Exhausted, "node %s cannot have more than %d labels", n.Name, maxLabels).WithHint("gantry node label NODE old=")
		}
		return nil
	})
}

// SetAvailability implements the API.
func (h *nodeAdmin) SetAvailability(ctx context.Context, req *connect.Request[gantryv1.SetAvailabilityRequest]) (*connect.Response[gantryv1.NodeView], error) {
	return h.change(ctx, req.Msg.Node, func(_ *store.Tx, n *gantryv1.Node) error {
		if a := req.Msg.Availability; a != "active" && a != "drain" {
			return fault.New(fault.Invalid, "a node cannot be %q", a).WithHint("active or drain")
		}
		n.Availability = req.Msg.Availability
		return nil
	})
}

// Promote implements the API: the machine learns from its object that it is a server now, and does the rest.
func (h *nodeAdmin) Promote(ctx context.Context, req *connect.Request[gantryv1.NodeRequest]) (*connect.Response[gantryv1.NodeView], error) {
	return h.change(ctx, req.Msg.Node, func(_ *store.Tx, n *gantryv1.Node) error {
		if n.ApiAddress == "" {
			return fault.New(fault.Invalid, "node %s stands alone: other machines cannot reach it", n.Name).WithHint("start its gantryd with --advertise ADDRESS")
		}
		n.Role = string(identity.Server)
		return nil
	})
}

// Demote implements the API.
func (h *nodeAdmin) Demote(ctx context.Context, req *connect.Request[gantryv1.NodeRequest]) (*connect.Response[gantryv1.NodeView], error) {
	n, err := Find(h.store.Snapshot(), req.Msg.Node)
	if err != nil {
		return nil, err
	}
	if err := h.resign(ctx, n); err != nil {
		return nil, err
	}
	return h.change(ctx, n.Meta.Key, func(_ *store.Tx, o *gantryv1.Node) error {
		o.Role, o.Member = string(identity.Node), ""
		return nil
	})
}

// resign takes a server's member out of the replicated state.
func (h *nodeAdmin) resign(ctx context.Context, n *gantryv1.Node) error {
	if n.Role != string(identity.Server) {
		return nil
	}
	servers := 0
	for _, m := range h.members.Members() {
		if !m.Learner {
			servers++
		}
	}
	if servers <= 1 && n.Member == h.members.ID() {
		return fault.New(fault.Conflict, "node %s is the only server", n.Name).WithHint("promote another first: gantry node promote NODE")
	}
	member := h.memberOf(store.List[*gantryv1.Node](h.store.Snapshot(), ""), n)
	if member == h.members.ID() {
		if err := h.members.HandOver(ctx); err != nil {
			return err
		}
		return fault.New(fault.Unavailable, "node %s was the leader and has handed over", n.Name).WithHint("try again")
	}
	if member == "" {
		return nil
	}
	return h.members.Remove(ctx, member)
}

// Remove implements the API.
func (h *nodeAdmin) Remove(ctx context.Context, req *connect.Request[gantryv1.RemoveNodeRequest]) (*connect.Response[gantryv1.RemoveNodeResponse], error) {
	snap := h.store.Snapshot()
	n, err := Find(snap, req.Msg.Node)
	if fault.Is(err, fault.NotFound) && req.Msg.Force && h.stray(store.List[*gantryv1.Node](snap, ""), req.Msg.Node) {
		return respond(&gantryv1.RemoveNodeResponse{}, h.members.Remove(ctx, req.Msg.Node))
	}
	if err != nil {
		return nil, err
	}
	if err := removable(snap, n, req.Msg.Force); err != nil {
		return nil, err
	}
	if err := h.resign(ctx, n); err != nil {
		return nil, err
	}
	var refused error
	err = h.store.Update(ctx, func(tx *store.Tx) error {
		if refused = removable(tx, n, req.Msg.Force); refused != nil { // something has been put there meanwhile
			return resigned(tx, n)
		}
		store.Delete[*gantryv1.Node](tx, n.Meta.Key)
		return nil
	})
	if err == nil && refused != nil {
		return nil, refused
	}
	if err == nil {
		h.store.Observe(nil, []store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta(n.Meta.Key)}})
		h.log.Info("a machine was removed", "node", n.Meta.Key, "name", n.Name)
	}
	return respond(&gantryv1.RemoveNodeResponse{}, err)
}

// resigned notes that a server, whose member is out of the state, is none any more.
func resigned(tx *store.Tx, n *gantryv1.Node) error {
	if n.Role != string(identity.Server) {
		return nil
	}
	return store.Modify(tx, n.Meta.Key, func(o *gantryv1.Node) error {
		o.Role, o.Member = string(identity.Node), ""
		return nil
	})
}

// removable refuses a node that is up and has instances, and one whose volumes would be lost with it.
func removable(r store.Reader, n *gantryv1.Node, force bool) error {
	if force {
		return nil
	}
	if st, ok := store.Get[*gantryv1.NodeStatus](r, n.Meta.Key); ok && st.State == "ready" {
		for _, i := range store.List[*gantryv1.Instance](r, "") {
			if i.Node == n.Meta.Key {
				return fault.New(fault.Conflict, "node %s is up and runs instances", n.Name).
					WithHint("move them first: gantry node drain %s; or: gantry node rm --force %s", n.Name, n.Name)
			}
		}
	}
	for _, v := range store.List[*gantryv1.Volume](r, "") {
		if v.Node == n.Meta.Key {
			return fault.New(fault.Conflict, "node %s holds the volume %s", n.Name, v.Meta.Key).
				WithHint("its data goes with the node: gantry volume rm, or gantry node rm --force %s", n.Name)
		}
	}
	return nil
}
