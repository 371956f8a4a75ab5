package server

import (
	"context"
	"errors"
	"io"
	"sort"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// route finds the instance and its node.
func (h *instances) route(t *gantryv1.InstanceTarget) (*gantryv1.Instance, Node, error) {
	i, err := h.s.resolve(t)
	if err != nil {
		return nil, Node{}, err
	}
	if i.Node == "" {
		return nil, Node{}, fault.New(fault.Unavailable, "instance %s has not been placed yet", progress.Name(i)).WithHint("gantry ps")
	}
	n, err := h.s.reach(i.Node)
	return i, n, err
}

func direct(i *gantryv1.Instance) *gantryv1.InstanceTarget {
	return &gantryv1.InstanceTarget{Environment: i.Environment, Target: i.Meta.Key}
}

// Kill implements the API.
func (h *instances) Kill(ctx context.Context, req *connect.Request[gantryv1.KillRequest]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	return passOn(ctx, h, req.Msg.Target, nodePatience, func(ctx context.Context, n Node, i *gantryv1.Instance) (*connect.Response[gantryv1.InstanceActionResponse], error) {
		return n.Service.Kill(ctx, connect.NewRequest(&gantryv1.KillRequest{Target: direct(i), Signal: req.Msg.Signal}))
	})
}

// passOn asks the node of an instance and passes its answer on.
func passOn[T any](ctx context.Context, h *instances, t *gantryv1.InstanceTarget, patience time.Duration, call func(context.Context, Node, *gantryv1.Instance) (*connect.Response[T], error)) (*connect.Response[T], error) {
	i, n, err := h.route(t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := call(ctx, n, i)
	if err != nil {
		return nil, h.s.answered(i.Node, err)
	}
	return connect.NewResponse(resp.Msg), nil
}

// Pause implements the API.
func (h *instances) Pause(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	return passOn(ctx, h, req.Msg, nodePatience, func(ctx context.Context, n Node, i *gantryv1.Instance) (*connect.Response[gantryv1.InstanceActionResponse], error) {
		return n.Service.Pause(ctx, connect.NewRequest(direct(i)))
	})
}

// Unpause implements the API.
func (h *instances) Unpause(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	return passOn(ctx, h, req.Msg, nodePatience, func(ctx context.Context, n Node, i *gantryv1.Instance) (*connect.Response[gantryv1.InstanceActionResponse], error) {
		return n.Service.Unpause(ctx, connect.NewRequest(direct(i)))
	})
}

// Top implements the API.
func (h *instances) Top(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.TopResponse], error) {
	return passOn(ctx, h, req.Msg, nodePatience, func(ctx context.Context, n Node, i *gantryv1.Instance) (*connect.Response[gantryv1.TopResponse], error) {
		return n.Service.Top(ctx, connect.NewRequest(direct(i)))
	})
}

// Diff implements the API.
func (h *instances) Diff(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.DiffResponse], error) {
	return passOn(ctx, h, req.Msg, diskPatience, func(ctx context.Context, n Node, i *gantryv1.Instance) (*connect.Response[gantryv1.DiffResponse], error) {
		return n.Service.Diff(ctx, connect.NewRequest(direct(i)))
	})
}

// Exec implements the API.
func (h *instances) Exec(ctx context.Context, stream *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput]) error {
	return h.interactive(ctx, stream, func(n Node) *execClient { return n.Service.Exec(ctx) })
}

// Attach implements the API.
func (h *instances) Attach(ctx context.Context, stream *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput]) error {
	return h.interactive(ctx, stream, func(n Node) *execClient { return n.Service.Attach(ctx) })
}

type execClient = connect.BidiStreamForClient[gantryv1.ExecInput, gantryv1.ExecOutput]

// interactive joins a caller's stream with one to the node.
func (h *instances) interactive(ctx context.Context, stream *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput], open func(Node) *execClient) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return fault.New(fault.Invalid, "the first message of the stream is not start")
	}
	i, err := h.placed(ctx, start.Target)
	if err != nil {
		return err
	}
	n, err := h.s.reach(i.Node)
	if err != nil {
		return err
	}
	if start.Privileged {
		if err := allowed(h.s.store.Snapshot(), i.Environment, "exec --privileged"); err != nil {
			return err
		}
	}
	start.Target = direct(i)
	up := open(n)
	if err := up.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return h.s.answered(i.Node, err)
	}
	go forward(stream, up)
	return pump(h.s, i.Node, up.Receive, stream.Send)
}

// placed waits for the scheduler, which may not have seen a new instance yet.
func (h *instances) placed(ctx context.Context, t *gantryv1.InstanceTarget) (*gantryv1.Instance, error) {
	i, err := h.s.resolve(t)
	if err != nil || i.Node != "" {
		return i, err
	}
	sub, err := h.s.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	for {
		now, ok := store.Get[*gantryv1.Instance](h.s.store.Snapshot(), i.Meta.Key)
		if !ok {
			return nil, fault.New(fault.NotFound, "instance %s was removed", progress.Name(i))
		}
		if now.Node != "" {
			return now, nil
		}
		if _, err := sub.Next(ctx); err != nil {
			return nil, err
		}
	}
}

