package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

func itoa(n int) string { return strconv.Itoa(n) }

// fake is a daemon without containers. What an image is called says what becomes of it: "broken" fails, "slow" never
// gets ready, "crashing" runs and then fails, "lagging" has failed before the view of it running is read, and the first
// question for it is not answered, "missing" is in no registry; all else runs at once.
type fake struct {
	mu      sync.Mutex
	calls   []string
	changed chan struct{}
	apps    map[string]*gantryv1.AppSpec
	stopped map[string]bool
	images  map[string]bool
	files   map[string]int64
	runs    map[string]*gantryv1.CreateInstanceRequest
	asked   bool // for an app that lags
}

func newFake() *fake {
	return &fake{
		changed: make(chan struct{}), apps: map[string]*gantryv1.AppSpec{}, stopped: map[string]bool{},
		images: map[string]bool{"here": true}, files: map[string]int64{}, runs: map[string]*gantryv1.CreateInstanceRequest{},
	}
}

// note records a call and wakes all who wait.
func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) await(call string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		f.mu.Lock()
		found, changed := slices.Contains(f.calls, call), f.changed
		f.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func answer[T any](m *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, wire.Encode(err)
	}
	return connect.NewResponse(m), nil
}

var start = time.Now().Add(-3 * time.Minute)

func digestOf(name string) string { return "sha256:" + fmt.Sprintf("%064x", len(name)) }

type fakeApps struct {
	*fake
	gantryv1connect.UnimplementedAppServiceHandler
}

func noApp(name string) error {
	return fault.New(fault.NotFound, "there is no app %q in production", name).WithHint("gantry up")
}

func (f fakeApps) plan(r *gantryv1.ApplyRequest) *gantryv1.PlanResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &gantryv1.PlanResponse{Index: 77}
	old := f.apps[r.GetApp()]
	for _, name := range sortedNames(r.GetSpec().GetServices()) {
		svc, before := r.GetSpec().GetServices()[name], old.GetServices()[name]
		key := "production/" + r.GetApp() + "/" + name
		switch {
		case before == nil:
			out.Changes = append(out.Changes, &gantryv1.Change{Action: gantryv1.Change_ACTION_CREATE, Kind: "service", Key: key,
				Fields: []*gantryv1.FieldChange{{Path: "container.image", New: svc.GetContainer().GetImage()}}})
		case !proto.Equal(svc, before):
			out.Changes = append(out.Changes, &gantryv1.Change{Action: gantryv1.Change_ACTION_UPDATE, Kind: "service", Key: key,
				Fields: []*gantryv1.FieldChange{{Path: "container.image", Old: before.GetContainer().GetImage(), New: svc.GetContainer().GetImage()}}})
		}
	}
	return out
}

func sortedNames[V any](m map[string]V) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (f fakeApps) Plan(_ context.Context, r *connect.Request[gantryv1.ApplyRequest]) (*connect.Response[gantryv1.PlanResponse], error) {
	return answer(f.plan(r.Msg), nil)
}

func (f fakeApps) Apply(_ context.Context, r *connect.Request[gantryv1.ApplyRequest]) (*connect.Response[gantryv1.PlanResponse], error) {
	plan := f.plan(r.Msg)
	if i := r.Msg.GetCheckIndex(); i != 0 && i != plan.Index {
		return answer[gantryv1.PlanResponse](nil, fault.New(fault.Conflict, "app %q has changed since it was planned", r.Msg.GetApp()).WithHint("gantry plan"))
	}
	for _, c := range plan.Changes {
		plan.Operations = append(plan.Operations, c.Key+"/00000002")
	}
	f.mu.Lock()
	f.apps[r.Msg.GetApp()] = r.Msg.GetSpec()
	f.mu.Unlock()
	f.note("Apply:%s%s", r.Msg.GetApp(), map[bool]string{true: ":nodeps"}[r.Msg.GetNoDependencies()])
	return answer(plan, nil)
}

func (f fakeApps) view(app string, settled bool) (*gantryv1.AppView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	spec := f.apps[app]
	if spec == nil {
		return nil, noApp(app)
	}
	view := &gantryv1.AppView{App: &gantryv1.App{Name: app, Spec: spec}}
	for _, name := range sortedNames(spec.GetServices()) {
		view.Services = append(view.Services, f.service(app, name, spec.GetServices()[name], settled))
	}
	return view, nil
}

