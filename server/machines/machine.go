package machines

import (
	"context"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// machineService serves MachineService.
type machineService struct{ *API }

// caller is the machine that calls. Its role is what the cluster says today, not what its certificate said once.
func (h *machineService) caller(ctx context.Context) (*gantryv1.Node, error) {
	c, ok := identity.CallerFrom(ctx)
	if !ok {
		return nil, fault.New(fault.Denied, "only machines of the cluster may ask for this")
	}
	n, ok := store.Get[*gantryv1.Node](h.store.Snapshot(), c.Node)
	if !ok {
		return nil, NotAMember(c.Node)
	}
	return n, nil
}

// NotAMember says that a machine has been removed, or never was one; or that the state it belonged to was given up for an older
// one.
func NotAMember(node string) error {
	return fault.New(fault.Denied, "node %q is not part of this cluster: it was removed, or has joined after the backup that was restored", node).
		WithHint("to take it in again: stop its gantryd, keep what you need of ROOT/volumes, empty --root, and run gantry join there")
}

// Describe implements the API.
func (h *machineService) Describe(ctx context.Context, req *connect.Request[gantryv1.DescribeRequest]) (*connect.Response[gantryv1.DescribeResponse], error) {
	n, err := h.caller(ctx)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	if err := checkPlace(m.Name, m.Address, m.ApiAddress); err != nil {
		return nil, err
	}
	var out *gantryv1.Node
	err = h.store.Update(ctx, func(tx *store.Tx) error {
		nodes := store.List[*gantryv1.Node](tx, "")
		if err := placeFree(nodes, n.Meta.Key, m.ApiAddress); err != nil {
			return err
		}
		if err := checkOverlayKey(nodes, n.Meta.Key, m.OverlayKey); err != nil {
			return err
		}
		err := store.Modify(tx, n.Meta.Key, func(o *gantryv1.Node) error {
			o.Name, o.Address, o.ApiAddress, o.OverlayKey = m.Name, m.Address, m.ApiAddress, m.OverlayKey
			return nil
		})
		out, _ = store.Get[*gantryv1.Node](tx, n.Meta.Key)
		return err
	})
	return respond(&gantryv1.DescribeResponse{Node: out}, err)
}

// Renew implements the API.
func (h *machineService) Renew(ctx context.Context, req *connect.Request[gantryv1.RenewRequest]) (*connect.Response[gantryv1.RenewResponse], error) {
	n, err := h.caller(ctx)
	if err != nil {
		return nil, err
	}
	c, err := h.cluster(h.store.Snapshot())
	if err != nil {
		return nil, err
	}
	if err := h.maySign(); err != nil {
		return nil, err
	}
	cert, err := h.certificate(c, n, req.Msg.CertificateRequest)
	out := &gantryv1.RenewResponse{Certificate: cert, Roots: c.Roots}
	if n.Role == string(identity.Server) {
		out.SecretsKey = h.o.Sealer.Key()
	}
	return respond(out, err)
}

func (h *machineService) server(ctx context.Context) (*gantryv1.Node, error) {
	n, err := h.caller(ctx)
	if err == nil && n.Role != string(identity.Server) {
		err = fault.New(fault.Denied, "node %s is not a server", n.Name).WithHint("gantry node promote %s", n.Name)
	}
	return n, err
}

// ownMember is a fault if a member is that of another machine.
func ownMember(r store.Reader, n *gantryv1.Node, id, peerURL string) error {
	for _, o := range store.List[*gantryv1.Node](r, "") {
		if o.Member == id && o.Meta.Key != n.Meta.Key {
			return fault.New(fault.Conflict, "the member at %s is that of node %s", peerURL, o.Name).
				WithHint("if that machine is gone: gantry node rm %s", o.Meta.Key)
		}
	}
	return nil
}

// AddMember implements the API.
func (h *machineService) AddMember(ctx context.Context, req *connect.Request[gantryv1.AddMemberRequest]) (*connect.Response[gantryv1.AddMemberResponse], error) {
	n, err := h.server(ctx)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	for _, x := range h.members.Members() {
		if err := ownMember(h.store.Snapshot(), n, x.ID, m.PeerUrl); x.PeerURL == m.PeerUrl && err != nil {
			return nil, err
		}
	}
	id, initial, err := h.members.AddLearner(ctx, n.Meta.Key, m.PeerUrl, m.Empty)
	if err != nil {
		return nil, err
	}
	if n.Member != "" && n.Member != id {
		h.log.Warn("a server begins anew: the member that it was is gone", "node", n.Meta.Key, "name", n.Name, "was", n.Member, "is", id)
	}
	err = h.store.Update(ctx, func(tx *store.Tx) error {
		if err := ownMember(tx, n, id, m.PeerUrl); err != nil {
			return err
		}
		return store.Modify(tx, n.Meta.Key, func(o *gantryv1.Node) error { o.Member = id; return nil })
	})
	return respond(&gantryv1.AddMemberResponse{Member: id, InitialCluster: initial}, err)
}

// PromoteMember implements the API.
func (h *machineService) PromoteMember(ctx context.Context, req *connect.Request[gantryv1.PromoteMemberRequest]) (*connect.Response[gantryv1.PromoteMemberResponse], error) {
	n, err := h.server(ctx)
	if err != nil {
		return nil, err
	}
	if n.Member != req.Msg.Member {
		return nil, fault.New(fault.Denied, "member %s is not that of node %s", req.Msg.Member, n.Name)
	}
	return respond(&gantryv1.PromoteMemberResponse{}, h.members.Promote(ctx, n.Member))
}
