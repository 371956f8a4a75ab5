package machines

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// council stands for the members of the state, which package cluster tests.
type council struct {
	infos   []cluster.Info
	leader  string
	removed []string
	added   string   // the ID of the next member; made of its name if empty
	anew    []string // URLs of members that were to begin anew
	moved   bool
	answer  map[string]bool
	during  func() // a removal
}

func (c *council) ID() string                 { return "m1" }
func (c *council) Leader() string             { return c.leader }
func (c *council) Members() []cluster.Info    { return c.infos }
func (c *council) Answering() map[string]bool { return c.answer }
func (c *council) AddLearner(_ context.Context, name, url string, anew bool) (string, []string, error) {
	if anew {
		c.anew = append(c.anew, url)
	}
	return cmp.Or(c.added, "m-"+name), []string{name + "=" + url}, nil
}
func (c *council) Promote(context.Context, string) error { return nil }
func (c *council) Remove(_ context.Context, id string) error {
	c.removed = append(c.removed, id)
	if c.during != nil {
		c.during()
	}
	return nil
}
func (c *council) HandOver(context.Context, ...string) error { c.moved = true; return nil }
func (c *council) Snapshot(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("state")), nil
}

type bench struct {
	*API
	t       *testing.T
	council *council
}

func newBench(t *testing.T) *bench {
	t.Helper()
	st := storetest.New(t)
	sealer, err := seal.Open(filepath.Join(t.TempDir(), "key"), true)
	check(t, err)
	_, roots, key, err := identity.NewAuthority("c1")
	check(t, err)
	council := &council{infos: []cluster.Info{{ID: "m1", PeerURL: "https://10.0.0.1:7451"}}, leader: "m1"}
	check(t, Found(t.Context(), st, sealer, &gantryv1.Cluster{
		Id: "c1", Roots: roots, NodeRange: "10.192.0.0/11", NodePrefix: 22, VirtualIps: "10.224.0.0/16",
	}, key, &gantryv1.Node{
		Meta: store.NewMeta("n1"), Name: "first", Role: "server", Member: "m1", Address: "10.0.0.1", ApiAddress: "10.0.0.1:7450", Subnet: "10.192.0.0/22",
	}))
	api := New(st, council, Options{Node: "n1", Sealer: sealer, Logger: slog.New(slog.DiscardHandler)})
	return &bench{API: api, t: t, council: council}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) token(role string, life time.Duration) string {
	b.t.Helper()
	resp, err := (&clusterService{b.API}).CreateToken(b.t.Context(), connect.NewRequest(&gantryv1.CreateTokenRequest{Role: role, Life: durationpb.New(life)}))
	check(b.t, err)
	return resp.Msg.Token
}

func (b *bench) join(token, name, address string) (*gantryv1.JoinResponse, error) {
	b.t.Helper()
	_, request, err := identity.Request()
	check(b.t, err)
	return b.joinWith(request, token, name, address)
}

