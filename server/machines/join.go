package machines

import (
	"bytes"
	"context"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// joining serves JoinService.
type joining struct{ *API }

// Join implements the API. A machine is named after its key, so that one which asks again is the same machine.
func (h *joining) Join(ctx context.Context, req *connect.Request[gantryv1.JoinRequest]) (*connect.Response[gantryv1.JoinResponse], error) {
	m := req.Msg
	if err := checkJoin(m); err != nil {
		return nil, err
	}
	key, err := signedBy(m.CertificateRequest)
	if err != nil {
		return nil, err
	}
	id := idOf(key)
	var n *gantryv1.Node
	err = h.store.Update(ctx, func(tx *store.Tx) error {
		role, err := admit(tx, m.Token, time.Now())
		if err == nil {
			err = h.maySign()
		}
		if err != nil {
			return err
		}
		n, err = h.place(tx, key, role, m)
		return err
	})
	if err != nil {
		h.log.Warn("a machine was not admitted", "name", m.Name, "address", m.Address, "err", err)
		return nil, err
	}
	h.log.Info("a machine has joined", "node", id, "name", m.Name, "role", n.Role, "address", m.Address)
	return respond(h.welcome(n, m.CertificateRequest))
}

// admit tells the role that a token gives. All refusals sound the same, so that nobody learns which tokens there are.
func admit(r store.Reader, text string, now time.Time) (identity.Role, error) {
	refused := fault.New(fault.Denied, "the token is not valid: it is unknown, has expired or was revoked").
		WithHint("make a new one on a server: gantry cluster token create")
	t, err := identity.ParseToken(text)
	if err != nil {
		return "", err
	}
	kept, ok := store.Get[*gantryv1.JoinToken](r, t.ID)
	if !ok || !t.Matches(kept.SecretHash) || now.After(kept.ExpiresAt.AsTime()) || kept.Role != string(t.Role) {
		return "", refused
	}
	return t.Role, nil
}

// place makes the machine's object, or brings the one it has up to date.
func (h *joining) place(tx *store.Tx, key []byte, role identity.Role, m *gantryv1.JoinRequest) (*gantryv1.Node, error) {
	id := idOf(key)
	c, err := h.cluster(tx)
	if err != nil {
		return nil, err
	}
	nodes := store.List[*gantryv1.Node](tx, "")
	if err := placeFree(nodes, id, m.ApiAddress); err != nil {
		return nil, err
	}
	old, ok := store.Get[*gantryv1.Node](tx, id)
	n := &gantryv1.Node{
		Meta: store.NewMeta(id), Name: m.Name, Availability: "active", Role: string(role), Address: m.Address, ApiAddress: m.ApiAddress,
		JoinKey: key,
	}
	n.Meta.Labels = m.Labels
	if ok {
		if !bytes.Equal(old.JoinKey, key) {
			return nil, fault.New(fault.Conflict, "node %s has the ID %s already, by another key", old.Name, id).
				WithHint("if that machine is gone: gantry node rm %s", id)
		}
		// What it is now is for those to say who promote and demote, whatever token it holds.
		n.Meta, n.Role, n.Subnet, n.Availability, n.Member = old.Meta, old.Role, old.Subnet, old.Availability, old.Member
	} else if n.Subnet, err = FreeRange(c, nodes); err != nil {
		return nil, err
	}
	store.Put(tx, n)
	return n, nil
}

// welcome is what a machine needs to belong to the cluster.
func (h *joining) welcome(n *gantryv1.Node, request []byte) (*gantryv1.JoinResponse, error) {
	snap := h.store.Snapshot()
	c, err := h.cluster(snap)
	if err != nil {
		return nil, err
	}
	cert, err := h.certificate(c, n, request)
	if err != nil {
		return nil, err
	}
	out := &gantryv1.JoinResponse{Node: n, Cluster: public(c), Certificate: cert, Servers: serverAddresses(snap)}
	if n.Role == string(identity.Server) {
		out.SecretsKey = h.o.Sealer.Key()
	}
	return out, nil
}

func (a *API) certificate(c *gantryv1.Cluster, n *gantryv1.Node, request []byte) ([]byte, error) {
	ca, err := a.authority(c)
	if err != nil {
		return nil, err
	}
	return ca.Sign(request, n.Meta.Key, identity.Role(n.Role), n.Address, Life(c))
}

// FreeRange is the first range of addresses for instances that no node has and that no virtual address lies in.
func FreeRange(c *gantryv1.Cluster, nodes []*gantryv1.Node) (string, error) {
	all, err := netip.ParsePrefix(c.NodeRange)
	if err != nil {
		return "", fault.Wrap(fault.Corrupt, err, "the cluster's range of addresses %q cannot be read", c.NodeRange)
	}
	taken, bits := takenIn(c, nodes), int(c.NodePrefix)
	for a := all.Masked().Addr(); all.Contains(a); {
		p := netip.PrefixFrom(a, bits)
		clash := overlap(p, taken)
		if !clash.IsValid() {
			return p.String(), nil
		}
		if clash.Bits() > bits {
			clash = p
		}
		if a = after(clash); !a.IsValid() {
			break
		}
	}
	return "", fault.New(fault.Exhausted, "all ranges of %s are given to nodes", c.NodeRange).
		WithHint("remove nodes that are gone: gantry node ls; gantry node rm")
}

// rangeFor is the range that a machine has, if it is of the cluster's and nobody else has any of it; another one if not.
func rangeFor(c *gantryv1.Cluster, has string, nodes []*gantryv1.Node) (string, error) {
	all, err := netip.ParsePrefix(c.NodeRange)
	p, err2 := netip.ParsePrefix(has)
	if err == nil && err2 == nil && all.Bits() <= p.Bits() && all.Contains(p.Addr()) && !overlap(p, takenIn(c, nodes)).IsValid() {
		return has, nil
	}
	return FreeRange(c, nodes)
}

// takenIn is what of a cluster's addresses is given away.
func takenIn(c *gantryv1.Cluster, nodes []*gantryv1.Node) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(nodes)+1)
	add := func(s string) {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	add(c.VirtualIps)
	for _, n := range nodes {
		add(n.Subnet)
	}
	return out
}

func overlap(p netip.Prefix, taken []netip.Prefix) netip.Prefix {
	for _, t := range taken {
		if p.Overlaps(t) {
			return t
		}
	}
	return netip.Prefix{}
}

// after is the first address behind a range; invalid at the end of all addresses.
func after(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	n := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	n += uint64(1) << (32 - p.Bits())
	if n > 0xffffffff {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
