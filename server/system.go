package server

import (
	"cmp"
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/server/machines"
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
	snap := h.s.store.Snapshot()
	id := cmp.Or(caller.Of(ctx).Node, h.s.o.Node) // the machine whose socket was used
	if req.Msg.Node != "" {
		n, err := machines.Find(snap, req.Msg.Node)
		if err != nil {
			return nil, err
		}
		id = n.Meta.Key
	}
	resp, err := askOne(ctx, h.s, id, nodePatience, func(ctx context.Context, n Node, _ string) (*connect.Response[gantryv1.InfoResponse], error) {
		return n.Service.Info(ctx, connect.NewRequest(&gantryv1.InfoRequest{}))
	})
	if err != nil {
		return nil, err
	}
	out := resp.Msg
	out.Nodes = briefs(snap)
	out.Instances, out.Running = 0, 0
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if req.Msg.Node != "" && i.Node != id {
			continue
		}
		out.Instances++
		if st, ok := store.Get[*gantryv1.InstanceStatus](snap, i.Meta.Key); ok && st.Phase == gantryv1.InstanceStatus_PHASE_RUNNING {
			out.Running++
		}
	}
	return connect.NewResponse(out), nil
}

// DiskUsage implements the API: every node has its own rows.
func (h *system) DiskUsage(ctx context.Context, req *connect.Request[gantryv1.DiskUsageRequest]) (*connect.Response[gantryv1.DiskUsageResponse], error) {
	snap := h.s.store.Snapshot()
	ids := nodeIDs(snap)
	if req.Msg.Node != "" {
		n, err := machines.Find(snap, req.Msg.Node)
		if err != nil {
			return nil, err
		}
		ids = []string{n.Meta.Key}
	}
	answers, errs := ask(ctx, h.s, ids, diskPatience, func(ctx context.Context, n Node, _ string) (*connect.Response[gantryv1.DiskUsageResponse], error) {
		return n.Service.DiskUsage(ctx, connect.NewRequest(&gantryv1.DiskUsageRequest{}))
	})
	if len(answers) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	out := &gantryv1.DiskUsageResponse{Failures: errs.failures(snap), Nodes: briefs(snap)}
	for _, id := range sorted(answers) {
		for _, row := range answers[id].Msg.Rows {
			row.Node = id
			out.Rows = append(out.Rows, row)
		}
	}
	return connect.NewResponse(out), nil
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