func (b *bench) joinWith(request []byte, token, name, address string) (*gantryv1.JoinResponse, error) {
	resp, err := (&joining{b.API}).Join(b.t.Context(), connect.NewRequest(&gantryv1.JoinRequest{
		Token: token, CertificateRequest: request, Name: name, Address: address, ApiAddress: address + ":7450",
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func TestJoin(t *testing.T) {
	b := newBench(t)
	got, err := b.join(b.token("node", 0), "second", "10.0.0.2")
	check(t, err)
	if got.Node.Role != "node" || got.Node.Subnet != "10.192.4.0/22" || got.SecretsKey != nil || len(got.Cluster.SealedKey) > 0 {
		t.Errorf("a node was given %v", got)
	}
	if len(got.Servers) != 1 || got.Servers[0] != "10.0.0.1:7450" {
		t.Errorf("servers: %v", got.Servers)
	}
	server, err := b.join(b.token("server", 0), "third", "10.0.0.3")
	check(t, err)
	if server.Node.Role != "server" || len(server.SecretsKey) == 0 || server.Node.Subnet != "10.192.8.0/22" {
		t.Errorf("a server was given %v", server)
	}
}

func TestJoinAgainIsTheSameMachine(t *testing.T) {
	b := newBench(t)
	token := b.token("node", 0)
	_, request, err := identity.Request()
	check(t, err)
	first, err := b.joinWith(request, token, "second", "10.0.0.2")
	check(t, err)
	again, err := b.joinWith(request, token, "second", "10.0.0.2")
	check(t, err)
	if first.Node.Meta.Key != again.Node.Meta.Key || first.Node.Subnet != again.Node.Subnet {
		t.Errorf("%v became %v", first.Node, again.Node)
	}
	if _, err := b.join(token, "other", "10.0.0.2"); !fault.Is(err, fault.Conflict) {
		t.Errorf("another machine at the same address: %v", err)
	}
}

func TestTokensThatAdmitNobody(t *testing.T) {
	b := newBench(t)
	good := b.token("node", 0)
	tok, err := identity.ParseToken(good)
	check(t, err)
	forged := tok
	forged.Secret = strings.Repeat("0", len(tok.Secret))
	raised := tok
	raised.Role = identity.Server
	expired := b.token("node", time.Hour)
	old, err := identity.ParseToken(expired)
	check(t, err)
	check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, old.ID, func(o *gantryv1.JoinToken) error {
			o.ExpiresAt = timestamppb.New(time.Now().Add(-time.Second))
			return nil
		})
	}))
	for name, token := range map[string]string{
		"forged": forged.String(), "of a higher role": raised.String(), "expired": expired,
	} {
		if _, err := b.join(token, "x", "10.0.0.9"); !fault.Is(err, fault.Denied) {
			t.Errorf("a token that is %s: %v", name, err)
		}
	}
	if _, err := (&clusterService{b.API}).RevokeToken(t.Context(), connect.NewRequest(&gantryv1.RevokeTokenRequest{Id: tok.ID})); err != nil {
		t.Fatal(err)
	}
	if _, err := b.join(good, "x", "10.0.0.9"); !fault.Is(err, fault.Denied) {
		t.Errorf("a token that was revoked: %v", err)
	}
	if _, err := b.join("", "x", "10.0.0.9"); !fault.Is(err, fault.Invalid) {
		t.Errorf("no token: %v", err)
	}
}

func TestBadMachines(t *testing.T) {
	b := newBench(t)
	token := b.token("node", 0)
	for _, m := range [][2]string{{"", "10.0.0.2"}, {"a/b", "10.0.0.2"}, {"ok", "host.example"}, {strings.Repeat("x", 300), "10.0.0.2"}} {
		if _, err := b.join(token, m[0], m[1]); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q at %q: %v", m[0], m[1], err)
		}
	}
	if _, err := b.joinWith([]byte("nonsense"), token, "x", "10.0.0.2"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a broken request: %v", err)
	}
}

func TestRenew(t *testing.T) {
	b := newBench(t)
	joined, err := b.join(b.token("node", 0), "second", "10.0.0.2")
	check(t, err)
	id := joined.Node.Meta.Key
	_, request, err := identity.Request()
	check(t, err)
	renew := func(node string) (*connect.Response[gantryv1.RenewResponse], error) {
		ctx := identity.WithCaller(t.Context(), identity.Caller{Node: node, Role: identity.Server})
		return (&machineService{b.API}).Renew(ctx, connect.NewRequest(&gantryv1.RenewRequest{CertificateRequest: request}))
	}
	got, err := renew(id)
	check(t, err)
	if got.Msg.SecretsKey != nil {
		t.Error("a node with a server's old certificate was given the key of the secrets")
	}
	if _, err := renew("stranger"); !fault.Is(err, fault.Denied) {
		t.Errorf("a machine that was removed: %v", err)
	}
	ctx := identity.WithCaller(t.Context(), identity.Caller{Node: id, Role: identity.Server})
	if _, err := (&machineService{b.API}).AddMember(ctx, connect.NewRequest(&gantryv1.AddMemberRequest{PeerUrl: "https://x"})); !fault.Is(err, fault.Denied) {
		t.Errorf("a node asked to be a member: %v", err)
	}
}

