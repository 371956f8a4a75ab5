package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// apps serves AppService.
type apps struct{ s *Server }

var errDry = errors.New("dry run")

// Plan implements the API.
func (h *apps) Plan(ctx context.Context, req *connect.Request[gantryv1.ApplyRequest]) (*connect.Response[gantryv1.PlanResponse], error) {
	return respond(h.apply(ctx, req.Msg, true))
}

// Apply implements the API.
func (h *apps) Apply(ctx context.Context, req *connect.Request[gantryv1.ApplyRequest]) (*connect.Response[gantryv1.PlanResponse], error) {
	return respond(h.apply(ctx, req.Msg, false))
}

func (h *apps) apply(ctx context.Context, req *gantryv1.ApplyRequest, dry bool) (*gantryv1.PlanResponse, error) {
	digests := h.digests(ctx, req)
	var out *gantryv1.PlanResponse
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		a := &applier{tx: tx, sealer: h.s.o.Sealer, vips: h.s.o.VirtualIPs, guarded: h.s.o.Guarded, req: req,
			who: caller.Of(ctx).User, now: time.Now(),
			digest: func(image, platform string) string { return digests[image+" "+platform] }}
		if err := a.run(); err != nil {
			return err
		}
		out = &gantryv1.PlanResponse{Changes: a.changes, Index: a.index, Operations: a.begun}
		if dry {
			return errDry
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDry) {
		return nil, err
	}
	out.Revision = h.s.store.Revision()
	return out, nil
}

// digests looks up the images that come without a digest among those this machine has, and those of the other servers.
func (h *apps) digests(ctx context.Context, req *gantryv1.ApplyRequest) map[string]string {
	out := map[string]string{}
	for _, s := range req.GetSpec().GetServices() {
		c := s.GetContainer()
		if c.GetImage() == "" || c.GetImageDigest() != "" {
			continue
		}
		resp, err := h.s.local.Images.Inspect(ctx, connect.NewRequest(&gantryv1.InspectImageRequest{Image: c.Image, Platform: c.Platform}))
		switch {
		case err == nil:
			out[c.Image+" "+c.Platform] = resp.Msg.GetImage().GetDigest()
		case h.s.o.ImageDigest != nil:
			out[c.Image+" "+c.Platform] = h.s.o.ImageDigest(c.Image)
		}
	}
	return out
}

// List implements the API.
func (h *apps) List(_ context.Context, req *connect.Request[gantryv1.ListAppsRequest]) (*connect.Response[gantryv1.ListAppsResponse], error) {
	out := &gantryv1.ListAppsResponse{}
	snap := h.s.store.Snapshot()
	byService := progress.ByService(snap, within(req.Msg.Environment))
	for _, key := range appKeys(snap, req.Msg.Environment) {
		out.Apps = append(out.Apps, appView(snap, key, byService))
	}
	return connect.NewResponse(out), nil
}

// appKeys lists apps, including those that are going and have services left only.
func appKeys(r store.Reader, environment string) []string {
	set := map[string]bool{}
	for _, a := range store.List[*gantryv1.App](r, "") {
		set[a.Meta.Key] = environment == "" || a.Environment == environment
	}
	for _, s := range store.List[*gantryv1.Service](r, "") {
		set[s.Environment+"/"+s.App] = environment == "" || s.Environment == environment
	}
	for k, wanted := range set {
		if !wanted {
			delete(set, k)
		}
	}
	return sorted(set)
}

// Get implements the API.
func (h *apps) Get(_ context.Context, req *connect.Request[gantryv1.GetAppRequest]) (*connect.Response[gantryv1.AppView], error) {
	snap := h.s.store.Snapshot()
	v := oneApp(snap, req.Msg.Environment+"/"+req.Msg.App)
	if v.App == nil && len(v.Services) == 0 {
		return nil, errNoApp(req.Msg.Environment, req.Msg.App)
	}
	return connect.NewResponse(v), nil
}

func errNoApp(env, app string) error {
	return fault.New(fault.NotFound, "there is no app %q in the environment %q", app, env).WithHint("gantry ps lists what there is")
}

// within begins the keys of all that is in an environment, or of everything.
func within(environment string) string {
	if environment == "" {
		return ""
	}
	return environment + "/"
}

func oneApp(snap *store.ReadTx, key string) *gantryv1.AppView {
	return appView(snap, key, progress.ByService(snap, key+"/"))
}

// appView collects an app with its services, their instances and how far they are.
func appView(snap *store.ReadTx, key string, byService map[string][]*gantryv1.InstanceView) *gantryv1.AppView {
	v := &gantryv1.AppView{Revision: snap.Revision()}
	v.App, _ = store.Get[*gantryv1.App](snap, key)
	for _, s := range store.List[*gantryv1.Service](snap, key+"/") {
		v.Services = append(v.Services, progress.Service(s, progress.Gather(snap, s, byService)))
	}
	return v
}