func (f fakeApps) service(app, name string, spec *gantryv1.ServiceSpec, settled bool) *gantryv1.ServiceView {
	replicas := max(spec.GetReplicas(), 1)
	v := &gantryv1.ServiceView{
		Service: &gantryv1.Service{App: app, Name: name, Environment: "production", Spec: spec, Release: 1},
		Wanted:  replicas, Ready: replicas, Converged: true,
	}
	for slot := int32(1); slot <= replicas; slot++ {
		v.Instances = append(v.Instances, f.instance(app, name, slot, spec.GetContainer()))
	}
	switch image := spec.GetContainer().GetImage(); {
	case f.stopped[app] && len(spec.GetDependsOn()) > 0:
		v.Ready, v.Converged, v.Failure = 0, false, "its dependency is stopped"
	case !settled && len(spec.GetDependsOn()) > 0:
		v.Ready, v.Converged, v.Waiting = 0, false, "waits for "+spec.GetDependsOn()[0].GetService()+" to be healthy"
	case image == "regressing" || image == "canary" || image == "halted":
		f.rollingOut(v, settled)
	case image == "slow":
		v.Ready, v.Converged, v.Waiting = 0, false, "waits for a miracle\x1b[2J"
	case (image == "crashing" || image == "lagging") && settled:
		v.Ready, v.Converged, v.Failure = 0, false, "web.1 keeps exiting, last with code 3, after 3 restarts"
	case image == "broken" && settled:
		v.Ready, v.Converged, v.Failure = 0, false, "exited with code 3, 5 times in a row"
	case image == "broken":
		v.Ready, v.Converged = 0, false
	}
	return v
}

func (f fakeApps) instance(app, service string, slot int32, spec *gantryv1.ContainerSpec) *gantryv1.InstanceView {
	st := &gantryv1.InstanceStatus{
		Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Health: gantryv1.InstanceStatus_HEALTH_HEALTHY, Address: "10.64.0." + itoa(int(slot)),
		StartedAt: timestamppb.New(start),
	}
	switch spec.GetImage() {
	case "crashing":
		st.Health, st.StartedAt = gantryv1.InstanceStatus_HEALTH_UNSPECIFIED, timestamppb.Now()
	case "lagging":
		st.Health = gantryv1.InstanceStatus_HEALTH_UNSPECIFIED
	}
	if spec.GetImage() == "broken" {
		st.Phase, st.Health, st.ExitCode = gantryv1.InstanceStatus_PHASE_RESTARTING, 0, 3
	}
	if spec.GetImage() == "talkative" {
		st.Phase, st.Health, st.Error = gantryv1.InstanceStatus_PHASE_FAILED, 0, "it goes on and on, "+strings.Repeat("and on ", 20)+"\nthe last line"
	}
	if f.stopped[app] {
		st.Phase, st.Health, st.FinishedAt = gantryv1.InstanceStatus_PHASE_EXITED, 0, timestamppb.New(start.Add(time.Minute))
	}
	for _, p := range spec.GetPorts() {
		st.Ports = append(st.Ports, &gantryv1.PortPublish{HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(), Protocol: p.GetProtocol()})
	}
	return &gantryv1.InstanceView{
		Instance: &gantryv1.Instance{
			Meta: &gantryv1.Meta{Key: fmt.Sprintf("%s%s%dxxxxxxxxxxxx", app, service, slot)}, Environment: "production", App: app, Service: service,
			Slot: slot, Release: 1, Desired: gantryv1.Instance_DESIRED_RUNNING,
		},
		Status: st,
	}
}

func (f fakeApps) List(context.Context, *connect.Request[gantryv1.ListAppsRequest]) (*connect.Response[gantryv1.ListAppsResponse], error) {
	f.mu.Lock()
	names := sortedNames(f.apps)
	f.mu.Unlock()
	out := &gantryv1.ListAppsResponse{}
	for _, name := range names {
		v, _ := f.view(name, true)
		out.Apps = append(out.Apps, v)
	}
	return answer(out, nil)
}

func (f fakeApps) Get(_ context.Context, r *connect.Request[gantryv1.GetAppRequest]) (*connect.Response[gantryv1.AppView], error) {
	v, err := f.view(r.Msg.GetApp(), true)
	if err == nil && lags(v) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.asked {
			f.asked, err = true, fault.New(fault.Unavailable, "no server leads")
		}
	}
	return answer(v, err)
}

func lags(v *gantryv1.AppView) bool {
	return v.GetServices()[0].GetService().GetSpec().GetContainer().GetImage() == "lagging"
}