func TestRotateCA(t *testing.T) {
	b := newBench(t)
	before := b.token("node", 0)
	got, err := (&clusterService{b.API}).RotateCA(t.Context(), connect.NewRequest(&gantryv1.RotateCARequest{}))
	check(t, err)
	joined, err := b.join(before, "second", "10.0.0.2")
	check(t, err)
	after, err := identity.ParseToken(b.token("node", 0))
	check(t, err)
	if after.RootHash != got.Msg.RootHash || strings.Count(string(joined.Cluster.Roots), "BEGIN CERTIFICATE") != 3 {
		t.Errorf("root %s, token of %s, roots:\n%s", got.Msg.RootHash, after.RootHash, joined.Cluster.Roots)
	}
}

func TestRemoveAndDemote(t *testing.T) {
	b := newBench(t)
	h := &nodeAdmin{b.API}
	joined, err := b.join(b.token("server", 0), "second", "10.0.0.2")
	check(t, err)
	ctx := identity.WithCaller(t.Context(), identity.Caller{Node: joined.Node.Meta.Key})
	_, err = (&machineService{b.API}).AddMember(ctx, connect.NewRequest(&gantryv1.AddMemberRequest{PeerUrl: "https://10.0.0.2:7451"}))
	check(t, err)
	if _, err := h.Demote(t.Context(), connect.NewRequest(&gantryv1.NodeRequest{Node: "first"})); !fault.Is(err, fault.Conflict) {
		t.Errorf("the only server was demoted: %v", err)
	}
	b.council.infos = append(b.council.infos, cluster.Info{ID: joinedMember(joined)})
	if _, err := h.Demote(t.Context(), connect.NewRequest(&gantryv1.NodeRequest{Node: "first"})); !fault.Is(err, fault.Unavailable) || !b.council.moved {
		t.Errorf("the leader did not hand over: %v", err)
	}
	got, err := h.Demote(t.Context(), connect.NewRequest(&gantryv1.NodeRequest{Node: "second"}))
	check(t, err)
	if n := got.Msg.Node; n.Role != "node" || n.Member != "" || fmt.Sprint(b.council.removed) != "["+joinedMember(joined)+"]" {
		t.Errorf("demoted: %v, members removed: %v", n, b.council.removed)
	}
	b.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta(joined.Node.Meta.Key), State: "ready"}}, nil)
	check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta("i1"), Node: joined.Node.Meta.Key})
		return nil
	}))
	rm := func(force bool) error {
		_, err := h.Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveNodeRequest{Node: "second", Force: force}))
		return err
	}
	if err := rm(false); !fault.Is(err, fault.Conflict) {
		t.Errorf("a node with instances was removed: %v", err)
	}
	check(t, rm(true))
	if err := rm(true); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

func joinedMember(j *gantryv1.JoinResponse) string { return "m-" + j.Node.Meta.Key }

func TestLabels(t *testing.T) {
	b := newBench(t)
	h := &nodeAdmin{b.API}
	label := func(l map[string]string) (*connect.Response[gantryv1.NodeView], error) {
		return h.Label(t.Context(), connect.NewRequest(&gantryv1.LabelNodeRequest{Node: "first", Labels: l}))
	}
	_, err := label(map[string]string{"rack": "r1", "ssd": "yes"})
	check(t, err)
	got, err := label(map[string]string{"ssd": ""})
	check(t, err)
	if l := got.Msg.Node.Meta.Labels; len(l) != 1 || l["rack"] != "r1" {
		t.Errorf("labels: %v", l)
	}
	if _, err := label(map[string]string{"a b": "c"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad label: %v", err)
	}
}

func TestDrainTellsWhatStays(t *testing.T) {
	b := newBench(t)
	db := &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "production/data"}}}
	check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.Volume{Meta: store.NewMeta("production/data"), Node: "n1"})
		store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta("i1"), Environment: "production", Service: "db", Spec: db, Node: "n1"})
		store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta("i2"), Environment: "production", App: "shop", Service: "web", Slot: 1, Node: "n1"})
		store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta("i5"), Environment: "production", Service: "box", Node: "n1"})
		store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta("i3"), Environment: "production", Service: "old", Spec: db, Node: "n1", Desired: gantryv1.Instance_DESIRED_REMOVED})
		store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta("i4"), Environment: "production", Service: "away", Spec: db, Node: "n2"})
		return nil
	}))
	got, err := (&nodeAdmin{b.API}).SetAvailability(t.Context(), connect.NewRequest(&gantryv1.SetAvailabilityRequest{Node: "first", Availability: "drain"}))
	check(t, err)
	var stays []string
	for _, p := range got.Msg.Pinned {
		stays = append(stays, p.Instance+" for "+p.Volume)
	}
	if fmt.Sprint(stays) != "[production/box for  production/db for production/data]" {
		t.Errorf("stays: %q", stays)
	}
}

