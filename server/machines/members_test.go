package machines

import (
	"maps"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/store"
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
