package server

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// volumes serves VolumeService.
type volumes struct{ s *Server }

// users maps the key of every volume, secret or config to those that refer to it; pick lists the keys of one spec.
func users(snap store.Reader, pick func(*gantryv1.ContainerSpec) []string) map[string][]string {
	out := map[string][]string{}
	add := func(user string, spec *gantryv1.ContainerSpec) {
		for _, key := range pick(spec) {
			if !slices.Contains(out[key], user) {
				out[key] = append(out[key], user)
			}
		}
	}
	for _, s := range store.List[*gantryv1.Service](snap, "") {
		spec := s.Spec
		if r, ok := store.Get[*gantryv1.Release](snap, rollout.ReleaseKey(s.Meta.Key, s.Release)); ok {
			spec = r.Spec
		}
		add(s.Meta.Key, spec.GetContainer())
	}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if i.Spec != nil {
			add(progress.Name(i), i.Spec)
			continue
		}
		// An instance that is on its way out may be of a release that its service has left.
		if r, ok := store.Get[*gantryv1.Release](snap, rollout.ReleaseKey(progress.Key(i), i.Release)); ok {
			add(progress.Key(i), r.GetSpec().GetContainer())
		}
	}
	return out
}

func volumeKeys(c *gantryv1.ContainerSpec) []string {
	var out []string
	for _, m := range c.GetMounts() {
		if m.Type == gantryv1.Mount_TYPE_VOLUME && m.Source != "" {
			out = append(out, m.Source)
		}
	}
	return out
}

func fileKeys(refs []*gantryv1.FileRef) []string {
	var out []string
	for _, f := range refs {
		out = append(out, f.Source)
	}
	return out
}

// List implements the API.
func (h *volumes) List(_ context.Context, req *connect.Request[gantryv1.ListVolumesRequest]) (*connect.Response[gantryv1.ListVolumesResponse], error) {
	snap := h.s.store.Snapshot()
	used := users(snap, volumeKeys)
	out := &gantryv1.ListVolumesResponse{}
	for _, v := range store.List[*gantryv1.Volume](snap, inEnvironment(req.Msg.Environment)) {
		out.Volumes = append(out.Volumes, &gantryv1.VolumeView{Volume: v, Size: -1, UsedBy: used[v.Meta.Key]})
	}
	return connect.NewResponse(out), nil
}

func inEnvironment(env string) string {
	if env == "" {
		return ""
	}
	return env + "/"
}

// Create implements the API.
func (h *volumes) Create(ctx context.Context, req *connect.Request[gantryv1.CreateVolumeRequest]) (*connect.Response[gantryv1.Volume], error) {
	m := req.Msg
	if err := validKey("volume", m.Name); err != nil {
		return nil, err
	}
	v := &gantryv1.Volume{Meta: labelled(m.Environment+"/"+m.Name, m.Labels), Driver: m.Driver, DriverOptions: m.DriverOptions}
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get[*gantryv1.Volume](tx, v.Meta.Key); ok {
			return fault.New(fault.Exists, "the volume %q exists", m.Name).WithHint("gantry volume inspect %s", m.Name)
		}
		store.Put(tx, v)
		return nil
	})
	return respond(v, err)
}

// find gives the volume that a name means within its environment.
func (h *volumes) find(t *gantryv1.VolumeTarget) (*gantryv1.Volume, error) {
	v, ok := store.Get[*gantryv1.Volume](h.s.store.Snapshot(), t.Environment+"/"+t.Name)
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no volume %q in the environment %q", t.Name, t.Environment).WithHint("gantry volume ls")
	}
	return v, nil
}

// Inspect implements the API.
func (h *volumes) Inspect(ctx context.Context, req *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.VolumeView], error) {
	v, err := h.find(req.Msg)
	if err != nil {
		return nil, err
	}
	out := &gantryv1.VolumeView{Volume: v, Size: -1, UsedBy: users(h.s.store.Snapshot(), volumeKeys)[v.Meta.Key]}
	resp, err := h.s.local.Service.InspectVolume(ctx, connect.NewRequest(&gantryv1.VolumeTarget{Name: v.Meta.Key}))
	if err == nil {
		out.Mountpoint, out.Size = resp.Msg.Mountpoint, resp.Msg.Size
	} else if err := wire.Decode(err); !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Remove implements the API.
func (h *volumes) Remove(ctx context.Context, req *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	v, err := h.find(req.Msg)
	if err != nil {
		return nil, err
	}
	return respond(&gantryv1.RemoveVolumeResponse{}, h.remove(ctx, v.Meta.Key))
}

// remove deletes a volume that nothing uses: its data first, so that a crash between leaves a volume without data and
// never data without a name.
func (h *volumes) remove(ctx context.Context, key string) error {
	if err := unused(h.s.store.Snapshot(), key); err != nil {
		return err
	}
	_, err := h.s.local.Service.RemoveVolume(ctx, connect.NewRequest(&gantryv1.VolumeTarget{Name: key}))
	if err = wire.Decode(err); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return h.s.store.Update(ctx, func(tx *store.Tx) error {
		if err := unused(tx, key); err != nil {
			return err
		}
		store.Delete[*gantryv1.Volume](tx, key)
		return nil
	})
}

func unused(r store.Reader, volume string) error {
	used := users(r, volumeKeys)[volume]
	if len(used) == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "the volume %q is used by %s", volume, strings.Join(used, ", ")).
		WithHint("remove those first: gantry down, or gantry rm")
}

