package server_test

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/store"
)

// remoteNode is another machine, with a volume, logs and a disk.
type remoteNode struct {
	gantryv1connect.UnimplementedNodeServiceHandler
	gantryv1connect.UnimplementedImageServiceHandler
	volume  string
	removed atomic.Bool
	line    string
	images  []*gantryv1.Image // besides two that all have
	told    []string          // what images were to be removed
}

func (n *remoteNode) Logs(_ context.Context, _ *connect.Request[gantryv1.LogsRequest], stream *connect.ServerStream[gantryv1.LogEntry]) error {
	return stream.Send(&gantryv1.LogEntry{Time: timestamppb.Now(), Line: []byte(n.line)})
}

func (n *remoteNode) Stats(_ context.Context, r *connect.Request[gantryv1.StatsRequest]) (*connect.Response[gantryv1.StatsResponse], error) {
	out := &gantryv1.StatsResponse{}
	for _, id := range r.Msg.Targets {
		out.Stats = append(out.Stats, &gantryv1.InstanceStats{Instance: id, Memory: 1, Time: timestamppb.Now()})
	}
	return connect.NewResponse(out), nil
}

func (n *remoteNode) Top(context.Context, *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.TopResponse], error) {
	return connect.NewResponse(&gantryv1.TopResponse{Titles: []string{n.line}}), nil
}

func (n *remoteNode) InspectVolume(_ context.Context, r *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.VolumeView], error) {
	if r.Msg.Name != n.volume {
		return nil, wire.Encode(fault.New(fault.NotFound, "no such volume"))
	}
	return connect.NewResponse(&gantryv1.VolumeView{Mountpoint: "/v", Size: 7}), nil
}

func (n *remoteNode) RemoveVolume(_ context.Context, r *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	if r.Msg.Name != n.volume {
		return nil, wire.Encode(fault.New(fault.NotFound, "no such volume"))
	}
	n.removed.Store(true)
	return connect.NewResponse(&gantryv1.RemoveVolumeResponse{}), nil
}

func (n *remoteNode) Info(context.Context, *connect.Request[gantryv1.InfoRequest]) (*connect.Response[gantryv1.InfoResponse], error) {
	return connect.NewResponse(&gantryv1.InfoResponse{Hostname: n.line}), nil
}

func (n *remoteNode) DiskUsage(context.Context, *connect.Request[gantryv1.DiskUsageRequest]) (*connect.Response[gantryv1.DiskUsageResponse], error) {
	return connect.NewResponse(&gantryv1.DiskUsageResponse{Rows: []*gantryv1.DiskUsageResponse_Row{{Kind: "images", Size: 5}}}), nil
}

func (n *remoteNode) Prune(context.Context, *connect.Request[gantryv1.PruneImagesRequest]) (*connect.Response[gantryv1.PruneImagesResponse], error) {
	return connect.NewResponse(&gantryv1.PruneImagesResponse{Removed: []string{"old:1"}, Reclaimed: 3}), nil
}

func (n *remoteNode) List(context.Context, *connect.Request[gantryv1.ListImagesRequest]) (*connect.Response[gantryv1.ListImagesResponse], error) {
	all := append([]*gantryv1.Image{{Digest: "sha256:5"}, {Digest: "sha256:6"}}, n.images...)
	return connect.NewResponse(&gantryv1.ListImagesResponse{Images: all}), nil
}

func (n *remoteNode) Inspect(_ context.Context, r *connect.Request[gantryv1.InspectImageRequest]) (*connect.Response[gantryv1.InspectImageResponse], error) {
	for _, i := range n.images {
		if i.Digest == r.Msg.Image {
			return connect.NewResponse(&gantryv1.InspectImageResponse{Image: i}), nil
		}
	}
	return nil, wire.Encode(fault.New(fault.NotFound, "it is not on this machine"))
}

