package server_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

const nodeID = "n1"

// platform is a real server on a real store with its controllers, without a node.
type platform struct {
	store     *store.Store
	apps      gantryv1connect.AppServiceClient
	instances gantryv1connect.InstanceServiceClient
	secrets   gantryv1connect.SecretServiceClient
	sessions  gantryv1connect.NodeSessionServiceClient
	volumes   gantryv1connect.VolumeServiceClient
	public    gantryv1connect.NodeSessionServiceClient // what callers who are no node get
	local     *fakeNode
	remote    map[string]server.Node // other machines by their IDs
	networks  gantryv1connect.NetworkServiceClient
	images    gantryv1connect.ImageServiceClient
	system    gantryv1connect.SystemServiceClient
}

func start(t *testing.T) *platform {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	st := storetest.New(t)
	box, err := seal.Open(filepath.Join(t.TempDir(), "key"), true)
	if err != nil {
		t.Fatal(err)
	}
	err = st.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.Node{Meta: store.NewMeta(nodeID), Name: "one"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	remote := map[string]server.Node{}
	local := &fakeNode{removed: func(string) error { return nil }}
	srv := server.New(st, server.Node{Service: local, Images: local, ImageHandler: http.NotFoundHandler()}, server.Options{
		Node: nodeID, VirtualIPs: netip.MustParsePrefix("10.211.0.0/29"), Sealer: box, Logger: log,
		Reach: func(n *gantryv1.Node) server.Node { return remote[n.Meta.Key] },
		Holders: func(digest string) []string {
			return map[string][]string{"sha256:5": {"gone", "n2"}}[digest]
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for _, run := range []func(context.Context) error{srv.Run, srv.Lead, rollout.New(st, log).Run, schedule.New(st, log).Run} {
		go func() {
			if err := run(ctx); err != nil {
				t.Errorf("a part ended: %v", err)
			}
		}()
	}
	h, n := serve(t, asAnn(srv.Handler())), serve(t, srv.NodeHandler())
	return &platform{
		store: st, apps: gantryv1connect.NewAppServiceClient(h.Client(), h.URL),
		instances: gantryv1connect.NewInstanceServiceClient(h.Client(), h.URL),
		secrets:   gantryv1connect.NewSecretServiceClient(h.Client(), h.URL),
		sessions:  gantryv1connect.NewNodeSessionServiceClient(n.Client(), n.URL),
		volumes:   gantryv1connect.NewVolumeServiceClient(h.Client(), h.URL),
		public:    gantryv1connect.NewNodeSessionServiceClient(h.Client(), h.URL),
		networks:  gantryv1connect.NewNetworkServiceClient(h.Client(), h.URL),
		images:    gantryv1connect.NewImageServiceClient(h.Client(), h.URL),
		system:    gantryv1connect.NewSystemServiceClient(h.Client(), h.URL),
		local:     local, remote: remote,
	}
}

// askedFirst is the header with the machine whose socket a request of a test came to.
const askedFirst = "Asked-First"

// asAnn has every request made by a user.
func asAnn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(rw, r.WithContext(caller.With(r.Context(), caller.Caller{User: "ann", Node: r.Header.Get(askedFirst)})))
	})
}

func serve(t *testing.T, handler http.Handler) *httptest.Server {
	h := httptest.NewUnstartedServer(handler)
	h.EnableHTTP2 = true
	h.StartTLS()
	t.Cleanup(h.CloseClientConnections)
	return h
}

// fakeNode is the part of a node's service that the tests of this package need.
type fakeNode struct {
	nodeClient
	imageClient
	removed func(volume string) error
}

type (
	nodeClient struct {
		gantryv1connect.NodeServiceClient
	}
	imageClient struct {
		gantryv1connect.ImageServiceClient
	}
)

func (f *fakeNode) RemoveVolume(ctx context.Context, r *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	if f.NodeServiceClient != nil {
		return f.NodeServiceClient.RemoveVolume(ctx, r)
	}
	if err := f.removed(r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.RemoveVolumeResponse{}), nil
}

func app(mutate func(*gantryv1.AppSpec)) *gantryv1.ApplyRequest {
	spec := &gantryv1.AppSpec{
		Services: map[string]*gantryv1.ServiceSpec{"web": {Replicas: 2, Container: container("web")}},
		Networks: map[string]*gantryv1.NetworkSpec{"default": {Key: "production/shop/default"}},
		Secrets:  map[string]*gantryv1.FileSpec{"pw": {Key: "production/shop/pw", Content: []byte("hunter2")}},
	}
	if mutate != nil {
		mutate(spec)
	}
	return &gantryv1.ApplyRequest{Environment: "production", App: "shop", Spec: spec}
}

func container(image string) *gantryv1.ContainerSpec {
	return &gantryv1.ContainerSpec{
		Image: image, ImageDigest: "sha256:1",
		Secrets: []*gantryv1.FileRef{{Source: "production/shop/pw", Target: "/run/secrets/pw"}},
	}
}

func (p *platform) apply(t *testing.T, req *gantryv1.ApplyRequest) *gantryv1.PlanResponse {
	t.Helper()
	resp, err := p.apps.Apply(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg
}

func (p *platform) service(t *testing.T, name string) *gantryv1.Service {
	t.Helper()
	s, ok := store.Get[*gantryv1.Service](p.store.Snapshot(), "production/shop/"+name)
	if !ok {
		t.Fatalf("no service %s", name)
	}
	return s
}

func TestPlanChangesNothingAndApplyDoesWhatWasPlanned(t *testing.T) {
	p := start(t)
	before := p.store.Revision()
	plan, err := p.apps.Plan(t.Context(), connect.NewRequest(app(nil)))
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Msg.Changes) != 4 || p.store.Revision() != before { // network, secret, service, app
		t.Fatalf("planned %v at %d after %d", plan.Msg.Changes, p.store.Revision(), before)
	}
	if got := p.apply(t, app(nil)); len(got.Changes) != 4 {
		t.Fatalf("applied %v", got.Changes)
	}
	again, err := p.apps.Plan(t.Context(), connect.NewRequest(app(nil)))
	if err != nil || len(again.Msg.Changes) != 0 {
		t.Fatalf("a second plan: %v, %v", again.Msg.Changes, err)
	}
}

func TestReleasesAreMadeWhenWhatRunsChanges(t *testing.T) {
	p := start(t)
	p.apply(t, app(nil))
	p.apply(t, app(func(s *gantryv1.AppSpec) { s.Services["web"].Replicas = 5 }))
	if s := p.service(t, "web"); s.Release != 1 || s.Replicas != 5 {
		t.Fatalf("scaling made release %d with %d replicas", s.Release, s.Replicas)
	}
	resp := p.apply(t, app(func(s *gantryv1.AppSpec) { s.Services["web"].Container.Image = "web:2" }))
	if s := p.service(t, "web"); s.Release != 2 || s.PreviousRelease != 1 {
		t.Fatalf("release %d after %d", s.Release, s.PreviousRelease)
	}
	if f := resp.Changes[0].Fields; len(f) != 2 || f[0].Path != "container.image" || f[0].Old != "web" || f[0].New != "web:2" {
		t.Fatalf("fields %v", f)
	}
	p.apply(t, app(func(s *gantryv1.AppSpec) {
		s.Services["web"].Container.Image = "web:2"
		s.Secrets["pw"].Content = []byte("other")
	}))
	if s := p.service(t, "web"); s.Release != 3 {
		t.Fatalf("a changed secret left release %d", s.Release)
	}
	if _, err := p.apps.Rollback(t.Context(), connect.NewRequest(&gantryv1.RollbackRequest{Environment: "production", App: "shop", Service: "web", Release: 1})); err != nil {
		t.Fatal(err)
	}
	if s := p.service(t, "web"); s.Release != 1 || s.PreviousRelease != 3 {
		t.Fatalf("rolled back to %d, before %d", s.Release, s.PreviousRelease)
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		mutate func(*gantryv1.AppSpec)
		kind   fault.Kind
	}{
		"no image":         {func(s *gantryv1.AppSpec) { s.Services["web"].Container.Image = "" }, fault.Invalid},
		"bad service name": {func(s *gantryv1.AppSpec) { s.Services["We b"] = s.Services["web"] }, fault.Invalid},
		"missing secret":   {func(s *gantryv1.AppSpec) { s.Secrets = nil }, fault.NotFound},
		"external network": {func(s *gantryv1.AppSpec) { s.Networks["default"].External = true }, fault.NotFound},
		"external secret":  {func(s *gantryv1.AppSpec) { s.Secrets["pw"].External = true }, fault.NotFound},
		"privileged":       {func(s *gantryv1.AppSpec) { s.Services["web"].Container.Privileged = true }, fault.Denied},
		"secret too large": {func(s *gantryv1.AppSpec) { s.Secrets["pw"].Content = make([]byte, 501<<10) }, fault.Invalid},
		"no services":      {func(s *gantryv1.AppSpec) { s.Services = nil }, fault.Invalid},
		"out of virtual addresses": {func(s *gantryv1.AppSpec) {
			for _, n := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
				s.Services[n] = s.Services["web"]
			}
		}, fault.Exhausted},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			before := p.store.Revision()
			_, err := p.apps.Apply(t.Context(), connect.NewRequest(app(c.mutate)))
			if err = wire.Decode(err); !fault.Is(err, c.kind) {
				t.Fatalf("got %v of kind %q, want %q", err, fault.KindOf(err), c.kind)
			}
			if c.kind != fault.Invalid && fault.HintOf(err) == "" {
				t.Fatalf("no hint: %v", err)
			}
			if p.store.Revision() != before {
				t.Fatal("something was stored")
			}
		})
	}
}