// Prune implements the API.
func (h *volumes) Prune(ctx context.Context, req *connect.Request[gantryv1.PruneVolumesRequest]) (*connect.Response[gantryv1.PruneVolumesResponse], error) {
	out := &gantryv1.PruneVolumesResponse{}
	if !req.Msg.All {
		return connect.NewResponse(out), nil // anonymous volumes go with their instances
	}
	snap := h.s.store.Snapshot()
	used := users(snap, volumeKeys)
	for _, v := range store.List[*gantryv1.Volume](snap, inEnvironment(req.Msg.Environment)) {
		if len(used[v.Meta.Key]) > 0 {
			continue
		}
		if r, err := h.s.local.Service.InspectVolume(ctx, connect.NewRequest(&gantryv1.VolumeTarget{Name: v.Meta.Key})); err == nil {
			out.Reclaimed += max(0, r.Msg.Size)
		}
		if err := h.remove(ctx, v.Meta.Key); err != nil {
			return nil, err
		}
		out.Removed = append(out.Removed, v.Meta.Key)
	}
	return connect.NewResponse(out), nil
}

// networks serves NetworkService.
type networks struct{ s *Server }

// List implements the API.
func (h *networks) List(_ context.Context, req *connect.Request[gantryv1.ListNetworksRequest]) (*connect.Response[gantryv1.ListNetworksResponse], error) {
	snap := h.s.store.Snapshot()
	out := &gantryv1.ListNetworksResponse{}
	for _, n := range store.List[*gantryv1.Network](snap, inEnvironment(req.Msg.Environment)) {
		out.Networks = append(out.Networks, networkView(snap, n))
	}
	return connect.NewResponse(out), nil
}

// Inspect implements the API.
func (h *networks) Inspect(_ context.Context, req *connect.Request[gantryv1.NetworkTarget]) (*connect.Response[gantryv1.NetworkView], error) {
	snap := h.s.store.Snapshot()
	n, ok := store.Get[*gantryv1.Network](snap, req.Msg.Environment+"/"+req.Msg.Name)
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no network %q in the environment %q", req.Msg.Name, req.Msg.Environment).
			WithHint("gantry network ls")
	}
	return connect.NewResponse(networkView(snap, n)), nil
}

func networkView(snap store.Reader, n *gantryv1.Network) *gantryv1.NetworkView {
	out := &gantryv1.NetworkView{Network: n}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		spec := i.Spec
		if r, ok := store.Get[*gantryv1.Release](snap, rollout.ReleaseKey(progress.Key(i), i.Release)); ok {
			spec = r.Spec.Container
		}
		for _, at := range spec.GetNetwork().GetAttachments() {
			if at.Network != n.Meta.Key {
				continue
			}
			out.Members = append(out.Members, &gantryv1.NetworkView_Member{
				Instance: i.Meta.Key, Name: progress.Name(i), Address: progress.View(snap, i).Status.Address,
			})
		}
	}
	return out
}

// secrets serves SecretService.
type secrets struct{ s *Server }

func secretKeys(c *gantryv1.ContainerSpec) []string { return fileKeys(c.GetSecrets()) }
func configKeys(c *gantryv1.ContainerSpec) []string { return fileKeys(c.GetConfigs()) }

// List implements the API. Contents are never told.
func (h *secrets) List(_ context.Context, req *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error) {
	snap := h.s.store.Snapshot()
	used := users(snap, secretKeys)
	out := &gantryv1.ListFilesResponse{}
	for _, s := range store.List[*gantryv1.Secret](snap, inEnvironment(req.Msg.Environment)) {
		out.Files = append(out.Files, &gantryv1.FileInfo{Meta: s.Meta, Version: s.Version, Size: -1, UsedBy: used[s.Meta.Key]})
	}
	return connect.NewResponse(out), nil
}