func TestFreeRange(t *testing.T) {
	c := &gantryv1.Cluster{NodeRange: "10.0.0.0/22", NodePrefix: 24, VirtualIps: "10.0.1.0/25"}
	nodes := []*gantryv1.Node{{Subnet: "10.0.0.0/28"}}
	var got []string
	for {
		s, err := FreeRange(c, nodes)
		if fault.Is(err, fault.Exhausted) {
			break
		}
		check(t, err)
		p := netip.MustParsePrefix(s)
		for _, n := range nodes {
			if p.Overlaps(netip.MustParsePrefix(n.Subnet)) {
				t.Fatalf("%s was given although %s is taken", s, n.Subnet)
			}
		}
		got, nodes = append(got, s), append(nodes, &gantryv1.Node{Subnet: s})
	}
	if fmt.Sprint(got) != "[10.0.2.0/24 10.0.3.0/24]" {
		t.Errorf("ranges: %v", got)
	}
}

func TestTakeOver(t *testing.T) {
	b := newBench(t)
	_, err := b.join(b.token("server", 0), "second", "10.0.0.2")
	check(t, err)
	own := &gantryv1.Node{Meta: store.NewMeta("new"), Name: "new", Role: "server", Member: "m9", Address: "10.0.0.1", ApiAddress: "10.0.0.1:7450", Subnet: "10.192.0.0/22"}
	_, _, err = TakeOver(t.Context(), b.store, own)
	check(t, err)
	var servers []string
	for _, n := range store.List[*gantryv1.Node](b.store.Snapshot(), "") {
		if n.Role == "server" {
			servers = append(servers, n.Meta.Key)
		}
		if n.Meta.Key == "n1" {
			t.Error("the machine that was at the same address is still there")
		}
	}
	if fmt.Sprint(servers) != "[new]" {
		t.Errorf("servers: %v", servers)
	}
}