// node is a node made of its session only: what is assigned runs at once.
func (p *platform) node(t *testing.T) (ctx context.Context, updates <-chan *gantryv1.NodeUpdate) {
	t.Helper()
	ctx = t.Context()
	stream := p.sessions.Session(ctx)
	err := stream.Send(&gantryv1.NodeReport{
		Hello:  &gantryv1.NodeHello{Node: nodeID},
		Status: &gantryv1.NodeStatus{Meta: store.NewMeta(nodeID), State: "ready"},
	})
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan *gantryv1.NodeUpdate, 1000)
	go func() {
		defer close(out)
		for {
			u, err := stream.Receive()
			if err != nil {
				return
			}
			r := &gantryv1.NodeReport{}
			for _, as := range u.Assignments {
				if as.Instance.Desired == gantryv1.Instance_DESIRED_REMOVED {
					r.Removed = append(r.Removed, as.Instance.Meta.Key)
					continue
				}
				r.Statuses = append(r.Statuses, &gantryv1.InstanceStatus{
					Meta: store.NewMeta(as.Instance.Meta.Key), Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Address: "10.210.0.9",
					RestartGeneration: as.Instance.RestartGeneration,
				})
			}
			if stream.Send(r) != nil {
				return
			}
			out <- u
		}
	}()
	return ctx, out
}

