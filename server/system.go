package server

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/store"
)

// system serves SystemService.
type system struct{ s *Server }

// Version implements the API.
func (h *system) Version(context.Context, *connect.Request[gantryv1.VersionRequest]) (*connect.Response[gantryv1.VersionResponse], error) {
	return connect.NewResponse(h.s.o.Version), nil
}

// Info implements the API.
func (h *system) Info(ctx context.Context, req *connect.Request[gantryv1.InfoRequest]) (*connect.Response[gantryv1.InfoResponse], error) {
	resp, err := h.s.local.Service.Info(ctx, connect.NewRequest(req.Msg))
	if err != nil {
		return nil, wire.Decode(err)
	}
	snap := h.s.store.Snapshot()
	out := resp.Msg
	out.Instances = int32(len(store.List[*gantryv1.Instance](snap, "")))
	out.Running = 0
	for _, st := range store.List[*gantryv1.InstanceStatus](snap, "") {
		if st.Phase == gantryv1.InstanceStatus_PHASE_RUNNING {
			out.Running++
		}
	}
	return connect.NewResponse(out), nil
}

// DiskUsage implements the API.
func (h *system) DiskUsage(ctx context.Context, req *connect.Request[gantryv1.DiskUsageRequest]) (*connect.Response[gantryv1.DiskUsageResponse], error) {
	return relay(h.s.local.Service.DiskUsage(ctx, connect.NewRequest(req.Msg)))
}

// Environments implements the API.
func (h *system) Environments(context.Context, *connect.Request[gantryv1.EnvironmentsRequest]) (*connect.Response[gantryv1.EnvironmentsResponse], error) {
	out := &gantryv1.EnvironmentsResponse{Environments: store.List[*gantryv1.Environment](h.s.store.Snapshot(), "")}
	return connect.NewResponse(out), nil
}

// SetEnvironment implements the API.
func (h *system) SetEnvironment(ctx context.Context, req *connect.Request[gantryv1.SetEnvironmentRequest]) (*connect.Response[gantryv1.Environment], error) {
	m := req.Msg
	if err := validName("environment", m.Name); err != nil {
		return nil, err
	}
	env := &gantryv1.Environment{Meta: store.NewMeta(m.Name)}
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		if old, ok := store.Get[*gantryv1.Environment](tx, m.Name); ok {
			env = proto.Clone(old).(*gantryv1.Environment)
		}
		env.Spec = m.Spec
		if env.Spec == nil {
			env.Spec = &gantryv1.EnvironmentSpec{}
		}
		store.Put(tx, env)
		return nil
	})
	return respond(env, err)
}
