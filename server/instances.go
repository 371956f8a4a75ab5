package server

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/server/nodesession"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// instances serves InstanceService: what changes the store is here, what is routed to nodes in streams.go.
type instances struct{ s *Server }

// Create implements the API.
func (h *instances) Create(ctx context.Context, req *connect.Request[gantryv1.CreateInstanceRequest]) (*connect.Response[gantryv1.CreateInstanceResponse], error) {
	m := req.Msg
	i, err := h.newInstance(m)
	if err != nil {
		return nil, err
	}
	err = h.s.store.Update(ctx, func(tx *store.Tx) error { return h.create(ctx, tx, m, i) })
	return respond(&gantryv1.CreateInstanceResponse{Id: i.Meta.Key, Name: i.Service}, err)
}

func (h *instances) newInstance(m *gantryv1.CreateInstanceRequest) (*gantryv1.Instance, error) {
	if err := validName("environment", m.Environment); err != nil {
		return nil, err
	}
	id := ids.New()
	name := m.Name
	if name == "" {
		name = "run-" + id
	}
	if err := validName("instance", name); err != nil {
		return nil, err
	}
	if m.Spec == nil || m.Spec.Image == "" && m.Spec.Rootfs == "" {
		return nil, fault.New(fault.Invalid, "no image and no rootfs is given").WithHint("gantry run IMAGE [COMMAND]")
	}
	if err := containerKeysValid(m.Environment, m.Spec); err != nil {
		return nil, err
	}
	return &gantryv1.Instance{
		Meta: labelled(id, m.Labels), Environment: m.Environment, Service: name, Spec: proto.Clone(m.Spec).(*gantryv1.ContainerSpec),
		Desired: gantryv1.Instance_DESIRED_RUNNING, AutoRemove: m.AutoRemove, WaitAttach: m.WaitAttach,
	}, nil
}

// create checks what the instance refers to and puts it.
func (h *instances) create(ctx context.Context, tx *store.Tx, m *gantryv1.CreateInstanceRequest, i *gantryv1.Instance) error {
	if _, ok := store.Get[*gantryv1.Environment](tx, m.Environment); !ok {
		store.Put(tx, &gantryv1.Environment{Meta: store.NewMeta(m.Environment), Spec: &gantryv1.EnvironmentSpec{}})
	}
	if err := permitted(tx, m.Environment, i.Spec, h.s.o.Guarded); err != nil {
		return err
	}
	for _, o := range store.List[*gantryv1.Instance](tx, "") {
		if o.App == "" && o.Environment == m.Environment && o.Service == i.Service && !h.leaving(tx, o) {
			return fault.New(fault.Exists, "the name %q is in use by instance %s", i.Service, o.Meta.Key).
				WithHint("gantry rm %s, or choose another --name", i.Service)
		}
	}
	if err := h.attachments(tx, m, i); err != nil {
		return err
	}
	for _, mount := range i.Spec.Mounts {
		if mount.Type == gantryv1.Mount_TYPE_VOLUME && mount.Source != "" {
			if _, ok := store.Get[*gantryv1.Volume](tx, mount.Source); !ok {
				store.Put(tx, &gantryv1.Volume{Meta: store.NewMeta(mount.Source)})
			}
		}
	}
	if i.Node = h.s.placement(ctx, tx); placement.Bound(tx, i.Spec, i.Node) {
		i.Node = "" // the scheduler knows where it has to be
	}
	store.Put(tx, i)
	return nil
}

// placement puts what somebody waits for on the machine that was asked, whose directories and devices he sees, if it takes
// instances; else the scheduler decides.
func (s *Server) placement(ctx context.Context, tx *store.Tx) string {
	id := caller.Of(ctx).Node
	if id == "" {
		id = s.o.Node
	}
	st, ok := store.Get[*gantryv1.NodeStatus](tx, id)
	n, known := store.Get[*gantryv1.Node](tx, id)
	if ok && known && st.State == "ready" && n.Availability != "drain" {
		return id
	}
	return ""
}