func (f fakeApps) Watch(ctx context.Context, r *connect.Request[gantryv1.GetAppRequest], s *connect.ServerStream[gantryv1.AppView]) error {
	for _, settled := range []bool{false, true} {
		v, err := f.view(r.Msg.GetApp(), settled)
		if err != nil {
			return wire.Encode(err)
		}
		if settled && lags(v) {
			break
		}
		if err := s.Send(v); err != nil {
			return err
		}
	}
	f.note("Watch")
	<-ctx.Done()
	return wire.Encode(ctx.Err())
}

func (f fakeApps) Remove(_ context.Context, r *connect.Request[gantryv1.RemoveAppRequest]) (*connect.Response[gantryv1.RemoveAppResponse], error) {
	f.mu.Lock()
	_, ok := f.apps[r.Msg.GetApp()]
	delete(f.apps, r.Msg.GetApp())
	f.mu.Unlock()
	f.note("Remove:%s:%v", r.Msg.GetApp(), r.Msg.GetVolumes())
	if !ok {
		return answer[gantryv1.RemoveAppResponse](nil, noApp(r.Msg.GetApp()))
	}
	return answer(&gantryv1.RemoveAppResponse{}, nil)
}

func (f fakeApps) Scale(_ context.Context, r *connect.Request[gantryv1.ScaleRequest]) (*connect.Response[gantryv1.ScaleResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	spec := f.apps[r.Msg.GetApp()]
	for name, n := range r.Msg.GetReplicas() {
		svc := spec.GetServices()[name]
		if svc == nil {
			return answer[gantryv1.ScaleResponse](nil, fault.New(fault.NotFound, "app %q has no service %q", r.Msg.GetApp(), name))
		}
		svc.Replicas = n
	}
	return answer(&gantryv1.ScaleResponse{}, nil)
}

func (f fakeApps) Rollback(_ context.Context, r *connect.Request[gantryv1.RollbackRequest]) (*connect.Response[gantryv1.RollbackResponse], error) {
	f.note("Rollback:%s", r.Msg.GetService())
	return answer(&gantryv1.RollbackResponse{Release: 4, Operation: "production/voting/web/00000009"}, nil)
}

func (f fakeApps) SetStopped(_ context.Context, r *connect.Request[gantryv1.SetStoppedRequest]) (*connect.Response[gantryv1.SetStoppedResponse], error) {
	f.mu.Lock()
	f.stopped[r.Msg.GetApp()] = r.Msg.GetStopped()
	f.mu.Unlock()
	f.note("SetStopped:%s:%v%s", strings.Join(r.Msg.GetServices(), ","), r.Msg.GetStopped(), graceOf(r.Msg.GetGracePeriod()))
	return answer(&gantryv1.SetStoppedResponse{}, nil)
}

func (f fakeApps) Restart(_ context.Context, r *connect.Request[gantryv1.RestartRequest]) (*connect.Response[gantryv1.RestartResponse], error) {
	f.note("Restart:%s%s", strings.Join(r.Msg.GetServices(), ","), graceOf(r.Msg.GetGracePeriod()))
	return answer(&gantryv1.RestartResponse{}, nil)
}

func (f fakeApps) ListReleases(context.Context, *connect.Request[gantryv1.ListReleasesRequest]) (*connect.Response[gantryv1.ListReleasesResponse], error) {
	spec := &gantryv1.ServiceSpec{Version: "2.1.0", Container: &gantryv1.ContainerSpec{Image: "docker.io/library/web:2", ImageDigest: digestOf("web")}}
	return answer(&gantryv1.ListReleasesResponse{Releases: []*gantryv1.ReleaseView{
		{Release: &gantryv1.Release{Service: "production/shop/web", Number: 2, Spec: spec, Meta: &gantryv1.Meta{CreatedAt: timestamppb.New(start)}}, Current: true, Instances: 2},
		{Release: &gantryv1.Release{Service: "production/shop/web", Number: 1, Spec: spec, Note: "first"}},
	}}, nil)
}

type fakeImages struct {
	*fake
	gantryv1connect.UnimplementedImageServiceHandler
}

func (f fakeImages) has(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.images[name]
}

func (f fakeImages) image(name string) *gantryv1.Image {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[name] = true
	return &gantryv1.Image{Digest: digestOf(name), References: []string{"docker.io/library/" + name + ":latest"}, Size: 117_400_000, Platforms: []string{"linux/amd64"}, CreatedAt: timestamppb.New(start)}
}

func (f fakeImages) Inspect(_ context.Context, r *connect.Request[gantryv1.InspectImageRequest]) (*connect.Response[gantryv1.InspectImageResponse], error) {
	name := r.Msg.GetImage()
	if !f.has(name) {
		return answer[gantryv1.InspectImageResponse](nil, fault.New(fault.NotFound, "there is no image %q", name).WithHint("gantry image pull %s", name))
	}
	return answer(&gantryv1.InspectImageResponse{
		Image: f.image(name), Config: []byte(configOf(name)), Manifest: []byte(`{"schemaVersion":2}`),
		History: []*gantryv1.ImageHistory{{CreatedBy: "ADD rootfs", Size: 1000, Layer: digestOf("x")}, {CreatedBy: "CMD sh", Empty: true}},
	}, nil)
}

// deaf is a machine that does not answer.
func deaf() []*gantryv1.NodeFailure {
	return []*gantryv1.NodeFailure{{Node: "n9", Name: "far", Message: "node far does not answer", Hint: "gantry node show far"}}
}

func (f fakeImages) List(_ context.Context, r *connect.Request[gantryv1.ListImagesRequest]) (*connect.Response[gantryv1.ListImagesResponse], error) {
	if r.Msg.GetNode() != "" {
		return answer(&gantryv1.ListImagesResponse{Images: []*gantryv1.Image{f.image("of-" + r.Msg.GetNode())}, Failures: deaf()}, nil)
	}
	here, wide := f.image("here"), f.image("wide")
	here.Nodes, wide.Nodes = []string{"n1", "n2"}, []string{"n1", "n2", "n3", "n4"}
	return answer(&gantryv1.ListImagesResponse{Images: []*gantryv1.Image{here, wide}}, nil)
}

func (f fakeImages) Pull(_ context.Context, r *connect.Request[gantryv1.PullRequest], s *connect.ServerStream[gantryv1.Progress]) error {
	name := r.Msg.GetImage()
	f.note("Pull:%s:%s", name, r.Msg.GetAuth().GetUsername())
	if name == "missing" {
		return wire.Encode(fault.New(fault.NotFound, "registry docker.io has no image \"missing\"").WithHint("check the name; is it private? docker login docker.io"))
	}
	if !f.has(name) || r.Msg.GetPolicy() == gantryv1.PullPolicy_PULL_POLICY_ALWAYS {
		for _, p := range []*gantryv1.Progress{{Id: name, Status: "resolving"}, {Id: "layer", Status: "downloading", Current: 5, Total: 2000}, {Id: "layer", Status: "done", Current: 2000, Total: 2000}} {
			if err := s.Send(p); err != nil {
				return err
			}
		}
	}
	return s.Send(&gantryv1.Progress{Status: "done", Image: f.image(name)})
}

func (f fakeImages) Bootstrap(_ context.Context, r *connect.Request[gantryv1.BootstrapRequest], s *connect.ServerStream[gantryv1.Progress]) error {
	f.note("Bootstrap:%s", strings.Join(r.Msg.GetInclude(), ","))
	return errors.Join(s.Send(&gantryv1.Progress{Id: "packages", Status: "unpacking", Detail: "12 of 80"}), s.Send(&gantryv1.Progress{Image: f.image(r.Msg.GetImage())}))
}

func (f fakeImages) Build(_ context.Context, s *connect.BidiStream[gantryv1.BuildInput, gantryv1.BuildEvent]) error {
	first, err := s.Receive()
	if err != nil {
		return err
	}
	begin := first.GetStart()
	var names []string
	data := map[string][]byte{}
	for contexts := 1 + len(begin.GetSpec().GetAdditionalContexts()); contexts > 0; {
		in, err := s.Receive()
		if err != nil {
			return err
		}
		c := in.GetChunk()
		data[c.GetName()] = append(data[c.GetName()], c.GetData()...)
		if c.GetEnd() {
			contexts--
		}
	}
	for tr := tar.NewReader(bytes.NewReader(data["context"])); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	f.note("Build:%s:%s", begin.GetTags()[0], strings.Join(names, ","))
	for id, secret := range begin.GetSecrets() {
		f.note("Secret:%s=%s", id, strings.TrimSpace(string(secret)))
	}
	t0, t1 := timestamppb.New(start), timestamppb.New(start.Add(1500*time.Millisecond))
	send := func(v *gantryv1.BuildEvent_Vertex) error {
		return s.Send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Vertex_{Vertex: v}})
	}
	err = errors.Join(
		send(&gantryv1.BuildEvent_Vertex{Digest: "a", Name: "[1/2] FROM debian", Cached: true}),
		send(&gantryv1.BuildEvent_Vertex{Digest: "b", Name: "[2/2] RUN make", StartedAt: t0}),
		s.Send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Log_{Log: &gantryv1.BuildEvent_Log{Vertex: "b", Data: []byte("cc main.c\n")}}}),
	)
	if err != nil {
		return err
	}
	if begin.GetSpec().GetTarget() == "bad" {
		_ = send(&gantryv1.BuildEvent_Vertex{Digest: "b", Name: "[2/2] RUN make", StartedAt: t0, CompletedAt: t1, Error: "exit code: 2"})
		return wire.Encode(fault.New(fault.Invalid, "RUN make failed with exit code 2").WithHint("correct line 3 of the Dockerfile"))
	}
	return errors.Join(
		send(&gantryv1.BuildEvent_Vertex{Digest: "b", Name: "[2/2] RUN make", StartedAt: t0, CompletedAt: t1}),
		s.Send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Warning_{Warning: &gantryv1.BuildEvent_Warning{Rule: "UnpinnedBase", Message: "debian has no tag", Line: 1}}}),
		s.Send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Image{Image: f.image(begin.GetTags()[0])}}),
	)
}

