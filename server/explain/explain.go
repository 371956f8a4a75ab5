// Package explain is the part of the API that says why instances are where they are, and why others are nowhere.
//
// New makes the handler of ExplainService. It belongs on the leader, which knows how nodes are; it reads the store and
// changes nothing. What it says is judged by the same rules as the scheduler decides by: store/placement.
package explain

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/cron"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// Handler serves ExplainService. Use New.
type Handler struct{ store *store.Store }

// New makes the handler over a store.
func New(s *store.Store) *Handler { return &Handler{store: s} }

// Explain implements the API.
func (h *Handler) Explain(_ context.Context, req *connect.Request[gantryv1.ExplainRequest]) (*connect.Response[gantryv1.ExplainResponse], error) {
	m := req.Msg
	out, err := Explain(h.store.Snapshot(), m.Environment+"/"+m.App+"/"+m.Service, time.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Explain judges every node for one more instance of a service, or for the `gantry run` instance "env//name".
func Explain(r store.Reader, key string, now time.Time) (*gantryv1.ExplainResponse, error) {
	s := placement.NewState(r)
	out := &gantryv1.ExplainResponse{Service: key}
	service := s.Service(key)
	members := sorted(s.Members(key))
	if service == nil && len(members) == 0 {
		name := key[strings.LastIndexByte(key, '/')+1:]
		return nil, fault.New(fault.NotFound, "there is no service %q", name).WithHint("gantry ps lists what there is")
	}
	subject := waiting(r, s, members, out)
	switch {
	case service != nil:
		about(r, service, out, now)
		if subject == nil {
			subject = s.Another(r, service)
		}
	case subject == nil:
		subject = members[0]
	}
	out.Asks = s.Asks(subject)
	for _, m := range s.Machines() {
		out.Nodes = append(out.Nodes, verdict(s, service, subject, m))
	}
	return out, nil
}

func sorted(members map[string]*placement.Placed) []*placement.Placed {
	var out []*placement.Placed
	for _, p := range members {
		if p.Instance.Desired != gantryv1.Instance_DESIRED_REMOVED {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *placement.Placed) int {
		return cmp.Or(cmp.Compare(a.Instance.Slot, b.Instance.Slot), cmp.Compare(a.ID(), b.ID()))
	})
	return out
}

// waiting lists the instances without a node and returns the first of them.
func waiting(r store.Reader, s *placement.State, members []*placement.Placed, out *gantryv1.ExplainResponse) (first *placement.Placed) {
	for _, p := range members {
		if p.Machine != nil {
			out.Placed++
			continue
		}
		if first == nil {
			first = p
		}
		st, _ := store.Get[*gantryv1.InstanceStatus](r, p.ID())
		out.Waiting = append(out.Waiting, &gantryv1.WaitingInstance{
			Instance: p.ID(), Name: progress.Name(p.Instance), Since: p.Instance.Meta.CreatedAt,
			Reason: cmp.Or(st.GetError(), s.Why(p), "it is about to be placed"),
		})
	}
	return first
}

// about adds what is known of the service itself.
func about(r store.Reader, s *gantryv1.Service, out *gantryv1.ExplainResponse, now time.Time) {
	out.Mode = cmp.Or(s.Spec.GetMode(), placement.ModeReplicated)
	out.Wanted = progress.Wanted(r, s)
	if !placement.IsJob(s.Spec) {
		return
	}
	out.Job, _ = store.Get[*gantryv1.Job](r, s.Meta.Key)
	out.Wanted = 0
	for _, run := range out.Job.GetRuns() {
		if run.State == "running" {
			out.Wanted += run.Completions - run.Succeeded
		}
	}
	j := s.Spec.GetJob()
	if c, err := cron.Parse(j.GetSchedule(), j.GetTimeZone()); err == nil && j.GetSchedule() != "" && !s.Stopped {
		out.NextStart = timestamppb.New(c.Next(now))
	}
}

// verdict is one machine. That it has an instance of a global service already is no reason against it.
func verdict(s *placement.State, service *gantryv1.Service, p *placement.Placed, m *placement.Machine) *gantryv1.NodeVerdict {
	v := &gantryv1.NodeVerdict{Node: m.ID(), Name: m.Name(), Reasons: s.Reasons(p, m)}
	for _, o := range s.Members(p.Service) {
		if o.Machine == m && o.Instance.Desired != gantryv1.Instance_DESIRED_REMOVED {
			v.Instances++
		}
	}
	if service != nil && placement.IsGlobal(service.Spec) && placement.Eligible(m.Node, m.Status, service.Spec) {
		v.Reasons = nil
	}
	v.Fits = len(v.Reasons) == 0
	v.FreeCpus = max(0, m.Status.GetNanoCpus()-m.Load.CPU)
	v.FreeMemory = max(0, m.Status.GetMemory()-m.Load.Memory)
	return v
}
