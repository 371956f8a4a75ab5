package server_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/store"
)

// logNode is a node that has logs only.
type logNode struct {
	gantryv1connect.UnimplementedNodeServiceHandler
	logs func(m *gantryv1.LogsRequest, send func(second int64, line string) error) error
}

func (n *logNode) Logs(_ context.Context, r *connect.Request[gantryv1.LogsRequest], stream *connect.ServerStream[gantryv1.LogEntry]) error {
	return n.logs(r.Msg, func(second int64, line string) error {
		return stream.Send(&gantryv1.LogEntry{Time: timestamppb.New(time.Unix(second, 0)), Line: []byte(line)})
	})
}

func (p *platform) logging(t *testing.T, n *logNode) {
	t.Helper()
	_, handler := gantryv1connect.NewNodeServiceHandler(n)
	h := serve(t, handler)
	p.local.NodeServiceClient = gantryv1connect.NewNodeServiceClient(h.Client(), h.URL)
}

// ran puts an instance whose process was started at that second.
func (p *platform) ran(t *testing.T, id string, phase gantryv1.InstanceStatus_Phase, second int64) {
	t.Helper()
	p.put(t, &gantryv1.Instance{
		Meta: store.NewMeta(id), Environment: "production", Service: id, Node: nodeID, Spec: &gantryv1.ContainerSpec{Image: "x"},
		Desired: gantryv1.Instance_DESIRED_RUNNING,
	})
	p.started(id, phase, second)
}

func (p *platform) started(id string, phase gantryv1.InstanceStatus_Phase, second int64) {
	p.store.Observe([]store.Object{&gantryv1.InstanceStatus{
		Meta: store.NewMeta(id), Node: nodeID, Phase: phase, StartedAt: timestamppb.New(time.Unix(second, 0)),
	}}, nil)
}

func (p *platform) lines(t *testing.T, m *gantryv1.LogsRequest) string {
	t.Helper()
	m.Environment = "production"
	stream, err := p.instances.Logs(t.Context(), connect.NewRequest(m))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for stream.Receive() {
		out = append(out, string(stream.Msg().Line))
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestLogsAreMergedByTime(t *testing.T) {
	p := start(t)
	p.ran(t, "aaaa", gantryv1.InstanceStatus_PHASE_EXITED, 1)
	p.ran(t, "bbbb", gantryv1.InstanceStatus_PHASE_EXITED, 1)
	p.logging(t, &logNode{logs: func(m *gantryv1.LogsRequest, send func(int64, string) error) error {
		first := map[string]int64{"aaaa": 1, "bbbb": 2}[m.Targets[0]]
		for second := first; second < first+6; second += 2 {
			if err := send(second, string(rune('0'+second))); err != nil {
				return err
			}
		}
		return nil
	}})
	if got := p.lines(t, &gantryv1.LogsRequest{Targets: []string{"aaaa", "bbbb"}}); got != "1 2 3 4 5 6" {
		t.Fatalf("%s", got)
	}
}

func TestFollowingGoesOnAfterARestartAndEndsWithTheInstance(t *testing.T) {
	p := start(t)
	const running, exited = gantryv1.InstanceStatus_PHASE_RUNNING, gantryv1.InstanceStatus_PHASE_EXITED
	p.ran(t, "aaaa", running, 100)
	runs := 0
	p.logging(t, &logNode{logs: func(m *gantryv1.LogsRequest, send func(int64, string) error) error {
		runs++
		if runs == 1 {
			if err := send(101, "one"); err != nil {
				return err
			}
			p.started("aaaa", gantryv1.InstanceStatus_PHASE_RESTARTING, 100)
			p.started("aaaa", running, 200)
			return nil
		}
		if m.Tail != -1 || !m.Since.AsTime().Equal(time.Unix(101, 1)) {
			p.started("aaaa", exited, 200)
			return send(202, "again from "+m.Since.String())
		}
		if err := send(201, "two"); err != nil {
			return err
		}
		p.started("aaaa", exited, 200)
		return nil
	}})
	if got := p.lines(t, &gantryv1.LogsRequest{Targets: []string{"aaaa"}, Follow: true, Tail: 5}); got != "one two" {
		t.Fatalf("%s", got)
	}
}