func (f fakeImages) Import(_ context.Context, s *connect.ClientStream[gantryv1.ImportChunk]) (*connect.Response[gantryv1.ImportResponse], error) {
	n, ref := 0, ""
	for s.Receive() {
		n += len(s.Msg().GetData())
		ref += s.Msg().GetReference()
	}
	f.note("Import:%d:%s", n, ref)
	if n == 0 {
		return answer[gantryv1.ImportResponse](nil, fault.New(fault.Corrupt, "the archive is empty").WithHint("docker save IMAGE makes one"))
	}
	return answer(&gantryv1.ImportResponse{Images: []*gantryv1.Image{f.image("imported")}}, s.Err())
}

func (f fakeImages) Export(_ context.Context, r *connect.Request[gantryv1.ExportRequest], s *connect.ServerStream[gantryv1.ExportChunk]) error {
	err := s.Send(&gantryv1.ExportChunk{Data: []byte("archive of " + r.Msg.GetImages()[0] + "\n")})
	if r.Msg.GetImages()[0] == "half" {
		return wire.Encode(fault.New(fault.Corrupt, "a layer of \"half\" is damaged").WithHint("gantry image pull half"))
	}
	return err
}

func (f fakeImages) Tag(_ context.Context, r *connect.Request[gantryv1.TagRequest]) (*connect.Response[gantryv1.TagResponse], error) {
	f.note("Tag:%s:%s", r.Msg.GetSource(), r.Msg.GetTarget())
	return answer(&gantryv1.TagResponse{}, nil)
}