// Remove implements the API. With volumes, the app itself goes last, so that what was interrupted can be asked for again.
func (h *apps) Remove(ctx context.Context, req *connect.Request[gantryv1.RemoveAppRequest]) (*connect.Response[gantryv1.RemoveAppResponse], error) {
	m := req.Msg
	key := m.Environment + "/" + m.App
	var named []string
	err := h.s.store.Update(ctx, func(tx *store.Tx) (err error) {
		if named, err = takeDown(tx, m); err == nil && !m.Volumes {
			dropApp(tx, key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := h.gone(ctx, key); err != nil {
		return nil, err
	}
	if !m.Volumes {
		return connect.NewResponse(&gantryv1.RemoveAppResponse{}), nil
	}
	for _, v := range named {
		if err := (&volumes{h.s}).remove(ctx, v); err != nil {
			return nil, err
		}
	}
	return respond(&gantryv1.RemoveAppResponse{}, h.s.store.Update(ctx, func(tx *store.Tx) error {
		if len(store.List[*gantryv1.Service](tx, key+"/")) == 0 { // else it has been applied again meanwhile
			dropApp(tx, key)
		}
		return nil
	}))
}

// takeDown has all services of an app removed and tells the keys of its own volumes.
func takeDown(tx *store.Tx, m *gantryv1.RemoveAppRequest) (volumes []string, err error) {
	key := m.Environment + "/" + m.App
	app, ok := store.Get[*gantryv1.App](tx, key)
	services := store.List[*gantryv1.Service](tx, key+"/")
	if !ok && len(services) == 0 {
		return nil, errNoApp(m.Environment, m.App)
	}
	for _, s := range services {
		if err := store.Modify(tx, s.Meta.Key, func(o *gantryv1.Service) error { o.Removing = true; return nil }); err != nil {
			return nil, err
		}
	}
	for _, v := range app.GetSpec().GetVolumes() {
		if !v.External {
			volumes = append(volumes, v.Key)
		}
	}
	return volumes, nil
}

// dropApp removes an app's words, with the secrets and configs that it defined and nothing else uses.
func dropApp(tx *store.Tx, key string) {
	app, _ := store.Get[*gantryv1.App](tx, key)
	for _, f := range app.GetSpec().GetSecrets() {
		if !f.External && !usedOutside(users(tx, secretKeys)[f.Key], key) {
			store.Delete[*gantryv1.Secret](tx, f.Key)
		}
	}
	for _, f := range app.GetSpec().GetConfigs() {
		if !f.External && !usedOutside(users(tx, configKeys)[f.Key], key) {
			store.Delete[*gantryv1.Config](tx, f.Key)
		}
	}
	store.Delete[*gantryv1.App](tx, key)
}

func usedOutside(users []string, app string) bool {
	for _, u := range users {
		if !strings.HasPrefix(u, app+"/") {
			return true
		}
	}
	return false
}

// gone waits until nothing of an app is left.
func (h *apps) gone(ctx context.Context, key string) error {
	sub, err := h.s.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	for len(store.List[*gantryv1.Service](h.s.store.Snapshot(), key+"/")) > 0 {
		if _, err := sub.Next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// each changes the named services of an app, or all of them.
func (h *apps) each(ctx context.Context, env, app string, names []string, fn func(store.Reader, *gantryv1.Service) error) error {
	return h.s.store.Update(ctx, func(tx *store.Tx) error {
		keys := make([]string, 0, len(names))
		for _, n := range names {
			keys = append(keys, env+"/"+app+"/"+n)
		}
		if len(names) == 0 {
			for _, s := range store.List[*gantryv1.Service](tx, env+"/"+app+"/") {
				keys = append(keys, s.Meta.Key)
			}
		}
		if len(keys) == 0 {
			return errNoApp(env, app)
		}
		for _, key := range keys {
			s, ok := store.Get[*gantryv1.Service](tx, key)
			if !ok || s.Removing {
				return fault.New(fault.NotFound, "the app %q has no service %q", app, key[strings.LastIndexByte(key, '/')+1:]).
					WithHint("gantry ps")
			}
			err := store.Modify(tx, key, func(s *gantryv1.Service) error { return fn(tx, s) })
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// nextGeneration is newer than any start that the service or one of its instances has been asked for.
func nextGeneration(r store.Reader, s *gantryv1.Service) int64 {
	last := s.RestartGeneration
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		if progress.Key(i) == s.Meta.Key {
			last = max(last, i.RestartGeneration)
		}
	}
	return last + 1
}

const maxReplicas = 100_000

// Scale implements the API.
func (h *apps) Scale(ctx context.Context, req *connect.Request[gantryv1.ScaleRequest]) (*connect.Response[gantryv1.ScaleResponse], error) {
	m := req.Msg
	if len(m.Replicas) == 0 {
		return nil, fault.New(fault.Invalid, "scale which service of %q to how many instances?", m.App).WithHint("gantry scale SERVICE=NUMBER")
	}
	for name, n := range m.Replicas {
		if err := countValid(name, n); err != nil {
			return nil, err
		}
	}
	err := h.each(ctx, m.Environment, m.App, sorted(m.Replicas), func(_ store.Reader, s *gantryv1.Service) error {
		if placement.IsGlobal(s.Spec) {
			return fault.New(fault.Conflict, "the service %q is global: it has one instance on each node", s.Name).
				WithHint("gantry explain %s says on which nodes", s.Name)
		}
		s.Replicas = m.Replicas[s.Name]
		return nil
	})
	return respond(&gantryv1.ScaleResponse{}, err)
}

// SetStopped implements the API.
func (h *apps) SetStopped(ctx context.Context, req *connect.Request[gantryv1.SetStoppedRequest]) (*connect.Response[gantryv1.SetStoppedResponse], error) {
	m := req.Msg
	err := h.each(ctx, m.Environment, m.App, m.Services, func(r store.Reader, s *gantryv1.Service) error {
		if s.Stopped && !m.Stopped {
			s.RestartGeneration = nextGeneration(r, s)
		}
		s.Stopped, s.StopGrace = m.Stopped, m.GracePeriod
		return nil
	})
	return respond(&gantryv1.SetStoppedResponse{}, err)
}

// Restart implements the API.
func (h *apps) Restart(ctx context.Context, req *connect.Request[gantryv1.RestartRequest]) (*connect.Response[gantryv1.RestartResponse], error) {
	m := req.Msg
	names := m.Services
	if len(names) > 0 {
		names = progress.WithDependents(h.s.store.Snapshot(), m.Environment+"/"+m.App+"/", names)
	}
	err := h.each(ctx, m.Environment, m.App, names, func(r store.Reader, s *gantryv1.Service) error {
		s.Stopped, s.StopGrace = false, m.GracePeriod
		s.RestartGeneration = nextGeneration(r, s)
		return nil
	})
	return respond(&gantryv1.RestartResponse{Services: names}, err)
}

// Rollback implements the API. Going back from a rollout that has not ended is to abort it.
func (h *apps) Rollback(ctx context.Context, req *connect.Request[gantryv1.RollbackRequest]) (*connect.Response[gantryv1.RollbackResponse], error) {
	m := req.Msg
	out := &gantryv1.RollbackResponse{}
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		s, ok := store.Get[*gantryv1.Service](tx, m.Environment+"/"+m.App+"/"+m.Service)
		if !ok || s.Removing {
			return fault.New(fault.NotFound, "the app %q has no service %q", m.App, m.Service).WithHint("gantry ps")
		}
		if out.Release = m.Release; out.Release == 0 {
			out.Release = s.PreviousRelease
		}
		if out.Release == 0 {
			return fault.New(fault.Conflict, "the service %q has no release before %d", m.Service, s.Release).WithHint("gantry release ls")
		}
		if _, ok := store.Get[*gantryv1.Release](tx, rollout.ReleaseKey(s.Meta.Key, out.Release)); !ok {
			return fault.New(fault.NotFound, "the service %q has no release %d", m.Service, out.Release).WithHint("gantry release ls")
		}
		var err error
		out.Operation, err = goBack(tx, s, out.Release, caller.Of(ctx).User, time.Now())
		return err
	})
	return respond(out, err)
}

// goBack leads a service to an earlier release and returns the key of the operation that does; "" if it has that release.
func goBack(tx *store.Tx, s *gantryv1.Service, to int64, who string, now time.Time) (string, error) {
	if s.Release == to {
		return "", nil
	}
	if op := operation.Last(tx, s.Meta.Key); operation.Active(op) && !op.Rollout.Back && op.Rollout.From == to {
		op = proto.CloneOf(op)
		if err := rollouts.Abort(tx, op, who, now); err != nil {
			return "", err
		}
		store.Put(tx, op)
		return op.Meta.Key, nil
	}
	s = proto.CloneOf(s)
	s.Release, s.PreviousRelease = to, s.Release
	key := ""
	if !placement.IsJob(s.Spec) {
		key = rollouts.Begin(tx, s, who, rollouts.CauseRollback, now).Meta.Key
	}
	store.Put(tx, s)
	return key, nil
}

// ListReleases implements the API.
func (h *apps) ListReleases(_ context.Context, req *connect.Request[gantryv1.ListReleasesRequest]) (*connect.Response[gantryv1.ListReleasesResponse], error) {
	m, snap := req.Msg, h.s.store.Snapshot()
	prefix := m.Environment + "/"
	if m.App != "" {
		prefix += m.App + "/"
		if m.Service != "" {
			prefix += m.Service + "/"
		}
	}
	byService := progress.ByService(snap, prefix)
	out := &gantryv1.ListReleasesResponse{}
	for _, r := range store.List[*gantryv1.Release](snap, prefix) {
		s, _ := store.Get[*gantryv1.Service](snap, r.Service)
		v := &gantryv1.ReleaseView{Release: r, Current: s.GetRelease() == r.Number}
		for _, i := range byService[r.Service] {
			if i.Instance.Release == r.Number {
				v.Instances++
			}
		}
		out.Releases = append(out.Releases, v)
	}
	return connect.NewResponse(out), nil
}