// checkFile validates a secret or config that is to be made.
func checkFile(kind string, m *gantryv1.CreateFileRequest) error {
	if err := validKey(kind, m.Name); err != nil {
		return err
	}
	if len(m.Content) > maxFile {
		return fault.New(fault.Invalid, "the %s %q has %d bytes, more than %d", kind, m.Name, len(m.Content), maxFile)
	}
	return nil
}

func errFileExists(kind, name string) error {
	return fault.New(fault.Exists, "the %s %q exists", kind, name).WithHint("gantry %s create --replace %s FILE makes a new version", kind, name)
}

// Create implements the API.
func (h *secrets) Create(ctx context.Context, req *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error) {
	m := req.Msg
	if err := checkFile("secret", m); err != nil {
		return nil, err
	}
	key := m.Environment + "/" + m.Name
	sealed, err := h.s.o.Sealer.Seal(key, m.Content)
	if err != nil {
		return nil, err
	}
	s := &gantryv1.Secret{Meta: labelled(key, m.Labels), Version: 1, Sealed: sealed, Fingerprint: h.s.o.Sealer.Fingerprint(key, m.Content)}
	err = h.s.store.Update(ctx, func(tx *store.Tx) error {
		if old, ok := store.Get[*gantryv1.Secret](tx, key); ok {
			if !m.Replace {
				return errFileExists("secret", m.Name)
			}
			s.Version = old.Version + 1
		}
		store.Put(tx, s)
		return nil
	})
	return respond(&gantryv1.FileInfo{Meta: s.Meta, Version: s.Version, Size: int64(len(m.Content))}, err)
}

// Remove implements the API.
func (h *secrets) Remove(ctx context.Context, req *connect.Request[gantryv1.FileTarget]) (*connect.Response[gantryv1.RemoveFileResponse], error) {
	key := req.Msg.Environment + "/" + req.Msg.Name
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get[*gantryv1.Secret](tx, key); !ok {
			return fault.New(fault.NotFound, "there is no secret %q", req.Msg.Name).WithHint("gantry secret ls")
		}
		if used := users(tx, secretKeys)[key]; len(used) > 0 {
			return fault.New(fault.Conflict, "the secret %q is used by %s", req.Msg.Name, strings.Join(used, ", "))
		}
		store.Delete[*gantryv1.Secret](tx, key)
		return nil
	})
	return respond(&gantryv1.RemoveFileResponse{}, err)
}

// configs serves ConfigService.
type configs struct{ s *Server }

// List implements the API.
func (h *configs) List(_ context.Context, req *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error) {
	snap := h.s.store.Snapshot()
	used := users(snap, configKeys)
	out := &gantryv1.ListFilesResponse{}
	for _, c := range store.List[*gantryv1.Config](snap, inEnvironment(req.Msg.Environment)) {
		out.Files = append(out.Files, &gantryv1.FileInfo{Meta: c.Meta, Version: c.Version, Size: int64(len(c.Content)), UsedBy: used[c.Meta.Key]})
	}
	return connect.NewResponse(out), nil
}

// Create implements the API.
func (h *configs) Create(ctx context.Context, req *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error) {
	m := req.Msg
	if err := checkFile("config", m); err != nil {
		return nil, err
	}
	c := &gantryv1.Config{Meta: labelled(m.Environment+"/"+m.Name, m.Labels), Version: 1, Content: m.Content}
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		if old, ok := store.Get[*gantryv1.Config](tx, c.Meta.Key); ok {
			if !m.Replace {
				return errFileExists("config", m.Name)
			}
			c.Version = old.Version + 1
		}
		store.Put(tx, c)
		return nil
	})
	return respond(&gantryv1.FileInfo{Meta: c.Meta, Version: c.Version, Size: int64(len(m.Content))}, err)
}

// Remove implements the API.
func (h *configs) Remove(ctx context.Context, req *connect.Request[gantryv1.FileTarget]) (*connect.Response[gantryv1.RemoveFileResponse], error) {
	key := req.Msg.Environment + "/" + req.Msg.Name
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get[*gantryv1.Config](tx, key); !ok {
			return fault.New(fault.NotFound, "there is no config %q", req.Msg.Name).WithHint("gantry config ls")
		}
		if used := users(tx, configKeys)[key]; len(used) > 0 {
			return fault.New(fault.Conflict, "the config %q is used by %s", req.Msg.Name, strings.Join(used, ", "))
		}
		store.Delete[*gantryv1.Config](tx, key)
		return nil
	})
	return respond(&gantryv1.RemoveFileResponse{}, err)
}