// configOf is the configuration of an image; "exposing" names a port.
func configOf(image string) string {
	if image == "exposing" {
		return `{"os":"linux","config":{"ExposedPorts":{"80/tcp":{}}}}`
	}
	return `{"os":"linux","big":12345678901234567}`
}

func (f fakeImages) Push(_ context.Context, r *connect.Request[gantryv1.PushRequest], s *connect.ServerStream[gantryv1.Progress]) error {
	f.note("Push:%s", r.Msg.GetImage())
	return s.Send(&gantryv1.Progress{Image: f.image(r.Msg.GetImage())})
}

func (f fakeImages) Remove(_ context.Context, r *connect.Request[gantryv1.RemoveImageRequest]) (*connect.Response[gantryv1.RemoveImageResponse], error) {
	f.note("RemoveImage:%s", r.Msg.GetImage())
	if !f.has(r.Msg.GetImage()) {
		return answer[gantryv1.RemoveImageResponse](nil, fault.New(fault.NotFound, "there is no image %q", r.Msg.GetImage()))
	}
	out := &gantryv1.RemoveImageResponse{Untagged: []string{r.Msg.GetImage()}, Deleted: []string{"sha256:00"}}
	if r.Msg.GetImage() == "wide" {
		out.Failures = deaf()
	}
	return answer(out, nil)
}

func (f fakeImages) Prune(context.Context, *connect.Request[gantryv1.PruneImagesRequest]) (*connect.Response[gantryv1.PruneImagesResponse], error) {
	return answer(&gantryv1.PruneImagesResponse{Removed: []string{"old"}, Reclaimed: 2_000_000}, nil)
}

func (f fakeImages) PruneBuildCache(context.Context, *connect.Request[gantryv1.PruneBuildCacheRequest]) (*connect.Response[gantryv1.PruneBuildCacheResponse], error) {
	return answer(&gantryv1.PruneBuildCacheResponse{Reclaimed: 3_000_000, Records: 7}, nil)
}
