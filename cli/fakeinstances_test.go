package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

type fakeInstances struct {
	*fake
	gantryv1connect.UnimplementedInstanceServiceHandler
}

func (f fakeInstances) all(app string) []*gantryv1.InstanceView {
	f.mu.Lock()
	names := sortedNames(f.apps)
	f.mu.Unlock()
	var out []*gantryv1.InstanceView
	for _, name := range names {
		if app != "" && app != name {
			continue
		}
		v, _ := fakeApps{fake: f.fake}.view(name, true)
		for _, svc := range v.GetServices() {
			out = append(out, svc.GetInstances()...)
		}
	}
	if app != "" {
		return out
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range sortedNames(f.runs) {
		out = append(out, f.run(id))
	}
	return out
}

func (f fakeInstances) run(id string) *gantryv1.InstanceView {
	r := f.runs[id]
	st := &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RUNNING, StartedAt: timestamppb.New(start), Ports: r.GetSpec().GetPorts()}
	if r.GetSpec().GetImage() == "hungry" {
		st.Phase, st.OomKilled, st.ExitCode = gantryv1.InstanceStatus_PHASE_EXITED, true, 137
	}
	if r.GetSpec().GetImage() == "broken" {
		st.Phase, st.Error, st.Hint = gantryv1.InstanceStatus_PHASE_FAILED, `exec "nope": executable file not found in $PATH`, "check the command"
	}
	return &gantryv1.InstanceView{
		Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: id}, Environment: "production", Service: r.GetName(), Spec: r.GetSpec()}, Status: st,
	}
}

func (f fakeInstances) find(t *gantryv1.InstanceTarget) (*gantryv1.InstanceView, error) {
	for _, v := range f.all("") {
		i := v.GetInstance()
		short := fmt.Sprintf("%s.%d", i.GetService(), i.GetSlot())
		full := i.GetApp() + "/" + short
		switch want := t.GetTarget(); {
		case want == i.GetMeta().GetKey(), want == full, i.GetApp() == "" && want == i.GetService(),
			i.GetApp() == t.GetApp() && (want == short || want == i.GetService()):
			return v, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no instance %q", t.GetTarget()).WithHint("gantry ps -a")
}

func (f fakeInstances) Create(_ context.Context, r *connect.Request[gantryv1.CreateInstanceRequest]) (*connect.Response[gantryv1.CreateInstanceResponse], error) {
	f.mu.Lock()
	id := fmt.Sprintf("run%d", len(f.runs)+1)
	if r.Msg.GetName() == "" {
		r.Msg.Name = "made-up"
	}
	f.runs[id] = r.Msg
	f.mu.Unlock()
	if published := r.Msg.GetSpec().GetPorts(); len(published) > 0 {
		var list []string
		for _, p := range published {
			list = append(list, fmt.Sprintf("%d/%s", p.GetContainerPort(), p.GetProtocol()))
		}
		f.note("Ports:%s", strings.Join(list, ","))
	}
	f.note("Create:%s:%v", strings.Join(r.Msg.GetSpec().GetCommand().GetValues(), " "), r.Msg.GetAutoRemove())
	return answer(&gantryv1.CreateInstanceResponse{Id: id, Name: r.Msg.GetName()}, nil)
}

func (f fakeInstances) List(_ context.Context, r *connect.Request[gantryv1.ListInstancesRequest]) (*connect.Response[gantryv1.ListInstancesResponse], error) {
	if r.Msg.GetEnvironment() == wide {
		return answer(wideInstances(), nil)
	}
	return answer(&gantryv1.ListInstancesResponse{Instances: f.all(r.Msg.GetApp())}, nil)
}

func (f fakeInstances) Inspect(_ context.Context, r *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceView], error) {
	return answer(f.find(r.Msg))
}

func (f fakeInstances) action(name string, t *gantryv1.InstanceTarget) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	v, err := f.find(t)
	if err == nil {
		i := v.GetInstance()
		f.note("%s:%s.%d", name, i.GetService(), i.GetSlot())
	}
	return answer(&gantryv1.InstanceActionResponse{}, err)
}

