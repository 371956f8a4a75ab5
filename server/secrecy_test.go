package server_test

import (
	"bytes"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// open begins the session of a node.
func (p *platform) open(t *testing.T, node string) *connect.BidiStreamForClient[gantryv1.NodeReport, gantryv1.NodeUpdate] {
	t.Helper()
	s := p.sessions.Session(t.Context())
	if err := s.Send(&gantryv1.NodeReport{
		Hello: &gantryv1.NodeHello{Node: node}, Status: &gantryv1.NodeStatus{Meta: store.NewMeta(node), State: "ready"},
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestANodeIsToldAndBelievedOnlyWhatIsItsOwn: secrets go where they are used, and nobody speaks of others' instances.
func TestANodeIsToldAndBelievedOnlyWhatIsItsOwn(t *testing.T) {
	p := start(t)
	p.apply(t, app(func(s *gantryv1.AppSpec) { s.Services["web"].Replicas = 0 })) // for its secret
	plain := container("plain")
	plain.Secrets = nil
	p.put(t, &gantryv1.Node{Meta: store.NewMeta("n2"), Name: "two"},
		&gantryv1.Instance{Meta: store.NewMeta("uses"), Environment: "production", Service: "uses", Node: "n2", Spec: container("a"), Desired: gantryv1.Instance_DESIRED_RUNNING},
		&gantryv1.Instance{Meta: store.NewMeta("plain"), Environment: "production", Service: "plain", Node: nodeID, Spec: plain, Desired: gantryv1.Instance_DESIRED_RUNNING})
	user, other := p.open(t, "n2"), p.open(t, nodeID)
	told := func(s *connect.BidiStreamForClient[gantryv1.NodeReport, gantryv1.NodeUpdate], instance string) (secret bool) {
		t.Helper()
		for {
			u, err := s.Receive()
			if err != nil {
				t.Fatal(err)
			}
			b, err := proto.Marshal(u)
			if err != nil {
				t.Fatal(err)
			}
			secret = secret || bytes.Contains(b, []byte("hunter2"))
			for _, as := range u.Assignments {
				if as.Instance.Meta.Key == instance {
					return secret
				}
				t.Errorf("the node of %s is told of %s", instance, as.Instance.Meta.Key)
			}
		}
	}
	if !told(user, "uses") {
		t.Error("the node that needs the secret does not have it")
	}
	if told(other, "plain") {
		t.Error("a node without a user of the secret has it")
	}
	said := func(id string) *gantryv1.InstanceStatus {
		return &gantryv1.InstanceStatus{Meta: store.NewMeta(id), Node: "n2", Phase: gantryv1.InstanceStatus_PHASE_EXITED, ExitCode: 7}
	}
	if err := other.Send(&gantryv1.NodeReport{
		Status:   &gantryv1.NodeStatus{Meta: store.NewMeta("n2"), State: "ready", Version: "forged"},
		Statuses: []*gantryv1.InstanceStatus{said("uses"), said("plain")}, Removed: []string{"uses"},
	}); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the report has been taken", func(r *store.ReadTx) bool {
		st, ok := store.Get[*gantryv1.InstanceStatus](r, "plain")
		return ok && st.ExitCode == 7 && st.Node == nodeID
	})
	snap := p.store.Snapshot()
	if st, ok := store.Get[*gantryv1.InstanceStatus](snap, "uses"); ok && st.ExitCode == 7 {
		t.Errorf("another node's word about an instance was taken: %v", st)
	}
	if st, _ := store.Get[*gantryv1.NodeStatus](snap, "n2"); st.GetVersion() == "forged" {
		t.Errorf("another node's word about a node was taken: %v", st)
	}
	if _, ok := store.Get[*gantryv1.Instance](snap, "uses"); !ok {
		t.Error("another node has had an instance forgotten")
	}
}