// pump copies messages of a node until it ends the stream.
func pump[T any](s *Server, node string, receive func() (*T, error), send func(*T) error) error {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.answered(node, err)
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

// CopyTo implements the API.
func (h *instances) CopyTo(ctx context.Context, stream *connect.ClientStream[gantryv1.CopyChunk]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		return nil, fault.New(fault.Invalid, "the first message of the stream is not start")
	}
	start := proto.Clone(stream.Msg().GetStart()).(*gantryv1.CopyStart)
	i, n, err := h.route(start.Target)
	if err != nil {
		return nil, err
	}
	start.Target = direct(i)
	up := n.Service.CopyTo(ctx)
	if err := up.Send(&gantryv1.CopyChunk{Chunk: &gantryv1.CopyChunk_Start{Start: start}}); err != nil {
		return h.closed(i.Node, up)
	}
	for stream.Receive() {
		if err := up.Send(stream.Msg()); err != nil {
			break // the answer says why
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return h.closed(i.Node, up)
}

// closed gives the node's answer to a stream that has been sent.
func (h *instances) closed(node string, up *connect.ClientStreamForClient[gantryv1.CopyChunk, gantryv1.InstanceActionResponse]) (*actionResponse, error) {
	resp, err := up.CloseAndReceive()
	if err != nil {
		return nil, h.s.answered(node, err)
	}
	return connect.NewResponse(resp.Msg), nil
}

// CopyFrom implements the API.
func (h *instances) CopyFrom(ctx context.Context, req *connect.Request[gantryv1.CopyFromRequest], stream *connect.ServerStream[gantryv1.CopyChunk]) error {
	i, n, err := h.route(req.Msg.Target)
	if err != nil {
		return err
	}
	up, err := n.Service.CopyFrom(ctx, connect.NewRequest(&gantryv1.CopyFromRequest{
		Target: direct(i), Path: req.Msg.Path, FollowLink: req.Msg.FollowLink,
	}))
	if err != nil {
		return h.s.answered(i.Node, err)
	}
	return pump(h.s, i.Node, receiver(up), stream.Send)
}

// receiver gives a server stream the form of pump.
func receiver[T any](s *connect.ServerStreamForClient[T]) func() (*T, error) {
	return func() (*T, error) {
		if s.Receive() {
			return s.Msg(), nil
		}
		if err := s.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
}

const statsInterval = time.Second

// Stats implements the API.
func (h *instances) Stats(ctx context.Context, req *connect.Request[gantryv1.StatsRequest], stream *connect.ServerStream[gantryv1.StatsResponse]) error {
	before := map[string]*gantryv1.InstanceStats{}
	for {
		sample, err := h.sample(ctx, req.Msg)
		if err != nil {
			return err
		}
		fresh := len(before) == 0 && len(sample.Stats) > 0
		for _, s := range sample.Stats {
			s.CpuPercent = percent(before[s.Instance], s)
			before[s.Instance] = s
		}
		// A single sample needs one before it to tell how busy the CPU is.
		if !fresh || !req.Msg.Once {
			if err := stream.Send(sample); err != nil || req.Msg.Once {
				return err
			}
		}
		select {
		case <-time.After(statsInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func percent(old, now *gantryv1.InstanceStats) float64 {
	if old == nil || now.CpuUsage < old.CpuUsage {
		return 0
	}
	elapsed := now.Time.AsTime().Sub(old.Time.AsTime())
	if elapsed <= 0 {
		return 0
	}
	return float64(now.CpuUsage-old.CpuUsage) / float64(elapsed.Nanoseconds()) * 100
}

// sample asks every node for what runs on it.
func (h *instances) sample(ctx context.Context, m *gantryv1.StatsRequest) (*gantryv1.StatsResponse, error) {
	var targets []*gantryv1.Instance
	snap := h.s.store.Snapshot()
	if len(m.Targets) == 0 {
		for _, i := range store.List[*gantryv1.Instance](snap, "") {
			if (m.Environment == "" || i.Environment == m.Environment) && (m.App == "" || i.App == m.App) {
				targets = append(targets, i)
			}
		}
	}
	for _, t := range m.Targets {
		found, err := h.s.resolveAll(&gantryv1.InstanceTarget{Environment: m.Environment, App: m.App, Target: t})
		if err != nil {
			return nil, err
		}
		targets = append(targets, found...)
	}
	byNode := map[string][]string{}
	names := map[string]string{}
	for _, i := range targets {
		if progress.View(snap, i).Status.Phase == gantryv1.InstanceStatus_PHASE_RUNNING {
			byNode[i.Node] = append(byNode[i.Node], i.Meta.Key)
			names[i.Meta.Key] = progress.Name(i)
		}
	}
	answers, errs := ask(ctx, h.s, sorted(byNode), nodePatience, func(ctx context.Context, n Node, id string) (*connect.Response[gantryv1.StatsResponse], error) {
		return n.Service.Stats(ctx, connect.NewRequest(&gantryv1.StatsRequest{Targets: byNode[id]}))
	})
	if len(answers) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	out := &gantryv1.StatsResponse{Failures: errs.failures(snap)}
	for id, resp := range answers {
		for _, s := range resp.Msg.Stats {
			s.Name, s.Node = names[s.Instance], id
			out.Stats = append(out.Stats, s)
		}
	}
	sort.Slice(out.Stats, func(a, b int) bool { return out.Stats[a].Name < out.Stats[b].Name })
	return out, nil
}