func (f fakeInstances) Start(_ context.Context, r *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	return f.action("Start", r.Msg)
}

func (f fakeInstances) Stop(_ context.Context, r *connect.Request[gantryv1.StopInstanceRequest]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	return f.action(fmt.Sprintf("Stop:%d", r.Msg.GetGracePeriod().GetSeconds()), r.Msg.GetTarget())
}

func (f fakeInstances) Remove(_ context.Context, r *connect.Request[gantryv1.RemoveInstanceRequest]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	if !r.Msg.GetForce() {
		return answer[gantryv1.InstanceActionResponse](nil, fault.New(fault.Conflict, "instance %q runs", r.Msg.GetTarget().GetTarget()).WithHint("stop it first, or add --force"))
	}
	return f.action("Remove", r.Msg.GetTarget())
}

func (f fakeInstances) Kill(_ context.Context, r *connect.Request[gantryv1.KillRequest]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	return f.action("Kill:"+r.Msg.GetSignal(), r.Msg.GetTarget())
}

func (f fakeInstances) Wait(_ context.Context, r *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.WaitResponse], error) {
	_, err := f.find(r.Msg)
	return answer(&gantryv1.WaitResponse{ExitCode: 137, OomKilled: true}, err)
}

func (f fakeInstances) Logs(ctx context.Context, r *connect.Request[gantryv1.LogsRequest], s *connect.ServerStream[gantryv1.LogEntry]) error {
	if r.Msg.GetEnvironment() == wide {
		return errors.Join(
			s.Send(&gantryv1.LogEntry{Instance: "a", Name: "web.1", Stream: "stdout", Line: []byte("here\n"), Time: timestamppb.New(start)}),
			s.Send(&gantryv1.LogEntry{Instance: "b", Name: "web.2", Time: timestamppb.New(start), Failure: lost()}))
	}
	targets := r.Msg.GetTargets()
	if len(targets) == 0 {
		targets = []string{"web.1", "longname.1"}
	}
	f.note("Logs:%s:%d", strings.Join(targets, ","), r.Msg.GetTail())
	for _, t := range targets {
		for _, l := range []struct{ stream, text string }{
			{"stdout", "hello \x1b[31mred\x1b[0m \x1b[2J\n"}, {"stderr", "part one, "}, {"stderr", "part two\n"},
		} {
			err := s.Send(&gantryv1.LogEntry{Instance: t, Name: t, Stream: l.stream, Line: []byte(l.text), Time: timestamppb.New(start.Truncate(0))})
			if err != nil {
				return err
			}
		}
	}
	if r.Msg.GetFollow() {
		f.note("Following")
		<-ctx.Done()
	}
	return nil
}

// Exec plays a few commands: echo, cat (upper case), exit N, wait (for a signal), nope (not there).
func (f fakeInstances) Exec(_ context.Context, s *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput]) error {
	first, err := s.Receive()
	if err != nil {
		return err
	}
	begin := first.GetStart()
	if _, err := f.find(begin.GetTarget()); err != nil {
		return wire.Encode(err)
	}
	f.note("Exec:%s:%s", begin.GetTarget().GetTarget(), strings.Join(begin.GetEnv(), ","))
	return f.play(s, begin.GetCommand(), begin)
}

func (f fakeInstances) Attach(_ context.Context, s *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput]) error {
	first, err := s.Receive()
	if err != nil {
		return err
	}
	begin := first.GetStart()
	v, err := f.find(begin.GetTarget())
	if err != nil {
		return wire.Encode(err)
	}
	f.mu.Lock()
	if id := v.GetInstance().GetMeta().GetKey(); f.runs[id].GetAutoRemove() && f.runs[id].GetSpec().GetImage() == "hungry" {
		delete(f.runs, id)
	}
	f.mu.Unlock()
	return f.play(s, v.GetInstance().GetSpec().GetCommand().GetValues(), begin)
}

