package machines

import (
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// heard is the status of a machine whose clock is that far before the leader's.
func heard(ahead time.Duration) *gantryv1.NodeStatus {
	now := time.Now()
	return &gantryv1.NodeStatus{State: "ready", LastSeen: timestamppb.New(now), Clock: timestamppb.New(now.Add(ahead))}
}

// TestWhoseClockIsNamed: that of the server that leads is one of several, and not the one that is right.
func TestWhoseClockIsNamed(t *testing.T) {
	const min, hour = time.Minute, time.Hour
	away := heard(hour)
	away.State = "down"
	for name, c := range map[string]struct {
		ahead []time.Duration // of a, which leads, b, c and so on
		more  *gantryv1.NodeStatus
		want  []string
	}{
		"all agree":                      {ahead: []time.Duration{0, time.Second, -time.Second}},
		"alone":                          {ahead: []time.Duration{0}},
		"another one":                    {ahead: []time.Duration{0, min, 0}, want: []string{"the clock of node b is off by 1m0s"}},
		"the leader is ahead":            {ahead: []time.Duration{0, -hour, -hour - time.Second}, want: []string{"the clock of node a is off by 1h0m0s"}},
		"the leader is behind":           {ahead: []time.Duration{0, hour, hour}, want: []string{"the clock of node a is off by -1h0m0s"}},
		"the leader and another one":     {ahead: []time.Duration{0, hour, hour, hour, -hour}, want: []string{"node a is off by -1h0m0s", "node e is off by -2h0m0s"}},
		"who is not heard has no say":    {ahead: []time.Duration{0, 0}, more: away},
		"who does not tell the time too": {ahead: []time.Duration{0, 0}, more: &gantryv1.NodeStatus{State: "ready"}},
		"of two nobody can tell":         {ahead: []time.Duration{0, min}, want: []string{"the clocks of node b and of node a, which leads, differ by 1m0s"}},
		"nor if each has another":        {ahead: []time.Duration{0, min, -min}, want: []string{"node b and of node a, which leads, differ by 1m0s", "node c and of node a, which leads, differ by 1m0s"}},
		"nor if half is here, half there": {ahead: []time.Duration{0, 0, hour, hour}, want: []string{
			"node c and of node a, which leads, differ by 1h0m0s", "node d and of node a, which leads, differ by 1h0m0s",
		}},
	} {
		h := Health{
			Cluster: &gantryv1.ClusterStatusResponse{Leader: "a", Members: []*gantryv1.MemberStatus{{Reachable: true}}},
			Status:  map[string]*gantryv1.NodeStatus{}, Life: hour, Now: time.Now(),
		}
		add := func(st *gantryv1.NodeStatus) {
			id := string(rune('a' + len(h.Nodes)))
			h.Nodes, h.Status[id] = append(h.Nodes, &gantryv1.Node{Meta: store.NewMeta(id), Name: id}), st
		}
		for _, d := range c.ahead {
			add(heard(d))
		}
		if c.more != nil {
			add(c.more)
		}
		var got []string
		for _, f := range Examine(h) {
			if strings.Contains(f.Message, "clock") {
				got = append(got, f.Message)
			}
			if f.Hint == "" {
				t.Errorf("%s: %q has no hint", name, f.Message)
			}
		}
		if !slices.EqualFunc(got, c.want, strings.Contains) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestAWrongLeaderSaysOfNoCertificateThatItEnds: whether one ends is seen by the clock of most machines.
func TestAWrongLeaderSaysOfNoCertificateThatItEnds(t *testing.T) {
	for ahead, want := range map[time.Duration]bool{0: true, -time.Hour: false} { // of b and c, before a, which leads
		h := Health{
			Cluster: &gantryv1.ClusterStatusResponse{Leader: "a"}, Life: time.Hour, Now: time.Now(), Status: map[string]*gantryv1.NodeStatus{},
		}
		for id, d := range map[string]time.Duration{"a": 0, "b": ahead, "c": ahead} {
			st := heard(d)
			st.CertificateEnd, st.CertificateLife = timestamppb.New(h.Now.Add(time.Minute)), durationpb.New(time.Hour)
			h.Nodes, h.Status[id] = append(h.Nodes, &gantryv1.Node{Meta: store.NewMeta(id), Name: id}), st
		}
		said := slices.ContainsFunc(Examine(h), func(f *gantryv1.Finding) bool { return strings.HasPrefix(f.Message, "the certificate of ") })
		if said != want {
			t.Errorf("with the others %s ahead of it: says that a certificate ends: %v", ahead, said)
		}
	}
}

// TestAWrongLeaderSignsNothing: what it signs while its clock is too far ahead would keep its machine from all others, the leader's
// own among them.
func TestAWrongLeaderSignsNothing(t *testing.T) {
	b := newBench(t)
	welcome, err := b.join(b.token("node", 0), "second", "10.0.0.2")
	check(t, err)
	third, err := b.join(b.token("node", 0), "third", "10.0.0.3")
	check(t, err)
	second, token := welcome.Node.Meta.Key, b.token("node", 0)
	_, request, err := identity.Request()
	check(t, err)
	calls := map[string]func() error{
		"renew": func() error {
			_, err := (&machineService{b.API}).Renew(identity.WithCaller(t.Context(), identity.Caller{Node: second}),
				connect.NewRequest(&gantryv1.RenewRequest{CertificateRequest: request}))
			return err
		},
		"join": func() error { _, err := b.joinWith(request, token, "fourth", "10.0.0.4"); return err },
		"another root": func() error {
			_, err := (&clusterService{b.API}).RotateCA(t.Context(), connect.NewRequest(&gantryv1.RotateCARequest{}))
			return err
		},
	}
	clocks := func(others time.Duration) {
		for id, d := range map[string]time.Duration{"n1": 0, second: others, third.Node.Meta.Key: others} {
			st := heard(d)
			st.Meta = store.NewMeta(id)
			b.store.Observe([]store.Object{st}, nil)
		}
	}
	clocks(-2 * time.Hour)
	for what, call := range calls {
		if err := call(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the clock of node first, which leads, is 2h0m0s ahead") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(store.List[*gantryv1.Node](b.store.Snapshot(), "")); n != 3 {
		t.Errorf("there are %d machines", n)
	}
	clocks(2 * time.Hour) // what it signs ends early, and holds
	for what, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s with a clock that is behind: %v", what, err)
		}
	}
}

// TestHowLongCertificatesLive: 30 days, if nobody has said otherwise.
func TestHowLongCertificatesLive(t *testing.T) {
	b := newBench(t)
	made := func(address string) time.Duration {
		t.Helper()
		key, request, err := identity.Request()
		check(t, err)
		got, err := b.joinWith(request, b.token("node", 0), "n", address)
		check(t, err)
		k, err := identity.NewKeeper(t.TempDir(), got.Certificate, key, got.Cluster.Roots)
		check(t, err)
		return k.Life()
	}
	if life := made("10.0.0.2"); life != 30*24*time.Hour {
		t.Errorf("a certificate is good for %s", life)
	}
	_, err := (&clusterService{b.API}).Configure(t.Context(), connect.NewRequest(&gantryv1.ConfigureClusterRequest{CertificateLife: durationpb.New(time.Hour)}))
	check(t, err)
	if life := made("10.0.0.3"); life != time.Hour {
		t.Errorf("configured for an hour, a certificate is good for %s", life)
	}
}