func (n *remoteNode) Remove(_ context.Context, r *connect.Request[gantryv1.RemoveImageRequest]) (*connect.Response[gantryv1.RemoveImageResponse], error) {
	n.told = append(n.told, r.Msg.Image)
	return connect.NewResponse(&gantryv1.RemoveImageResponse{Deleted: []string{r.Msg.Image}}), nil
}

// machine serves a node and gives the way to it.
func machine(t *testing.T, nodes map[string]*remoteNode, id string) server.Node {
	t.Helper()
	n := &remoteNode{line: "from " + id}
	nodes[id] = n
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewNodeServiceHandler(n))
	mux.Handle(gantryv1connect.NewImageServiceHandler(n))
	h := serve(t, mux)
	return server.Node{
		Service: gantryv1connect.NewNodeServiceClient(h.Client(), h.URL), Images: gantryv1connect.NewImageServiceClient(h.Client(), h.URL),
	}
}

// three is a platform of three machines: n2 answers, n3 does so only if it is up.
func three(t *testing.T, up bool) (*platform, map[string]*remoteNode) {
	t.Helper()
	p := start(t)
	nodes := map[string]*remoteNode{}
	own := machine(t, nodes, nodeID)
	p.local.NodeServiceClient, p.local.ImageServiceClient = own.Service, own.Images
	for _, id := range []string{"n2", "n3"} {
		p.put(t, &gantryv1.Node{Meta: store.NewMeta(id), Name: "name-" + id, ApiAddress: "10.0.0.1:7450"})
		p.remote[id] = machine(t, nodes, id)
	}
	if !up {
		dead := serve(t, nil)
		p.remote["n3"] = server.Node{
			Service: gantryv1connect.NewNodeServiceClient(dead.Client(), dead.URL),
			Images:  gantryv1connect.NewImageServiceClient(dead.Client(), dead.URL),
		}
		dead.Close()
	}
	return p, nodes
}

// runningOn puts an instance of a service that runs on a node.
func (p *platform) runningOn(t *testing.T, node string, slot int32) {
	t.Helper()
	id := "on-" + node
	p.put(t, &gantryv1.Instance{
		Meta: store.NewMeta(id), Environment: "production", App: "shop", Service: "web", Slot: slot, Node: node,
		Desired: gantryv1.Instance_DESIRED_RUNNING,
	})
	p.store.Observe([]store.Object{&gantryv1.InstanceStatus{
		Meta: store.NewMeta(id), Node: node, Phase: gantryv1.InstanceStatus_PHASE_RUNNING, StartedAt: timestamppb.Now(),
	}}, nil)
}

func (p *platform) runningEverywhere(t *testing.T) {
	t.Helper()
	for n, id := range []string{nodeID, "n2", "n3"} {
		p.runningOn(t, id, int32(n+1))
	}
}

func TestInstancesOfOtherNodesAreReached(t *testing.T) {
	p, _ := three(t, true)
	p.runningEverywhere(t)
	for slot, want := range map[string]string{"web.1": "from n1", "web.2": "from n2", "web.3": "from n3"} {
		top, err := p.instances.Top(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{Environment: "production", App: "shop", Target: slot}))
		if err != nil || top.Msg.Titles[0] != want {
			t.Errorf("%s: %v, %v", slot, top, err)
		}
	}
	list, err := p.instances.List(t.Context(), connect.NewRequest(&gantryv1.ListInstancesRequest{}))
	if err != nil || len(list.Msg.Nodes) != 3 || list.Msg.Nodes[1].Name != "name-n2" {
		t.Errorf("the list names the nodes %v, %v", list, err)
	}
}

func TestANodeThatDoesNotAnswerIsNamed(t *testing.T) {
	p, _ := three(t, false)
	p.runningEverywhere(t)
	ask := func() error {
		_, err := p.instances.Top(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{Environment: "production", App: "shop", Target: "web.3"}))
		return wire.Decode(err)
	}
	check := func(err error, want string) {
		t.Helper()
		if !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), want) || fault.HintOf(err) != "gantry node show name-n3" {
			t.Errorf("%v (hint %q)", err, fault.HintOf(err))
		}
	}
	check(ask(), "node name-n3 does not answer: ")
	p.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n3"), State: "down"}}, nil)
	check(ask(), "node name-n3 is down")
}

