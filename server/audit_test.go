package server_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/store"
)

// refusing answers every call on secrets with the same error.
type refusing struct {
	gantryv1connect.UnimplementedSecretServiceHandler
}

func (refusing) Create(context.Context, *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error) {
	return nil, fault.New(fault.Exists, "it is there")
}

func (refusing) List(context.Context, *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error) {
	return connect.NewResponse(&gantryv1.ListFilesResponse{}), nil
}

// copying takes an archive and does nothing with it.
type copying struct {
	gantryv1connect.UnimplementedInstanceServiceHandler
}

func (copying) CopyTo(_ context.Context, stream *connect.ClientStream[gantryv1.CopyChunk]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	for stream.Receive() {
	}
	return connect.NewResponse(&gantryv1.InstanceActionResponse{}), stream.Err()
}

func TestChangesAreAuditedWithoutContents(t *testing.T) {
	var buf bytes.Buffer
	opts := connect.WithInterceptors(server.Audit(slog.New(slog.NewTextHandler(&buf, nil))))
	_, handler := gantryv1connect.NewSecretServiceHandler(refusing{}, opts)
	h := serve(t, asAnn(handler))
	secrets := gantryv1connect.NewSecretServiceClient(h.Client(), h.URL)
	_, err := secrets.Create(t.Context(), connect.NewRequest(&gantryv1.CreateFileRequest{Environment: "production", Name: "pw", Content: []byte("hunter2")}))
	if err == nil {
		t.Fatal("it was not refused")
	}
	if _, err := secrets.List(t.Context(), connect.NewRequest(&gantryv1.ListFilesRequest{})); err != nil {
		t.Fatal(err)
	}
	_, handler = gantryv1connect.NewInstanceServiceHandler(copying{}, opts)
	h = serve(t, asAnn(handler))
	up := gantryv1connect.NewInstanceServiceClient(h.Client(), h.URL).CopyTo(t.Context())
	start := &gantryv1.CopyStart{Target: &gantryv1.InstanceTarget{Environment: "production", Target: "box"}, Path: "/tmp"}
	if err := up.Send(&gantryv1.CopyChunk{Chunk: &gantryv1.CopyChunk_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	if _, err := up.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want one for each change:\n%s", len(lines), buf.String())
	}
	for n, wants := range [][]string{
		{"msg=audit by=ann call=SecretService/Create", "environment=production", "name=pw", "result=exists"},
		{"msg=audit by=ann call=InstanceService/CopyTo", "environment=production", "target=box", "path=/tmp", "result=ok"},
	} {
		for _, want := range wants {
			if !strings.Contains(lines[n], want) {
				t.Errorf("no %q in %s", want, lines[n])
			}
		}
	}
	if strings.Contains(buf.String(), "hunter2") {
		t.Error("a secret is in the log")
	}
}

func TestEventsSayWhoAndWhy(t *testing.T) {
	p := start(t)
	stream, err := p.instances.Events(t.Context(), connect.NewRequest(&gantryv1.EventsRequest{Since: timestamppb.New(timestamppb.Now().AsTime().Add(-1))}))
	if err != nil {
		t.Fatal(err)
	}
	next := func(kind, action string) map[string]string {
		t.Helper()
		for stream.Receive() {
			if e := stream.Msg(); e.Kind == kind && e.Action == action {
				return e.Attributes
			}
		}
		t.Fatalf("no %s %s: %v", kind, action, stream.Err())
		return nil
	}
	create := &gantryv1.CreateVolumeRequest{Environment: "production", Name: "data"}
	if _, err := p.volumes.Create(t.Context(), connect.NewRequest(create)); err != nil {
		t.Fatal(err)
	}
	if got := next("volume", "create"); got["by"] != "ann" || got["cause"] != "VolumeService/Create" {
		t.Errorf("created: %v", got)
	}
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(&gantryv1.VolumeTarget{Environment: "production", Name: "data"})); err != nil {
		t.Fatal(err)
	}
	if got := next("volume", "destroy"); got["by"] != "ann" || got["cause"] != "VolumeService/Remove" {
		t.Errorf("destroyed: %v", got)
	}
	p.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta(nodeID), State: "ready"}}, nil)
	p.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta(nodeID), State: "down"}}, nil)
	if got := next("node", "down"); got["name"] != "one" {
		t.Errorf("a node is down: %v", got)
	}
	i := &gantryv1.Instance{Meta: store.NewMeta("box"), Environment: "production", Service: "box", Node: nodeID, Desired: gantryv1.Instance_DESIRED_RUNNING}
	p.put(t, i)
	status := func(phase gantryv1.InstanceStatus_Phase, at *timestamppb.Timestamp) {
		p.store.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("box"), Phase: phase, FinishedAt: at}}, nil)
	}
	status(gantryv1.InstanceStatus_PHASE_RUNNING, nil)
	status(gantryv1.InstanceStatus_PHASE_EXITED, timestamppb.Now())
	if got := next("instance", "die"); got["cause"] != "the process ended" || got["node"] != "one" {
		t.Errorf("died: %v", got)
	}
}

func TestAServerThatBeginsTellsNoOldNews(t *testing.T) {
	p := start(t)
	p.ran(t, "old1", gantryv1.InstanceStatus_PHASE_RUNNING, 1) // told for the first time, and long ago
	p.ran(t, "new1", gantryv1.InstanceStatus_PHASE_RUNNING, timestamppb.Now().Seconds+1)
	stream, err := p.instances.Events(t.Context(), connect.NewRequest(&gantryv1.EventsRequest{Since: timestamppb.New(timestamppb.Now().AsTime().AddDate(-1, 0, 0))}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		if e := stream.Msg(); e.Action == "start" {
			if e.Key != "new1" {
				t.Errorf("%s started long ago", e.Key)
			}
			return
		}
	}
	t.Fatal(stream.Err())
}
