package cli_test

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
)

func graceOf(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return ":" + d.AsDuration().String()
}

// rollingOut gives a service the rollout that its image's name stands for: "regressing" fails and goes back, "canary" waits for
// approval.
func (f fakeApps) rollingOut(v *gantryv1.ServiceView, settled bool) {
	v.Operation = rolloutOf(v.Service.App, v.Service.Name)
	if v.Service.Spec.Container.Image == "canary" {
		v.Converged, v.Waiting = false, "paused, waits for approval"
		return
	}
	op := v.Operation
	if v.Service.Spec.Container.Image == "halted" {
		op.Waiting, op.Error, v.Converged, v.Failure = "a failure", "web.1 exited with code 3", false, "web.1 exited with code 3"
		return
	}
	op.State, op.Waiting, op.Error, op.Hint = gantryv1.Operation_STATE_RUNNING, "", "web.1 exited with code 3", "correct it and run gantry up again"
	op.Rollout.Back, op.Rollout.FailedInstance = true, v.Instances[0].Instance.Meta.Key
	v.Converged, v.Waiting = false, "goes back to release 1"
	if settled {
		op.State, v.Converged, v.Waiting = gantryv1.Operation_STATE_ROLLED_BACK, true, ""
	}
}

func rolloutOf(app, service string) *gantryv1.Operation {
	subject := "production/" + app + "/" + service
	return &gantryv1.Operation{
		Meta: &gantryv1.Meta{Key: subject + "/00000002", CreatedAt: timestamppb.New(start)}, Kind: "rollout", Subject: subject, Number: 2,
		State: gantryv1.Operation_STATE_PAUSED, Waiting: "approval", Who: "ann", Cause: "up", Rollout: &gantryv1.Rollout{From: 1, To: 2},
		Steps: []*gantryv1.OperationStep{{
			Name: "canary with 1 of the instances", State: gantryv1.Operation_STATE_RUNNING,
			Steps: []*gantryv1.OperationStep{
				{
					Name: "1 of the instances to release 2, with 5 % of the traffic", State: gantryv1.Operation_STATE_DONE,
					StartedAt: timestamppb.New(start), EndedAt: timestamppb.New(start.Add(3 * time.Second)),
				},
				{Name: "wait for approval", State: gantryv1.Operation_STATE_RUNNING},
			},
		}, {Name: "the others to release 2, 1 at a time", State: gantryv1.Operation_STATE_PENDING}},
	}
}

type fakeOperations struct {
	*fake
	gantryv1connect.UnimplementedOperationServiceHandler
}

func (f fakeOperations) find(t *gantryv1.OperationTarget) (*gantryv1.Operation, error) {
	if t.GetService() != "web" || t.GetNumber() > 2 {
		return nil, fault.New(fault.NotFound, "the service %q of app %q has had no rollout", t.GetService(), t.GetApp()).WithHint("gantry rollout ls, gantry ps")
	}
	return rolloutOf(t.GetApp(), t.GetService()), nil
}

func (f fakeOperations) List(_ context.Context, r *connect.Request[gantryv1.ListOperationsRequest]) (*connect.Response[gantryv1.ListOperationsResponse], error) {
	back := rolloutOf(r.Msg.GetApp(), "api")
	back.State, back.Waiting, back.Steps, back.Who = gantryv1.Operation_STATE_ROLLED_BACK, "", nil, ""
	back.Rollout.Back = true
	return answer(&gantryv1.ListOperationsResponse{Operations: []*gantryv1.Operation{rolloutOf(r.Msg.GetApp(), "web"), back}}, nil)
}

func (f fakeOperations) Get(_ context.Context, r *connect.Request[gantryv1.OperationTarget]) (*connect.Response[gantryv1.Operation], error) {
	return answer(f.find(r.Msg))
}

func (f fakeOperations) Watch(_ context.Context, r *connect.Request[gantryv1.OperationTarget], s *connect.ServerStream[gantryv1.Operation]) error {
	op, err := f.find(r.Msg)
	if err != nil {
		return err
	}
	if err := s.Send(op); err != nil {
		return err
	}
	op.State, op.Waiting = gantryv1.Operation_STATE_DONE, ""
	return s.Send(op)
}

func (f fakeOperations) steer(verb string, t *gantryv1.OperationTarget) (*connect.Response[gantryv1.Operation], error) {
	f.note("%s:%s/%s", verb, t.GetApp(), t.GetService())
	return answer(f.find(t))
}

func (f fakeOperations) Pause(_ context.Context, r *connect.Request[gantryv1.OperationTarget]) (*connect.Response[gantryv1.Operation], error) {
	return f.steer("PauseRollout", r.Msg)
}

func (f fakeOperations) Resume(_ context.Context, r *connect.Request[gantryv1.OperationTarget]) (*connect.Response[gantryv1.Operation], error) {
	return f.steer("ResumeRollout", r.Msg)
}

func (f fakeOperations) Abort(_ context.Context, r *connect.Request[gantryv1.OperationTarget]) (*connect.Response[gantryv1.Operation], error) {
	return f.steer("AbortRollout", r.Msg)
}