func TestAnAppRunsOnANodeAndGoesAgain(t *testing.T) {
	p := start(t)
	ctx, updates := p.node(t)
	p.apply(t, app(nil))
	watch, err := p.apps.Watch(ctx, connect.NewRequest(&gantryv1.GetAppRequest{Environment: "production", App: "shop"}))
	if err != nil {
		t.Fatal(err)
	}
	for watch.Receive() {
		if s := watch.Msg().Services; len(s) == 1 && s[0].Converged && s[0].Ready == 2 {
			break
		}
	}
	if err := watch.Err(); err != nil {
		t.Fatal(err)
	}
	secretSeen := false
	for u := range updates {
		for _, as := range u.Assignments {
			secretSeen = secretSeen || string(as.Secrets["production/shop/pw"]) == "hunter2"
		}
		if len(u.Endpoints) > 0 && len(u.Endpoints[0].Endpoints) == 2 {
			break
		}
	}
	if !secretSeen {
		t.Fatal("the node was not given the secret")
	}
	if _, err := p.apps.Remove(ctx, connect.NewRequest(&gantryv1.RemoveAppRequest{Environment: "production", App: "shop"})); err != nil {
		t.Fatal(err)
	}
	snap := p.store.Snapshot()
	left := len(store.List[*gantryv1.Instance](snap, "")) + len(store.List[*gantryv1.Service](snap, "")) + len(store.List[*gantryv1.Secret](snap, ""))
	if left != 0 {
		t.Fatalf("%d objects are left", left)
	}
}

func TestSecretsAreNeverTold(t *testing.T) {
	p := start(t)
	p.apply(t, app(nil))
	list, err := p.secrets.List(t.Context(), connect.NewRequest(&gantryv1.ListFilesRequest{Environment: "production"}))
	if err != nil || len(list.Msg.Files) != 1 || list.Msg.Files[0].UsedBy[0] != "production/shop/web" {
		t.Fatalf("%v, %v", list, err)
	}
	_, err = p.secrets.Remove(t.Context(), connect.NewRequest(&gantryv1.FileTarget{Environment: "production", Name: "shop/pw"}))
	if !fault.Is(wire.Decode(err), fault.Conflict) {
		t.Fatalf("removing a used secret: %v", err)
	}
	view, err := p.apps.Get(t.Context(), connect.NewRequest(&gantryv1.GetAppRequest{Environment: "production", App: "shop"}))
	if err != nil {
		t.Fatal(err)
	}
	if s := view.Msg.App.String(); s == "" || view.Msg.App.Spec.Secrets["pw"].Content != nil {
		t.Fatalf("the app tells its secret: %s", s)
	}
}

func TestNamesOfRunInstancesAreUnique(t *testing.T) {
	p := start(t)
	req := &gantryv1.CreateInstanceRequest{Environment: "production", Name: "box", Spec: &gantryv1.ContainerSpec{Image: "debian"}}
	if _, err := p.instances.Create(t.Context(), connect.NewRequest(req)); err != nil {
		t.Fatal(err)
	}
	_, err := p.instances.Create(t.Context(), connect.NewRequest(req))
	if !fault.Is(wire.Decode(err), fault.Exists) {
		t.Fatalf("the second one: %v", err)
	}
	_, err = p.instances.Inspect(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{Environment: "production", Target: "nobody"}))
	if !fault.Is(wire.Decode(err), fault.NotFound) {
		t.Fatalf("inspecting nobody: %v", err)
	}
}