func TestExamine(t *testing.T) {
	now := time.Now()
	node := func(name string) *gantryv1.Node {
		return &gantryv1.Node{Meta: store.NewMeta(name), Name: name, Role: "server", Address: "10.0.0.1"}
	}
	ready := func(version string) *gantryv1.NodeStatus {
		return &gantryv1.NodeStatus{State: "ready", Version: version, LastSeen: timestamppb.New(now), Clock: timestamppb.New(now), CertificateEnd: timestamppb.New(now.Add(20 * time.Hour))}
	}
	slow := ready("1")
	slow.SlowDisk = durationpb.New(150 * time.Millisecond)
	full := ready("1")
	full.DiskFull, full.DiskFree = true, 5<<20
	ending := ready("1")
	ending.CertificateEnd = timestamppb.New(now.Add(time.Hour))
	// Made for an hour, before the cluster's life was raised: it is fresh. Made for much longer, before it was lowered.
	raised, lowered, late, ended := ready("1"), ready("1"), ready("1"), ready("1")
	raised.CertificateEnd, raised.CertificateLife = timestamppb.New(now.Add(50*time.Minute)), durationpb.New(time.Hour)
	late.CertificateEnd, late.CertificateLife = timestamppb.New(now.Add(10*time.Minute)), durationpb.New(time.Hour)
	lowered.CertificateEnd, lowered.CertificateLife = timestamppb.New(now.Add(100*time.Hour)), durationpb.New(1000*time.Hour)
	ended.State, ended.CertificateEnd, ended.CertificateLife = "down", timestamppb.New(now.Add(-time.Minute)), durationpb.New(time.Hour)
	damaged := ready("1")
	damaged.ServerError, damaged.ServerHint = "its state is damaged", "gantry cluster restore BACKUP"
	lostDamaged := &gantryv1.NodeStatus{State: "down", ServerError: damaged.ServerError}
	voters := func(n int) (out []*gantryv1.MemberStatus) {
		for range n {
			out = append(out, &gantryv1.MemberStatus{Name: "s", Reachable: true})
		}
		return out
	}
	for name, c := range map[string]struct {
		members []*gantryv1.MemberStatus
		leader  string
		status  *gantryv1.NodeStatus
		want    string
	}{
		"all is well": {voters(3), "a", ready("1"), ""},
		"a full disk": {voters(3), "a", full, "is full: 5 MB are free"},
		"no leader":   {voters(3), "", ready("1"), "no server leads"},
		"two servers": {voters(2), "a", ready("1"), "the loss of either one"},
		"a server is lost": {append(voters(2), &gantryv1.MemberStatus{Name: "s3", PeerUrl: "https://s3:7451"}), "a", ready("1"),
			"server s3 is no member that answers: nothing comes from its machine at https://s3:7451; 2 of 3 with a vote do"},
		"a server's member is lost": {append(voters(2), &gantryv1.MemberStatus{Name: "b", Node: "b", PeerUrl: "https://b:7451"}), "a", ready("1"),
			"server b is no member that answers: its machine is ready, but nothing comes from https://b:7451; 2 of 3"},
		"a server's state is damaged": {append(voters(2), &gantryv1.MemberStatus{Name: "a", Node: "a"}), "b", damaged,
			"server a is no member that answers: it says that its state is damaged; 2 of 3"},
		"a server is lost that was damaged": {append(voters(2), &gantryv1.MemberStatus{Name: "a", Node: "a"}), "b", lostDamaged,
			"server a is no member that answers: nothing comes from its machine at ; 2 of 3"},
		"a learner is lost": {append(voters(3), &gantryv1.MemberStatus{Name: "s4", Learner: true}), "a", ready("1"),
			"server s4 is no member that answers: nothing comes from its machine at ; 3 of 3"},
		"a server cannot start its member": {voters(3), "b", damaged, "server a has no member yet: it says that its state is damaged"},
		"a learner":                        {append(voters(3), &gantryv1.MemberStatus{Name: "s4", Learner: true, Reachable: true}), "a", ready("1"), "no vote yet"},
		"a node is down":                   {voters(3), "a", &gantryv1.NodeStatus{State: "down"}, "node a (10.0.0.1) is down"},
		"a node is unknown":                {voters(3), "a", nil, "not connected"},
		"certificate":                      {voters(3), "a", ending, "certificate of node a ends"},
		"life was raised":                  {voters(3), "a", raised, ""},
		"and not renewed":                  {voters(3), "a", late, "certificate of node a ends"},
		"life was lowered":                 {voters(3), "a", lowered, "certificate of node a ends"},
		"away for too long":                {voters(3), "a", ended, "it cannot come back by itself"},
		"slow disk":                        {voters(3), "a", slow, "the disk of server a needs 150ms"},
		"versions":                         {voters(3), "a", ready("2"), "2 versions"},
	} {
		h := Health{
			Cluster: &gantryv1.ClusterStatusResponse{Leader: c.leader, Members: c.members}, Nodes: []*gantryv1.Node{node("a"), node("b")},
			Status: map[string]*gantryv1.NodeStatus{"b": ready("1")}, Life: 30 * time.Hour, Now: now,
		}
		if c.status != nil {
			h.Status["a"] = c.status
		}
		var got []string
		for _, f := range Examine(h) {
			got = append(got, f.Message)
			if f.Hint == "" {
				t.Errorf("%s: %q has no hint", name, f.Message)
			}
		}
		if c.want == "" && len(got) > 0 || c.want != "" && !strings.Contains(strings.Join(got, "; "), c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