// leaving reports that an instance will be gone by itself.
func (h *instances) leaving(tx *store.Tx, i *gantryv1.Instance) bool {
	if i.Desired == gantryv1.Instance_DESIRED_REMOVED {
		return true
	}
	st := progress.View(tx, i).Status
	return i.AutoRemove && (st.Phase == gantryv1.InstanceStatus_PHASE_EXITED || st.Phase == gantryv1.InstanceStatus_PHASE_FAILED)
}

// attachments gives an instance on the bridge without networks the environment's default one, or those of an app.
func (h *instances) attachments(tx *store.Tx, m *gantryv1.CreateInstanceRequest, i *gantryv1.Instance) error {
	n := i.Spec.GetNetwork()
	if n == nil {
		n = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_BRIDGE}
		i.Spec.Network = n
	}
	if n.Kind != gantryv1.NetworkMode_KIND_BRIDGE && n.Kind != gantryv1.NetworkMode_KIND_UNSPECIFIED {
		return nil
	}
	if len(n.Attachments) == 0 && m.App != "" {
		app, ok := store.Get[*gantryv1.App](tx, m.Environment+"/"+m.App)
		if !ok {
			return errNoApp(m.Environment, m.App)
		}
		for _, name := range sorted(app.Spec.Networks) {
			n.Attachments = append(n.Attachments, &gantryv1.NetworkAttachment{Network: app.Spec.Networks[name].Key})
		}
	}
	if len(n.Attachments) == 0 {
		n.Attachments = []*gantryv1.NetworkAttachment{{Network: m.Environment + "/default"}}
	}
	for _, at := range n.Attachments {
		if _, ok := store.Get[*gantryv1.Network](tx, at.Network); ok {
			continue
		}
		if at.Network != m.Environment+"/default" {
			return fault.New(fault.NotFound, "the network %q does not exist", at.Network).WithHint("gantry network ls")
		}
		store.Put(tx, &gantryv1.Network{Meta: store.NewMeta(at.Network), Number: nextNumber(tx)})
	}
	return nil
}

// List implements the API.
func (h *instances) List(_ context.Context, req *connect.Request[gantryv1.ListInstancesRequest]) (*connect.Response[gantryv1.ListInstancesResponse], error) {
	m, snap := req.Msg, h.s.store.Snapshot()
	out := &gantryv1.ListInstancesResponse{Nodes: briefs(snap)}
	for _, views := range ordered(progress.ByService(snap, within(m.Environment))) {
		for _, v := range views {
			if m.Environment != "" && v.Instance.Environment != m.Environment || m.App != "" && v.Instance.App != m.App {
				continue
			}
			if !m.All && v.Status.Phase == gantryv1.InstanceStatus_PHASE_EXITED {
				continue
			}
			out.Instances = append(out.Instances, v)
		}
	}
	return connect.NewResponse(out), nil
}

func ordered(m map[string][]*gantryv1.InstanceView) [][]*gantryv1.InstanceView {
	out := make([][]*gantryv1.InstanceView, 0, len(m))
	for _, k := range sorted(m) {
		out = append(out, m[k])
	}
	return out
}

// Inspect implements the API. The answer carries the spec of the release, so that one call tells all.
func (h *instances) Inspect(_ context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceView], error) {
	i, err := h.s.resolve(req.Msg)
	if err != nil {
		return nil, err
	}
	snap := h.s.store.Snapshot()
	v := progress.View(snap, i)
	if spec := nodesession.Spec(snap, i); spec != nil {
		v.Instance = proto.Clone(i).(*gantryv1.Instance)
		v.Instance.Spec = spec
	}
	return connect.NewResponse(v), nil
}

// change modifies one `gantry run` instance. Instances of services belong to their service.
func (h *instances) change(ctx context.Context, t *gantryv1.InstanceTarget, verb string, fn func(*gantryv1.Instance) error) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	i, err := h.s.resolve(t)
	if err != nil {
		return nil, err
	}
	if i.Slot > 0 && verb != "" {
		return nil, fault.New(fault.Conflict, "instance %s belongs to the service %q, which would put it back", progress.Name(i), i.Service).
			WithHint("gantry %s %s acts on the service", verb, i.Service)
	}
	err = h.s.store.Update(ctx, func(tx *store.Tx) error {
		return store.Modify(tx, i.Meta.Key, fn)
	})
	return respond(&gantryv1.InstanceActionResponse{Id: i.Meta.Key}, err)
}
