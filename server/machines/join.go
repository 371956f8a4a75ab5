package machines

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/netip"
	"strings"
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
	id, err := NodeID(m.CertificateRequest)
	if err != nil {
		return nil, err
	}
	var n *gantryv1.Node
	err = h.store.Update(ctx, func(tx *store.Tx) error {
		role, err := admit(tx, m.Token, time.Now())
		if err != nil {
			return err
		}
		n, err = h.place(tx, id, role, m)
		return err
	})
	if err != nil {
		h.log.Warn("a machine was not admitted", "name", m.Name, "address", m.Address, "err", err)
		return nil, err
	}
	h.log.Info("a machine has joined", "node", id, "name", m.Name, "role", n.Role, "address", m.Address)
	return respond(h.welcome(n, m.CertificateRequest))
}

func checkJoin(m *gantryv1.JoinRequest) error {
	if m.Name == "" || len(m.Name) > 253 || strings.ContainsAny(m.Name, "/ \t\n") {
		return fault.New(fault.Invalid, "a machine cannot be called %q", m.Name).WithHint("gantryd takes the machine's host name; set another")
	}
	if _, err := netip.ParseAddr(m.Address); err != nil {
		return fault.Wrap(fault.Invalid, err, "the machine's own address %q is no IP address", m.Address).WithHint("gantryd --advertise ADDRESS")
	}
	if _, err := netip.ParseAddrPort(m.ApiAddress); err != nil {
		return fault.Wrap(fault.Invalid, err, "the machine's API address %q is not ADDRESS:PORT", m.ApiAddress)
	}
	return nil
}

// NodeID is the ID of the machine whose key signed the request.
func NodeID(request []byte) (string, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "the certificate request cannot be read")
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:6]), nil
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
func (h *joining) place(tx *store.Tx, id string, role identity.Role, m *gantryv1.JoinRequest) (*gantryv1.Node, error) {
	c, err := h.cluster(tx)
	if err != nil {
		return nil, err
	}
	nodes := store.List[*gantryv1.Node](tx, "")
	for _, n := range nodes {
		if n.Meta.Key != id && n.ApiAddress == m.ApiAddress {
			return nil, fault.New(fault.Conflict, "node %s has the address %s already", n.Name, m.ApiAddress).
				WithHint("if that machine is gone: gantry node rm %s", n.Meta.Key)
		}
	}
	old, ok := store.Get[*gantryv1.Node](tx, id)
	n := &gantryv1.Node{
		Meta: store.NewMeta(id), Name: m.Name, Availability: "active", Role: string(role), Address: m.Address, ApiAddress: m.ApiAddress,
	}
	n.Meta.Labels = m.Labels
	if ok {
		n.Meta, n.Subnet, n.Availability, n.Member = old.Meta, old.Subnet, old.Availability, old.Member
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
	taken := make([]netip.Prefix, 0, len(nodes)+1)
	for _, s := range append(rangesOf(nodes), c.VirtualIps) {
		if p, err := netip.ParsePrefix(s); err == nil {
			taken = append(taken, p)
		}
	}
	bits := int(c.NodePrefix)
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

func rangesOf(nodes []*gantryv1.Node) []string {
	out := make([]string, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, n.Subnet)
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
