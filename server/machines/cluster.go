package machines

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/silence"
	"github.com/gantryd/gantry/store"
)

// clusterService serves ClusterService.
type clusterService struct{ *API }

const (
	defaultTokenLife = 24 * time.Hour
	maxTokenLife     = 30 * 24 * time.Hour
	minCertificate   = time.Minute
	maxCopies        = 100
)

// CreateToken implements the API.
func (h *clusterService) CreateToken(ctx context.Context, req *connect.Request[gantryv1.CreateTokenRequest]) (*connect.Response[gantryv1.CreateTokenResponse], error) {
	role := identity.Role(req.Msg.Role)
	if role != identity.Server && role != identity.Node {
		return nil, fault.New(fault.Invalid, "there is no role %q", role).WithHint("--role node or --role server")
	}
	life := req.Msg.Life.AsDuration()
	if life == 0 {
		life = defaultTokenLife
	}
	if life < 0 || life > maxTokenLife {
		return nil, fault.New(fault.Invalid, "a token cannot live for %s", life).WithHint("at most 30 days; it is only needed while machines join")
	}
	snap := h.store.Snapshot()
	address, err := h.address(snap)
	if err != nil {
		return nil, err
	}
	c, err := h.cluster(snap)
	if err != nil {
		return nil, err
	}
	ca, err := h.authority(c)
	if err != nil {
		return nil, err
	}
	t := identity.NewToken(role, ca.RootHash())
	ends := timestamppb.New(time.Now().Add(life))
	err = h.store.Update(ctx, func(tx *store.Tx) error {
		forgetExpired(tx, time.Now())
		store.Put(tx, &gantryv1.JoinToken{Meta: store.NewMeta(t.ID), Role: string(role), SecretHash: t.Hash(), ExpiresAt: ends})
		return nil
	})
	return respond(&gantryv1.CreateTokenResponse{Id: t.ID, Token: t.String(), ExpiresAt: ends, Address: address}, err)
}

// address is where machines can join; one server's is enough.
func (h *clusterService) address(r store.Reader) (string, error) {
	n, ok := store.Get[*gantryv1.Node](r, h.o.Node)
	if ok && n.ApiAddress != "" {
		return n.ApiAddress, nil
	}
	return "", fault.New(fault.Invalid, "this machine stands alone: others cannot reach it").
		WithHint("start gantryd with --advertise ADDRESS, an address of this machine that others reach")
}

// forgetExpired keeps the list of tokens short.
func forgetExpired(tx *store.Tx, now time.Time) {
	for _, t := range store.List[*gantryv1.JoinToken](tx, "") {
		if now.After(t.ExpiresAt.AsTime()) {
			store.Delete[*gantryv1.JoinToken](tx, t.Meta.Key)
		}
	}
}

// ListTokens implements the API.
func (h *clusterService) ListTokens(context.Context, *connect.Request[gantryv1.ListTokensRequest]) (*connect.Response[gantryv1.ListTokensResponse], error) {
	out := &gantryv1.ListTokensResponse{}
	for _, t := range store.List[*gantryv1.JoinToken](h.store.Snapshot(), "") {
		out.Tokens = append(out.Tokens, &gantryv1.JoinToken{Meta: t.Meta, Role: t.Role, ExpiresAt: t.ExpiresAt})
	}
	return connect.NewResponse(out), nil
}

// RevokeToken implements the API.
func (h *clusterService) RevokeToken(ctx context.Context, req *connect.Request[gantryv1.RevokeTokenRequest]) (*connect.Response[gantryv1.RevokeTokenResponse], error) {
	return respond(&gantryv1.RevokeTokenResponse{}, h.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get[*gantryv1.JoinToken](tx, req.Msg.Id); !ok {
			return fault.New(fault.NotFound, "there is no token %q", req.Msg.Id).WithHint("gantry cluster token ls")
		}
		store.Delete[*gantryv1.JoinToken](tx, req.Msg.Id)
		return nil
	}))
}

// RotateCA implements the API: machines see the new roots in the cluster's object and renew their certificates.
func (h *clusterService) RotateCA(ctx context.Context, _ *connect.Request[gantryv1.RotateCARequest]) (*connect.Response[gantryv1.RotateCAResponse], error) {
	if err := h.maySign(); err != nil {
		return nil, err
	}
	var hash string
	err := h.store.Update(ctx, func(tx *store.Tx) error {
		c, err := h.cluster(tx)
		if err != nil {
			return err
		}
		old, err := h.authority(c)
		if err != nil {
			return err
		}
		next, roots, key, err := old.Succeed(c.Id)
		if err != nil {
			return err
		}
		sealed, err := h.o.Sealer.Seal(signingKey, key)
		if err != nil {
			return err
		}
		hash = next.RootHash()
		return store.Modify(tx, ClusterKey, func(o *gantryv1.Cluster) error { o.Roots, o.SealedKey = roots, sealed; return nil })
	})
	return respond(&gantryv1.RotateCAResponse{RootHash: hash}, err)
}

// Configure implements the API.
func (h *clusterService) Configure(ctx context.Context, req *connect.Request[gantryv1.ConfigureClusterRequest]) (*connect.Response[gantryv1.Cluster], error) {
	m := req.Msg
	if d := m.CertificateLife.AsDuration(); m.CertificateLife != nil && (d < minCertificate || d > 365*24*time.Hour) {
		return nil, fault.New(fault.Invalid, "certificates cannot live for %s", d).WithHint("from 1 minute to 1 year; 30 days is the default")
	}
	var out *gantryv1.Cluster
	err := h.store.Update(ctx, func(tx *store.Tx) error {
		err := store.Modify(tx, ClusterKey, func(c *gantryv1.Cluster) error { return configure(c, m) })
		c, _ := store.Get[*gantryv1.Cluster](tx, ClusterKey)
		out = public(c)
		return err
	})
	return respond(out, err)
}