func (f fakeInstances) play(s *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput], command []string, begin *gantryv1.ExecStart) error {
	if len(command) == 0 {
		command = []string{"exit", "0"}
	}
	if command[0] == "nope" {
		return wire.Encode(fault.New(fault.Invalid, `exec: "nope": executable file not found in $PATH`).WithHint("check the command"))
	}
	if command[0] == "secret" {
		return wire.Encode(fault.New(fault.Invalid, `exec: "secret": permission denied`))
	}
	out := func(text string) {
		_ = s.Send(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Stdout{Stdout: []byte(text)}})
	}
	_ = s.Send(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Started{Started: true}})
	if begin.GetDetach() {
		return nil
	}
	code := int32(0)
	switch command[0] {
	case "echo":
		out(strings.Join(command[1:], " ") + "\n")
		_ = s.Send(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Stderr{Stderr: []byte("to stderr\n")}})
	case "exit":
		_, _ = fmt.Sscan(command[1], &code)
	case "size":
		out(fmt.Sprintf("%v %v\n", begin.GetTty(), begin.GetColumns() > 0))
	case "cat", "wait":
		code = f.listen(s, out)
	}
	return s.Send(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_ExitCode{ExitCode: code}})
}

// listen echoes standard input in upper case until it ends, or a signal comes.
func (f fakeInstances) listen(s *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput], out func(string)) int32 {
	f.note("Listening")
	for {
		in, err := s.Receive()
		if err != nil {
			f.note("Gone")
			return 1
		}
		switch in := in.GetInput().(type) {
		case *gantryv1.ExecInput_Stdin:
			out(strings.ToUpper(string(in.Stdin)))
		case *gantryv1.ExecInput_CloseStdin:
			return 0
		case *gantryv1.ExecInput_Signal:
			f.note("Signal:%s", in.Signal)
			return 143
		}
	}
}

func (f fakeInstances) Stats(_ context.Context, r *connect.Request[gantryv1.StatsRequest], s *connect.ServerStream[gantryv1.StatsResponse]) error {
	if r.Msg.GetEnvironment() == wide {
		return s.Send(&gantryv1.StatsResponse{Stats: []*gantryv1.InstanceStats{{Name: "web.1"}}, Failures: []*gantryv1.NodeFailure{lost()}})
	}
	return s.Send(&gantryv1.StatsResponse{Stats: []*gantryv1.InstanceStats{
		{Name: "web.1", Instance: "abc", CpuPercent: 12.345, Memory: 13107200, MemoryLimit: 1 << 30, NetworkRx: 1000, NetworkTx: 2_500_000, Pids: 3},
	}})
}

func (f fakeInstances) Top(context.Context, *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.TopResponse], error) {
	return answer(&gantryv1.TopResponse{Titles: []string{"PID", "COMMAND"}, Processes: []*gantryv1.StringList{{Values: []string{"1", "web --evil\x1b[2J"}}}}, nil)
}

func (f fakeInstances) Diff(context.Context, *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.DiffResponse], error) {
	return answer(&gantryv1.DiffResponse{Entries: []*gantryv1.DiffResponse_Entry{{Kind: "A", Path: "/new"}, {Kind: "D", Path: "/etc/gone"}}}, nil)
}

func (f fakeInstances) CopyTo(_ context.Context, s *connect.ClientStream[gantryv1.CopyChunk]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	var data bytes.Buffer
	dir := ""
	for s.Receive() {
		if b := s.Msg().GetStart(); b != nil {
			dir = b.GetPath()
		}
		data.Write(s.Msg().GetData())
	}
	for tr := tar.NewReader(&data); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		f.note("CopyTo:%s:%s", dir, h.Name)
	}
	return answer(&gantryv1.InstanceActionResponse{}, s.Err())
}

