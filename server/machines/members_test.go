package machines

import (
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// TestWhoAnswers: a machine may be well and its member not; where only the sessions are known, they count.
func TestWhoAnswers(t *testing.T) {
	b := newBench(t)
	second, err := b.join(b.token("server", 0), "second", "10.0.0.2")
	check(t, err)
	check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, second.Node.Meta.Key, func(n *gantryv1.Node) error { n.Member = "m2"; return nil })
	}))
	b.council.infos = append(b.council.infos, cluster.Info{ID: "m2", PeerURL: "https://10.0.0.2:7451"})
	for name, c := range map[string]struct {
		answering map[string]bool
		session   string // of the second
		want      map[string]bool
	}{
		"all":                   {map[string]bool{"m1": true, "m2": true}, "ready", map[string]bool{"m1": true, "m2": true}},
		"the machine alone":     {map[string]bool{"m1": true}, "ready", map[string]bool{"m1": true, "m2": false}},
		"the member alone":      {map[string]bool{"m1": true, "m2": true}, "down", map[string]bool{"m1": true, "m2": true}},
		"it is not known, up":   {nil, "ready", map[string]bool{"m1": true, "m2": true}},
		"it is not known, down": {nil, "down", map[string]bool{"m1": true, "m2": false}},
	} {
		b.council.answer = c.answering
		b.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta(second.Node.Meta.Key), State: c.session}}, nil)
		resp, err := (&clusterService{b.API}).Status(t.Context(), connect.NewRequest(&gantryv1.ClusterStatusRequest{}))
		check(t, err)
		got := map[string]bool{}
		for _, m := range resp.Msg.Members {
			got[m.Member] = m.Reachable
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
		if resp.Msg.Leader != "n1" {
			t.Errorf("%s: %q leads", name, resp.Msg.Leader)
		}
	}
}

// TestMemberThatNobodyNoted: a leader that ends when it has added a member leaves it without a machine. It blocks every later
// server, so that it is named as its machine, and goes with it; without a machine, it goes by its own ID.
func TestMemberThatNobodyNoted(t *testing.T) {
	b := newBench(t)
	second, err := b.join(b.token("server", 0), "second", "10.0.0.2")
	check(t, err)
	b.council.infos = append(b.council.infos, cluster.Info{ID: "m2", PeerURL: "https://10.0.0.2:7451", Learner: true},
		cluster.Info{ID: "m3", PeerURL: "https://10.0.0.3:7451", Learner: true})
	resp, err := (&clusterService{b.API}).Status(t.Context(), connect.NewRequest(&gantryv1.ClusterStatusRequest{}))
	check(t, err)
	names := map[string]string{}
	for _, m := range resp.Msg.Members {
		names[m.Member] = m.Name
	}
	if want := map[string]string{"m1": "first", "m2": "second", "m3": ""}; !maps.Equal(names, want) {
		t.Errorf("the members are called %v", names)
	}
	rm := func(name string, force bool) error {
		_, err := (&nodeAdmin{b.API}).Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveNodeRequest{Node: name, Force: force}))
		return err
	}
	for _, name := range []string{"m1", "m2", "m4"} {
		if err := rm(name, true); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := rm("m3", false); !fault.Is(err, fault.NotFound) {
		t.Errorf("without force: %v", err)
	}
	check(t, rm("m3", true))
	check(t, rm(second.Node.Meta.Key, true))
	if want := []string{"m3", "m2"}; !slices.Equal(b.council.removed, want) {
		t.Errorf("removed %v", b.council.removed)
	}
}

// TestWhatComesToANodeThatIsBeingRemoved: a volume that is put there meanwhile does not go with the node unsaid. A server is
// none any more by then.
func TestWhatComesToANodeThatIsBeingRemoved(t *testing.T) {
	b := newBench(t)
	second, err := b.join(b.token("server", 0), "second", "10.0.0.2")
	check(t, err)
	id := second.Node.Meta.Key
	check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, id, func(n *gantryv1.Node) error { n.Member = "m2"; return nil })
	}))
	b.council.infos = append(b.council.infos, cluster.Info{ID: "m2", PeerURL: "https://10.0.0.2:7451"})
	b.council.during = func() {
		check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
			store.Put(tx, &gantryv1.Volume{Meta: store.NewMeta("p/data"), Node: id})
			return nil
		}))
	}
	_, err = (&nodeAdmin{b.API}).Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveNodeRequest{Node: "second"}))
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("%v", err)
	}
	n, ok := store.Get[*gantryv1.Node](b.store.Snapshot(), id)
	if !ok || n.Role != "node" || n.Member != "" {
		t.Errorf("left is %v", n)
	}
	_, err = (&nodeAdmin{b.API}).Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveNodeRequest{Node: "second", Force: true}))
	if _, ok := store.Get[*gantryv1.Node](b.store.Snapshot(), id); err != nil || ok {
		t.Errorf("with force: %v", err)
	}
}

// TestNothingIsFoundedWithoutItsKey: a machine that has founded its cluster before and finds none in the state has lost it.
func TestNothingIsFoundedWithoutItsKey(t *testing.T) {
	st := storetest.New(t)
	sealer, err := seal.Open(filepath.Join(t.TempDir(), "key"), true)
	check(t, err)
	err = Found(t.Context(), st, sealer, &gantryv1.Cluster{Id: "c1"}, nil, &gantryv1.Node{Meta: store.NewMeta("n1"), Role: "server"})
	if !fault.Is(err, fault.Corrupt) || fault.HintOf(err) == "" {
		t.Errorf("founded: %v", err)
	}
	if _, ok := store.Get[*gantryv1.Cluster](st.Snapshot(), ClusterKey); ok {
		t.Error("a cluster without a key was stored")
	}
}