func configure(c *gantryv1.Cluster, m *gantryv1.ConfigureClusterRequest) error {
	if m.CertificateLife != nil {
		c.CertificateLife = m.CertificateLife
	}
	if m.SuspectAfter != nil {
		c.SuspectAfter = m.SuspectAfter
	}
	if m.DownAfter != nil {
		c.DownAfter = m.DownAfter
	}
	if m.ImageCopies < 0 || m.ImageCopies > maxCopies {
		return fault.New(fault.Invalid, "images cannot be on %d machines each", m.ImageCopies).
			WithHint("1 copies nothing ahead, 2 is the default, %d the most", maxCopies)
	}
	if m.ImageCopies > 0 {
		c.ImageCopies = m.ImageCopies
	}
	t := silence.After(c.GetSuspectAfter().AsDuration(), c.GetDownAfter().AsDuration())
	if t.Suspect < 500*time.Millisecond || t.Down <= t.Suspect {
		return fault.New(fault.Invalid, "a node cannot be suspect after %s and down after %s", t.Suspect, t.Down).
			WithHint("suspect at the earliest after 500 ms, down later than that; 2s and 5s are the defaults")
	}
	return nil
}

// Status implements the API. Every server answers it, with a leader or without.
func (h *clusterService) Status(context.Context, *connect.Request[gantryv1.ClusterStatusRequest]) (*connect.Response[gantryv1.ClusterStatusResponse], error) {
	snap := h.store.Snapshot()
	c, _ := store.Get[*gantryv1.Cluster](snap, ClusterKey)
	out := &gantryv1.ClusterStatusResponse{Id: c.GetId(), Revision: snap.Revision()}
	nodes := store.List[*gantryv1.Node](snap, "")
	health := input(snap, nodes, out, Life(c))
	for _, st := range health.Status {
		if st.State == "ready" {
			out.NodesReady++
		}
	}
	out.Nodes = int32(len(nodes))
	out.Members = h.memberStatus(nodes, health.Status)
	for _, m := range out.Members {
		if m.Member == h.members.Leader() {
			out.Leader = m.Node
		}
	}
	out.Findings = Examine(health)
	if h.o.Findings != nil {
		out.Findings = append(out.Findings, h.o.Findings()...)
	}
	return connect.NewResponse(out), nil
}

func input(r store.Reader, nodes []*gantryv1.Node, st *gantryv1.ClusterStatusResponse, life time.Duration) Health {
	return Health{Cluster: st, Nodes: nodes, Status: statuses(r, nodes), Life: life, Now: time.Now()}
}

// Health is what Examine looks at.
type Health struct {
	Cluster *gantryv1.ClusterStatusResponse
	Nodes   []*gantryv1.Node
	Status  map[string]*gantryv1.NodeStatus // by node ID
	Life    time.Duration                   // of certificates
	Now     time.Time                       // by the leader's clock
}

// diskWarning is what etcd calls slow: as long as a heartbeat.
const diskWarning = 100 * time.Millisecond

// Examine says in plain words what is wrong with a cluster and what to do. It is pure.
func Examine(h Health) []*gantryv1.Finding {
	var out []*gantryv1.Finding
	add := func(severity, subject, hint, format string, args ...any) {
		out = append(out, &gantryv1.Finding{Severity: severity, Subject: subject, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	if h.Cluster.Leader == "" {
		add("error", "cluster", "bring back the servers below, or if they are lost for good: gantry cluster recover",
			"no server leads: changes are refused, and nodes go on with what they run")
	}
	out = append(out, examineMembers(h)...)
	clocks := readClocks(h.Nodes, h.Status)
	out = append(out, clocks.examine(h.Nodes, h.Cluster.Leader)...)
	h.Now = h.Now.Add(clocks.right)
	versions := map[string]bool{}
	for _, n := range h.Nodes {
		st := h.Status[n.Meta.Key]
		versions[st.GetVersion()] = true
		out = append(out, examineNode(n, st, h)...)
	}
	delete(versions, "")
	if len(versions) > 1 {
		add("warning", "cluster", "finish the upgrade: gantry node ls shows each machine's version", "%d versions of gantryd run side by side", len(versions))
	}
	return out
}

func examineNode(n *gantryv1.Node, st *gantryv1.NodeStatus, h Health) []*gantryv1.Finding {
	var out []*gantryv1.Finding
	if h.Cluster.Leader != "" && (st == nil || st.State != "ready") {
		state := st.GetState()
		if state == "" {
			state = "not connected"
		}
		out = append(out, &gantryv1.Finding{
			Severity: "error", Subject: n.Name, Message: fmt.Sprintf("node %s (%s) is %s", n.Name, n.Address, state),
			Hint: "is it up, and does it reach the servers? if it is lost for good: gantry node rm --force " + n.Name,
		})
	}
	if slow := st.GetSlowDisk().AsDuration(); slow >= diskWarning {
		out = append(out, &gantryv1.Finding{
			Severity: "warning", Subject: n.Name, Message: fmt.Sprintf("the disk of server %s needs %s for a change", n.Name, slow),
			Hint: "put gantryd's --root on a faster disk, or take load off it: iostat -x 1",
		})
	}
	if st.GetDiskFull() {
		out = append(out, &gantryv1.Finding{
			Severity: "error", Subject: n.Name,
			Message: fmt.Sprintf("the disk under the state on server %s is full: %d MB are free", n.Name, st.DiskFree>>20),
			Hint:    "changes are refused there: make room with gantry system prune, gantry volume prune -a; what takes it: gantry system df",
		})
	}
	if f := examineCertificate(n, st, h); f != nil {
		out = append(out, f)
	}
	return out
}