// CopyFrom has a directory /data with one file, and a file /etc/motd.
func (f fakeInstances) CopyFrom(_ context.Context, r *connect.Request[gantryv1.CopyFromRequest], s *connect.ServerStream[gantryv1.CopyChunk]) error {
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	switch r.Msg.GetPath() {
	case "/data":
		_ = w.WriteHeader(&tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o755})
		_ = w.WriteHeader(&tar.Header{Name: "data/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4})
		_, _ = w.Write([]byte("data"))
	case "/etc/motd":
		_ = w.WriteHeader(&tar.Header{Name: "motd", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5})
		_, _ = w.Write([]byte("hello"))
	case "/evil":
		_ = w.WriteHeader(&tar.Header{Name: "../evil", Typeflag: tar.TypeReg, Mode: 0o644})
	default:
		return wire.Encode(fault.New(fault.NotFound, "there is no %s in the container", r.Msg.GetPath()))
	}
	_ = w.Close()
	return s.Send(&gantryv1.CopyChunk{Chunk: &gantryv1.CopyChunk_Data{Data: data.Bytes()}})
}

func (f fakeInstances) Events(_ context.Context, r *connect.Request[gantryv1.EventsRequest], s *connect.ServerStream[gantryv1.Event]) error {
	if r.Msg.GetUntil() != nil {
		_ = s.Send(&gantryv1.Event{Time: timestamppb.New(start), Kind: "instance", Action: "oom", Key: "run1"})
	}
	return s.Send(&gantryv1.Event{Time: timestamppb.New(start), Kind: "instance", Action: "die", Key: "abc", Attributes: map[string]string{"exitCode": "3", "app": "shop"}})
}

type fakeVolumes struct {
	*fake
	gantryv1connect.UnimplementedVolumeServiceHandler
}

func (f fakeVolumes) volume(name string) *gantryv1.VolumeView {
	return &gantryv1.VolumeView{Volume: &gantryv1.Volume{Meta: &gantryv1.Meta{Key: "production/" + name}, Driver: "directory"}, Size: 1234, UsedBy: []string{"shop/db.1"}}
}

func (f fakeVolumes) List(context.Context, *connect.Request[gantryv1.ListVolumesRequest]) (*connect.Response[gantryv1.ListVolumesResponse], error) {
	return answer(&gantryv1.ListVolumesResponse{Volumes: []*gantryv1.VolumeView{f.volume("shop/data")}}, nil)
}

func (f fakeVolumes) Create(_ context.Context, r *connect.Request[gantryv1.CreateVolumeRequest]) (*connect.Response[gantryv1.Volume], error) {
	return answer(f.volume(r.Msg.GetName()).GetVolume(), nil)
}

func (f fakeVolumes) Inspect(_ context.Context, r *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.VolumeView], error) {
	if r.Msg.GetName() == "none" {
		return answer[gantryv1.VolumeView](nil, fault.New(fault.NotFound, "there is no volume \"none\""))
	}
	return answer(f.volume(r.Msg.GetName()), nil)
}

func (f fakeVolumes) Remove(_ context.Context, r *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	if r.Msg.GetName() == "used" {
		return answer[gantryv1.RemoveVolumeResponse](nil, fault.New(fault.Conflict, "volume \"used\" is used by shop/db.1").WithHint("gantry down -p shop"))
	}
	return answer(&gantryv1.RemoveVolumeResponse{}, nil)
}

func (f fakeVolumes) Prune(context.Context, *connect.Request[gantryv1.PruneVolumesRequest]) (*connect.Response[gantryv1.PruneVolumesResponse], error) {
	f.note("PruneVolumes")
	return answer(&gantryv1.PruneVolumesResponse{Removed: []string{"production/x"}, Reclaimed: 10}, nil)
}

type fakeNetworks struct {
	*fake
	gantryv1connect.UnimplementedNetworkServiceHandler
}

func (f fakeNetworks) List(context.Context, *connect.Request[gantryv1.ListNetworksRequest]) (*connect.Response[gantryv1.ListNetworksResponse], error) {
	return answer(&gantryv1.ListNetworksResponse{Networks: []*gantryv1.NetworkView{{
		Network: &gantryv1.Network{Meta: &gantryv1.Meta{Key: "production/shop/back"}, Internal: true},
		Members: []*gantryv1.NetworkView_Member{{Name: "db.1"}},
	}}}, nil)
}

type fakeFiles struct {
	*fake
	noun string
}

