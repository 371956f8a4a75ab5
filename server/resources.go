package server

import (
	"context"
	"maps"
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
	out := &gantryv1.ListVolumesResponse{Nodes: briefs(snap)}
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
	if err := validName("environment", m.Environment); err != nil {
		return nil, err
	}
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
	found, errs := h.data(ctx, v)
	if len(found) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	for _, id := range sorted(found) {
		out.Mountpoint, out.Size = found[id].Mountpoint, found[id].Size
	}
	return connect.NewResponse(out), nil
}

// holders lists the nodes that may have data of a volume: the one it is pinned to, or any.
func (h *volumes) holders(v *gantryv1.Volume) []string {
	if v.GetNode() != "" {
		return []string{v.Node}
	}
	return nodeIDs(h.s.store.Snapshot())
}

// data asks the nodes that may have data of a volume for it. Those without any are left out.
func (h *volumes) data(ctx context.Context, v *gantryv1.Volume) (map[string]*gantryv1.VolumeView, nodeErrors) {
	found, errs := ask(ctx, h.s, h.holders(v), diskPatience, func(ctx context.Context, n Node, _ string) (*gantryv1.VolumeView, error) {
		resp, err := n.Service.InspectVolume(ctx, connect.NewRequest(&gantryv1.VolumeTarget{Name: v.Meta.Key}))
		if fault.Is(wire.Decode(err), fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	})
	maps.DeleteFunc(found, func(_ string, view *gantryv1.VolumeView) bool { return view == nil })
	return found, errs
}

// Remove implements the API. With force it is no error that there is none, and one whose data has gone with its node is removed
// although it is used: its users begin with an empty one.
func (h *volumes) Remove(ctx context.Context, req *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	v, err := h.find(req.Msg)
	if req.Msg.Force && fault.Is(err, fault.NotFound) {
		return connect.NewResponse(&gantryv1.RemoveVolumeResponse{}), nil
	}
	if err != nil {
		return nil, err
	}
	if req.Msg.Force && bereft(h.s.store.Snapshot(), v) {
		return respond(&gantryv1.RemoveVolumeResponse{}, h.renew(ctx, v.Meta.Key))
	}
	return respond(&gantryv1.RemoveVolumeResponse{}, h.remove(ctx, v.Meta.Key))
}

// remove deletes a volume that nothing uses: its data first, so that a crash between leaves a volume without data and
// never data without a name. Data on a machine that has left the cluster is out of reach for good and holds nothing up.
func (h *volumes) remove(ctx context.Context, key string) error {
	snap := h.s.store.Snapshot()
	if err := unused(snap, key); err != nil {
		return err
	}
	v, _ := store.Get[*gantryv1.Volume](snap, key)
	holders := slices.DeleteFunc(h.holders(v), func(id string) bool {
		_, member := store.Get[*gantryv1.Node](snap, id)
		return !member
	})
	_, errs := ask(ctx, h.s, holders, diskPatience, func(ctx context.Context, n Node, _ string) (bool, error) {
		_, err := n.Service.RemoveVolume(ctx, connect.NewRequest(&gantryv1.VolumeTarget{Name: key}))
		if fault.Is(wire.Decode(err), fault.NotFound) {
			return false, nil
		}
		return err == nil, err
	})
	if err := errs.first(); err != nil {
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

// bereft reports that the node with a volume's data has been removed from the cluster.
func bereft(r store.Reader, v *gantryv1.Volume) bool {
	_, member := store.Get[*gantryv1.Node](r, v.GetNode())
	return v.GetNode() != "" && !member
}

// renew removes a volume whose data is lost. One that is used is there again at once, empty and wherever it is used first:
// what is mounted has to have a place that is known.
func (h *volumes) renew(ctx context.Context, key string) error {
	return h.s.store.Update(ctx, func(tx *store.Tx) error {
		v, ok := store.Get[*gantryv1.Volume](tx, key)
		switch {
		case !ok:
			return nil
		case !bereft(tx, v):
			return fault.New(fault.Conflict, "the volume %q has changed meanwhile", nameIn(key)).WithHint("gantry volume inspect %s", nameIn(key))
		case unused(tx, key) == nil:
			store.Delete[*gantryv1.Volume](tx, key)
			return nil
		}
		return store.Modify(tx, key, func(v *gantryv1.Volume) error { v.Node = ""; return nil })
	})
}

func unused(r store.Reader, volume string) error {
	used := users(r, volumeKeys)[volume]
	if len(used) == 0 {
		return nil
	}
	if v, _ := store.Get[*gantryv1.Volume](r, volume); bereft(r, v) {
		return fault.New(fault.Conflict, "the volume %q is used by %s; its data was on a node that has been removed", volume, strings.Join(used, ", ")).
			WithHint("gantry volume rm --force %s has them begin with an empty one", nameIn(volume))
	}
	return fault.New(fault.Conflict, "the volume %q is used by %s", volume, strings.Join(used, ", ")).
		WithHint("remove those first: gantry down, or gantry rm")
}

// Prune implements the API. Volumes on nodes that do not answer are left and named.
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
		found, _ := h.data(ctx, v) // only for the size; remove says what is wrong
		err := h.remove(ctx, v.Meta.Key)
		if fault.Is(err, fault.Unavailable) {
			err = fault.Wrap(fault.Unavailable, err, "the volume %q is left", nameIn(v.Meta.Key))
			out.Failures = append(out.Failures, nodeErrors{{v.Node, err}}.failures(snap)...)
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, view := range found {
			out.Reclaimed += max(0, view.Size)
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
				Instance: i.Meta.Key, Name: progress.Name(i), Address: progress.View(snap, i).Status.Address, Node: i.Node,
			})
		}
	}
	return out
}
