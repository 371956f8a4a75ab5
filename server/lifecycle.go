package server

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

type actionResponse = connect.Response[gantryv1.InstanceActionResponse]

// Start implements the API. It answers when the process runs, or could not be started.
func (h *instances) Start(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*actionResponse, error) {
	resp, err := h.change(ctx, req.Msg, "start", func(i *gantryv1.Instance) error {
		if i.Desired == gantryv1.Instance_DESIRED_REMOVED {
			return fault.New(fault.Conflict, "instance %s is being removed", i.Service)
		}
		i.Desired, i.WaitAttach = gantryv1.Instance_DESIRED_RUNNING, false
		i.RestartGeneration++
		return nil
	})
	return h.afterwards(ctx, resp, err, started)
}

// Stop implements the API. It answers when the process has ended.
func (h *instances) Stop(ctx context.Context, req *connect.Request[gantryv1.StopInstanceRequest]) (*actionResponse, error) {
	resp, err := h.change(ctx, req.Msg.Target, "stop", func(i *gantryv1.Instance) error {
		i.Desired, i.StopGrace = gantryv1.Instance_DESIRED_STOPPED, req.Msg.GracePeriod
		return nil
	})
	if err != nil {
		return nil, err
	}
	st, err := h.await(ctx, resp.Msg.Id, func(v *gantryv1.InstanceView) bool {
		return ended(v) || v.Status.GetPhase() == gantryv1.InstanceStatus_PHASE_CREATED
	})
	resp.Msg.KilledAfter = st.GetKilledAfter()
	return resp, err
}

// Restart implements the API. It answers when the new process runs, or could not be started.
func (h *instances) Restart(ctx context.Context, req *connect.Request[gantryv1.StopInstanceRequest]) (*actionResponse, error) {
	resp, err := h.change(ctx, req.Msg.Target, "", func(i *gantryv1.Instance) error {
		i.Desired, i.StopGrace = gantryv1.Instance_DESIRED_RUNNING, req.Msg.GracePeriod
		i.RestartGeneration++
		return nil
	})
	return h.afterwards(ctx, resp, err, started)
}

// afterwards gives the answer to a change once the instance is as far as it was meant to get.
func (h *instances) afterwards(ctx context.Context, resp *actionResponse, err error, done func(*gantryv1.InstanceView) bool) (*actionResponse, error) {
	if err != nil {
		return nil, err
	}
	_, err = h.await(ctx, resp.Msg.Id, done)
	return resp, err
}

// Remove implements the API. It answers when nothing is left. An instance of a service is replaced by a new one.
func (h *instances) Remove(ctx context.Context, req *connect.Request[gantryv1.RemoveInstanceRequest]) (*actionResponse, error) {
	i, err := h.s.resolve(req.Msg.Target)
	if err != nil {
		return nil, err
	}
	if word := busy(progress.View(h.s.store.Snapshot(), i).Status.Phase); word != "" && !req.Msg.Force {
		return nil, fault.New(fault.Conflict, "instance %s is %s", progress.Name(i), word).
			WithHint("gantry stop %s, or gantry rm -f %s", progress.Name(i), progress.Name(i))
	}
	err = h.s.store.Update(ctx, func(tx *store.Tx) error { return retire(tx, i.Meta.Key, req.Msg.Force) })
	if err != nil {
		return nil, err
	}
	_, err = h.await(ctx, i.Meta.Key, func(*gantryv1.InstanceView) bool { return false })
	return respond(&gantryv1.InstanceActionResponse{Id: i.Meta.Key}, err)
}

// busy is the word for a phase in which there is work to lose.
func busy(p gantryv1.InstanceStatus_Phase) string {
	return map[gantryv1.InstanceStatus_Phase]string{
		gantryv1.InstanceStatus_PHASE_RUNNING:    "running",
		gantryv1.InstanceStatus_PHASE_PAUSED:     "paused",
		gantryv1.InstanceStatus_PHASE_RESTARTING: "restarting",
	}[p]
}

// retire has the instance's node take it down. One without a node is gone at once: nobody else would remove it.
func retire(tx *store.Tx, id string, force bool) error {
	if i, ok := store.Get[*gantryv1.Instance](tx, id); ok && i.Node == "" {
		store.Delete[*gantryv1.Instance](tx, id)
		return nil
	}
	return store.Modify(tx, id, func(i *gantryv1.Instance) error {
		i.Desired = gantryv1.Instance_DESIRED_REMOVED
		if force {
			i.StopGrace = durationpb.New(0)
		}
		return nil
	})
}

func ended(v *gantryv1.InstanceView) bool {
	switch v.Status.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_FAILED:
		return true
	}
	return false
}

// pending reports that a start has been asked for and the node has not said how it went.
func pending(v *gantryv1.InstanceView) bool {
	return v.Instance.Desired == gantryv1.Instance_DESIRED_RUNNING && progress.Stale(v)
}

// started reports that the start asked for last has been tried, or is no longer wanted.
func started(v *gantryv1.InstanceView) bool {
	if v.Instance.Desired != gantryv1.Instance_DESIRED_RUNNING {
		return true
	}
	return !pending(v) && (ended(v) || busy(v.Status.GetPhase()) != "")
}

// await blocks until the instance satisfies done or is gone, and returns its last status. Every status the node reports is
// looked at, however short it lasts.
func (h *instances) await(ctx context.Context, id string, done func(*gantryv1.InstanceView) bool) (*gantryv1.InstanceStatus, error) {
	v, present := &gantryv1.InstanceView{}, false
	sub, err := h.s.store.ViewAndWatch(func(r *store.ReadTx) error {
		v.Status, _ = store.Get[*gantryv1.InstanceStatus](r, id)
		v.Instance, present = store.Get[*gantryv1.Instance](r, id)
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	if present && v.Status != nil && done(v) {
		return v.Status, nil
	}
	for present {
		events, err := sub.Next(ctx)
		if err != nil {
			return v.Status, err
		}
		for _, ev := range events {
			if present = follow(v, id, ev); !present || v.Status != nil && done(v) {
				return v.Status, nil
			}
		}
	}
	return v.Status, nil
}

// follow brings the view up to an event and reports whether the instance is still there.
func follow(v *gantryv1.InstanceView, id string, ev store.Event) bool {
	switch now := ev.New.(type) {
	case *gantryv1.InstanceStatus:
		if now.Meta.Key == id {
			v.Status = now
		}
	case *gantryv1.Instance:
		if now.Meta.Key == id {
			v.Instance = now
		}
	}
	gone, ok := ev.Old.(*gantryv1.Instance)
	return !ok || ev.New != nil || gone.Meta.Key != id
}

// Wait implements the API. What the node said before the last start does not count.
func (h *instances) Wait(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.WaitResponse], error) {
	i, err := h.s.resolve(req.Msg)
	if err != nil {
		return nil, err
	}
	st, err := h.await(ctx, i.Meta.Key, func(v *gantryv1.InstanceView) bool { return ended(v) && !pending(v) })
	if err != nil {
		return nil, err
	}
	out := &gantryv1.WaitResponse{ExitCode: st.GetExitCode(), OomKilled: st.GetOomKilled()}
	if st.GetPhase() == gantryv1.InstanceStatus_PHASE_FAILED {
		out.Error = st.Error
		if st.Hint != "" {
			out.Error = fmt.Sprintf("%s (%s)", st.Error, st.Hint)
		}
	}
	return connect.NewResponse(out), nil
}
