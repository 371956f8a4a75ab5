// Package operations serves OperationService: it shows what takes longer than a request, and lets people steer it.
//
// New gives the handler. It is safe in parallel. It changes stored operations and nothing else; the controllers act on them.
package operations

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/store"
)

// Handler serves OperationService. Use New.
type Handler struct {
	store *store.Store
	now   func() time.Time
}

// New makes a handler over the store.
func New(s *store.Store) *Handler { return &Handler{store: s, now: time.Now} }

type answer = connect.Response[gantryv1.Operation]

// List implements the API.
func (h *Handler) List(_ context.Context, req *connect.Request[gantryv1.ListOperationsRequest]) (*connect.Response[gantryv1.ListOperationsResponse], error) {
	m, out := req.Msg, &gantryv1.ListOperationsResponse{}
	for _, op := range store.List[*gantryv1.Operation](h.store.Snapshot(), "") {
		env, app, service := split(op.Subject)
		if m.Environment != "" && m.Environment != env || m.App != "" && m.App != app || m.Service != "" && m.Service != service ||
			m.Active && !operation.Active(op) {
			continue
		}
		out.Operations = append(out.Operations, op)
	}
	slices.SortStableFunc(out.Operations, func(a, b *gantryv1.Operation) int {
		return b.Meta.CreatedAt.AsTime().Compare(a.Meta.CreatedAt.AsTime())
	})
	return connect.NewResponse(out), nil
}

func split(subject string) (env, app, service string) {
	parts := strings.SplitN(subject, "/", 3)
	for len(parts) < 3 {
		parts = append(parts, "")
	}
	return parts[0], parts[1], parts[2]
}

// find reads the operation that a target names.
func find(r store.Reader, t *gantryv1.OperationTarget) (*gantryv1.Operation, error) {
	subject := t.GetEnvironment() + "/" + t.GetApp() + "/" + t.GetService()
	if t.GetNumber() == 0 {
		if op := operation.Last(r, subject); op != nil {
			return op, nil
		}
		return nil, fault.New(fault.NotFound, "the service %q of app %q has had no rollout", t.GetService(), t.GetApp()).WithHint("gantry rollout ls, gantry ps")
	}
	op, ok := store.Get[*gantryv1.Operation](r, operation.Key(subject, t.Number))
	if !ok {
		return nil, fault.New(fault.NotFound, "the service %q of app %q has no rollout %d, or it is forgotten", t.Service, t.App, t.Number).
			WithHint("gantry rollout ls")
	}
	return op, nil
}

// Get implements the API.
func (h *Handler) Get(_ context.Context, req *connect.Request[gantryv1.OperationTarget]) (*answer, error) {
	return respond(find(h.store.Snapshot(), req.Msg))
}

func respond(op *gantryv1.Operation, err error) (*answer, error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(op), nil
}

// Watch implements the API.
func (h *Handler) Watch(ctx context.Context, req *connect.Request[gantryv1.OperationTarget], stream *connect.ServerStream[gantryv1.Operation]) error {
	var op *gantryv1.Operation
	sub, err := h.store.ViewAndWatch(func(r *store.ReadTx) (err error) {
		op, err = find(r, req.Msg)
		return err
	})
	if err != nil {
		return err
	}
	defer sub.Close()
	key, sent := op.Meta.Key, int64(0)
	for {
		if op.Meta.Revision != sent {
			if err := stream.Send(op); err != nil || !operation.Active(op) {
				return err
			}
			sent = op.Meta.Revision
		}
		events, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if now, ok := ev.New.(*gantryv1.Operation); ok && now.Meta.Key == key {
				op = now
			}
			if was, ok := ev.Old.(*gantryv1.Operation); ok && ev.New == nil && was.Meta.Key == key {
				return fault.New(fault.NotFound, "%s is gone, and its rollouts", was.Subject).WithHint("gantry ps")
			}
		}
	}
}

// Pause implements the API.
func (h *Handler) Pause(ctx context.Context, req *connect.Request[gantryv1.OperationTarget]) (*answer, error) {
	return h.steer(ctx, req.Msg, func(_ *store.Tx, op *gantryv1.Operation) error { return operation.Pause(op) })
}

// Resume implements the API.
func (h *Handler) Resume(ctx context.Context, req *connect.Request[gantryv1.OperationTarget]) (*answer, error) {
	return h.steer(ctx, req.Msg, func(_ *store.Tx, op *gantryv1.Operation) error { return rollouts.Resume(op, h.now()) })
}

// Abort implements the API.
func (h *Handler) Abort(ctx context.Context, req *connect.Request[gantryv1.OperationTarget]) (*answer, error) {
	return h.steer(ctx, req.Msg, func(tx *store.Tx, op *gantryv1.Operation) error {
		return rollouts.Abort(tx, op, caller.Of(ctx).User, h.now())
	})
}

// steer changes an operation.
func (h *Handler) steer(ctx context.Context, t *gantryv1.OperationTarget, fn func(*store.Tx, *gantryv1.Operation) error) (*answer, error) {
	var out *gantryv1.Operation
	err := h.store.Update(ctx, func(tx *store.Tx) error {
		op, err := find(tx, t)
		if err != nil {
			return err
		}
		out = proto.CloneOf(op)
		if err := fn(tx, out); err != nil {
			return err
		}
		store.Put(tx, out)
		return nil
	})
	return respond(out, err)
}