func TestLogsOfTheOthersComeAndTheMissingAreNamed(t *testing.T) {
	p, _ := three(t, false)
	p.runningEverywhere(t)
	stream, err := p.instances.Logs(t.Context(), connect.NewRequest(&gantryv1.LogsRequest{Environment: "production", App: "shop", Tail: -1}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for stream.Receive() {
		got = append(got, string(stream.Msg().Line))
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"from n1", "from n2"}) {
		t.Errorf("logs %q", got)
	}
	err = wire.Decode(stream.Err())
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the logs of web.3 are missing: node name-n3") {
		t.Errorf("at the end: %v", err)
	}
}

func TestFollowedLogsGoOnWithoutANode(t *testing.T) {
	p, _ := three(t, false)
	p.runningEverywhere(t)
	stream, err := p.instances.Logs(t.Context(), connect.NewRequest(&gantryv1.LogsRequest{Environment: "production", App: "shop", Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	lines, missing := map[string]bool{}, ""
	for len(lines) < 2 || missing == "" {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		m := stream.Msg()
		if m.Failure != nil {
			missing = m.Failure.Name
			continue
		}
		lines[string(m.Line)] = true
	}
	if missing != "name-n3" || !lines["from n1"] || !lines["from n2"] {
		t.Errorf("lines %v, missing %q", slices.Collect(maps.Keys(lines)), missing)
	}
}

func TestStatsAndDisksOfAllNodesThatAnswer(t *testing.T) {
	p, _ := three(t, false)
	p.runningEverywhere(t)
	stream, err := p.instances.Stats(t.Context(), connect.NewRequest(&gantryv1.StatsRequest{Environment: "production"}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	if m := stream.Msg(); len(m.Stats) != 2 || len(m.Failures) != 1 || m.Failures[0].Node != "n3" || m.Stats[1].Node != "n2" {
		t.Errorf("stats %v", m)
	}
	df, err := p.system.DiskUsage(t.Context(), connect.NewRequest(&gantryv1.DiskUsageRequest{}))
	if err != nil || len(df.Msg.Rows) != 2 || df.Msg.Rows[1].Node != "n2" || df.Msg.Failures[0].Name != "name-n3" {
		t.Errorf("disks %v, %v", df, err)
	}
	_, err = p.system.DiskUsage(t.Context(), connect.NewRequest(&gantryv1.DiskUsageRequest{Node: "name-n3"}))
	if !fault.Is(wire.Decode(err), fault.Unavailable) {
		t.Errorf("a dead node's disk: %v", err)
	}
	pruned, err := p.images.Prune(t.Context(), connect.NewRequest(&gantryv1.PruneImagesRequest{}))
	if err != nil || pruned.Msg.Reclaimed != 6 || len(pruned.Msg.Removed) != 1 || len(pruned.Msg.Failures) != 1 {
		t.Errorf("pruned %v, %v", pruned, err)
	}
}

// A machine that passes the question on to the leader is the one that it is about.
func TestInfoIsOfTheMachineAsked(t *testing.T) {
	p, _ := three(t, true)
	for _, c := range []struct{ asked, node, want string }{
		{"", "", "from n1"}, {"n2", "", "from n2"}, {"n2", "name-n3", "from n3"},
	} {
		req := connect.NewRequest(&gantryv1.InfoRequest{Node: c.node})
		req.Header().Set(askedFirst, c.asked)
		got, err := p.system.Info(t.Context(), req)
		if err != nil || got.Msg.Hostname != c.want || len(got.Msg.Nodes) != 3 {
			t.Errorf("%s asked about %q: %v, %v", c.asked, c.node, got, err)
		}
	}
}

// TestAVolumeWhoseNodeIsGone: with force its users begin with an empty one elsewhere; what is on a node that is there stays.
func TestAVolumeWhoseNodeIsGone(t *testing.T) {
	p := start(t)
	p.apply(t, app(func(s *gantryv1.AppSpec) {
		withVolume(s)
		s.Services["web"].Container.Mounts = []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "production/shop/data", Target: "/d"}}
	}))
	remove := func(force bool) error {
		_, err := p.volumes.Remove(t.Context(), connect.NewRequest(&gantryv1.VolumeTarget{Environment: "production", Name: "shop/data", Force: force}))
		return wire.Decode(err)
	}
	on := func(node string) {
		p.put(t, &gantryv1.Volume{Meta: store.NewMeta("production/shop/data"), Driver: "pool", Node: node})
	}
	on(nodeID)
	if err := remove(true); !fault.Is(err, fault.Conflict) || strings.Contains(fault.HintOf(err), "--force") {
		t.Errorf("a volume in use, whose node is there: %v", err)
	}
	on("gone")
	if err := remove(false); !fault.Is(err, fault.Conflict) || !strings.Contains(fault.HintOf(err), "gantry volume rm --force shop/data") {
		t.Errorf("without force: %v, %s", err, fault.HintOf(err))
	}
	if err := remove(true); err != nil {
		t.Fatalf("with force: %v", err)
	}
	if v, ok := store.Get[*gantryv1.Volume](p.store.Snapshot(), "production/shop/data"); !ok || v.Node == "gone" || v.Driver != "pool" {
		t.Errorf("what its users have now: %v", v)
	}
	p.put(t, &gantryv1.Volume{Meta: store.NewMeta("production/other"), Node: "gone"})
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(&gantryv1.VolumeTarget{Environment: "production", Name: "other", Force: true})); err != nil {
		t.Fatal(err)
	}
	if _, ok := store.Get[*gantryv1.Volume](p.store.Snapshot(), "production/other"); ok {
		t.Error("a volume that nobody uses is still there")
	}
}

func TestVolumesAreRemovedWhereTheirDataIs(t *testing.T) {
	p, nodes := three(t, false)
	target := &gantryv1.VolumeTarget{Environment: "production", Name: "data"}
	nodes["n2"].volume = "production/data"
	p.put(t, &gantryv1.Volume{Meta: store.NewMeta("production/data"), Node: "n2"})
	view, err := p.volumes.Inspect(t.Context(), connect.NewRequest(target))
	if err != nil || view.Msg.Size != 7 {
		t.Fatalf("inspected %v, %v", view, err)
	}
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(target)); err != nil || !nodes["n2"].removed.Load() {
		t.Fatalf("removed: %v", err)
	}
	p.put(t, &gantryv1.Volume{Meta: store.NewMeta("production/data"), Node: "n3"})
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(target)); !fault.Is(wire.Decode(err), fault.Unavailable) {
		t.Fatalf("a volume of a dead node was removed: %v", err)
	}
	pruned, err := p.volumes.Prune(t.Context(), connect.NewRequest(&gantryv1.PruneVolumesRequest{All: true}))
	if err != nil || len(pruned.Msg.Removed) != 0 || len(pruned.Msg.Failures) != 1 {
		t.Fatalf("pruned %v, %v", pruned, err)
	}
	// A machine that has left the cluster holds nothing up.
	p.put(t, &gantryv1.Volume{Meta: store.NewMeta("production/data"), Node: "gone"})
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(target)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(target)); !fault.Is(wire.Decode(err), fault.NotFound) {
		t.Fatalf("removed twice: %v", err)
	}
	target.Force = true
	if _, err := p.volumes.Remove(t.Context(), connect.NewRequest(target)); err != nil {
		t.Fatalf("with force: %v", err)
	}
}