func (f fakeFiles) List(context.Context, *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &gantryv1.ListFilesResponse{}
	for _, name := range sortedNames(f.files) {
		if rest, ok := strings.CutPrefix(name, f.noun+":"); ok {
			out.Files = append(out.Files, &gantryv1.FileInfo{Meta: &gantryv1.Meta{Key: "production/" + rest}, Version: 1, Size: f.files[name]})
		}
	}
	return answer(out, nil)
}

func (f fakeFiles) Create(_ context.Context, r *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := f.noun + ":" + r.Msg.GetName()
	if _, ok := f.files[key]; ok && !r.Msg.GetReplace() {
		return answer[gantryv1.FileInfo](nil, fault.New(fault.Exists, "%s %q exists", f.noun, r.Msg.GetName()).WithHint("add --replace for a new version"))
	}
	f.files[key] = int64(len(r.Msg.GetContent()))
	return answer(&gantryv1.FileInfo{Meta: &gantryv1.Meta{Key: "production/" + r.Msg.GetName()}}, nil)
}

func (f fakeFiles) Remove(_ context.Context, r *connect.Request[gantryv1.FileTarget]) (*connect.Response[gantryv1.RemoveFileResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, f.noun+":"+r.Msg.GetName())
	return answer(&gantryv1.RemoveFileResponse{}, nil)
}

type fakeSystem struct {
	*fake
	gantryv1connect.UnimplementedSystemServiceHandler
}

func (f fakeSystem) Version(context.Context, *connect.Request[gantryv1.VersionRequest]) (*connect.Response[gantryv1.VersionResponse], error) {
	return answer(&gantryv1.VersionResponse{Version: "1.2.4", Commit: "def", GoVersion: "go1", Os: "linux", Arch: "riscv64", Modules: map[string]string{"b": "v2", "a": "v1"}}, nil)
}

func (f fakeSystem) Info(context.Context, *connect.Request[gantryv1.InfoRequest]) (*connect.Response[gantryv1.InfoResponse], error) {
	return answer(&gantryv1.InfoResponse{Hostname: "box", Memory: 8 << 30, Checks: []*gantryv1.KernelCheck{
		{Feature: "overlayfs", Present: true, Required: true}, {Feature: "idmapped mounts", Cost: "containers run as root of the host"},
	}}, nil)
}

func (f fakeSystem) DiskUsage(_ context.Context, r *connect.Request[gantryv1.DiskUsageRequest]) (*connect.Response[gantryv1.DiskUsageResponse], error) {
	if r.Msg.GetNode() == wide {
		return answer(&gantryv1.DiskUsageResponse{
			Rows: []*gantryv1.DiskUsageResponse_Row{{Kind: "images", Node: "n1"}}, Nodes: wideNodes(), Failures: []*gantryv1.NodeFailure{lost()},
		}, nil)
	}
	return answer(&gantryv1.DiskUsageResponse{Rows: []*gantryv1.DiskUsageResponse_Row{{Kind: "images", Count: 3, Active: 1, Size: 3_000_000, Reclaimable: 1_000_000}}}, nil)
}

// wide is the environment, or node, that stands for a cluster of two machines, one of which is down.
const wide = "wide"

func wideNodes() []*gantryv1.NodeBrief {
	return []*gantryv1.NodeBrief{{Id: "n1", Name: "alpha", State: "ready"}, {Id: "n2", Name: "beta", State: "down"}}
}

func lost() *gantryv1.NodeFailure {
	return &gantryv1.NodeFailure{Node: "n2", Name: "beta", Message: "node beta is down", Hint: "gantry node show beta"}
}

func wideInstances() *gantryv1.ListInstancesResponse {
	out := &gantryv1.ListInstancesResponse{Nodes: wideNodes()}
	for n, node := range []string{"n1", "n2"} {
		out.Instances = append(out.Instances, &gantryv1.InstanceView{
			Instance: &gantryv1.Instance{
				Meta: &gantryv1.Meta{Key: "id" + node}, Service: "box" + itoa(n), Node: node, Spec: &gantryv1.ContainerSpec{Image: "here"},
			},
			Status: &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_RUNNING, StartedAt: timestamppb.New(start)},
		})
	}
	return out
}
