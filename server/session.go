package server

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// sessions serves NodeSessionService.
type sessions struct{ s *Server }

type sessionStream = connect.BidiStream[gantryv1.NodeReport, gantryv1.NodeUpdate]

// Session implements the API: it takes what the node reports and sends what is assigned to it.
func (h *sessions) Session(ctx context.Context, stream *sessionStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	node := first.GetHello().GetNode()
	if _, ok := store.Get[*gantryv1.Node](h.s.store.Snapshot(), node); !ok {
		return fault.New(fault.Denied, "node %q is not part of this cluster", node)
	}
	if err := h.greet(ctx, node, first); err != nil {
		return err
	}
	defer h.leave(node)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(h.receive(ctx, node, stream)) }()
	err = h.send(ctx, node, stream)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// greet replaces all that was known of the node by what it says now.
func (h *sessions) greet(ctx context.Context, node string, hello *gantryv1.NodeReport) error {
	said := map[string]bool{}
	for _, st := range hello.Statuses {
		said[st.Meta.Key] = true
	}
	snap := h.s.store.Snapshot()
	var stale []store.Object
	for _, st := range store.List[*gantryv1.InstanceStatus](snap, "") {
		if st.Node == node && !said[st.Meta.Key] {
			stale = append(stale, st)
		}
	}
	h.s.store.Observe(nil, stale)
	var gone []string
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if i.Node == node && !said[i.Meta.Key] && i.Desired == gantryv1.Instance_DESIRED_REMOVED {
			gone = append(gone, i.Meta.Key)
		}
	}
	hello.Removed = append(hello.Removed, gone...)
	return h.report(ctx, node, hello)
}

// leave marks the node as out of reach.
func (h *sessions) leave(node string) {
	st, ok := store.Get[*gantryv1.NodeStatus](h.s.store.Snapshot(), node)
	if !ok {
		return
	}
	c := proto.Clone(st).(*gantryv1.NodeStatus)
	c.State = "down"
	h.s.store.Observe([]store.Object{c}, nil)
}

func (h *sessions) receive(ctx context.Context, node string, stream *sessionStream) error {
	for {
		r, err := stream.Receive()
		if err != nil {
			return err
		}
		if err := h.report(ctx, node, r); err != nil {
			return err
		}
	}
}

// report takes one report: what a node says of instances that are not its own is ignored.
func (h *sessions) report(ctx context.Context, node string, r *gantryv1.NodeReport) error {
	snap := h.s.store.Snapshot()
	var put []store.Object
	for _, st := range r.Statuses {
		if i, ok := store.Get[*gantryv1.Instance](snap, st.GetMeta().GetKey()); ok && i.Node == node {
			st.Node = node
			put = append(put, st)
		}
	}
	if st := r.Status; st != nil && st.GetMeta().GetKey() == node {
		if old, ok := store.Get[*gantryv1.NodeStatus](snap, node); !ok || old.State != st.State {
			put = append(put, st)
		}
	}
	if len(put) > 0 {
		h.s.store.Observe(put, nil)
	}
	if len(r.Removed) == 0 {
		return nil
	}
	return h.forget(ctx, node, r.Removed)
}

// forget removes instances whose node has nothing left of them.
func (h *sessions) forget(ctx context.Context, node string, ids []string) error {
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			i, ok := store.Get[*gantryv1.Instance](tx, id)
			if ok && i.Node == node && i.Desired == gantryv1.Instance_DESIRED_REMOVED {
				store.Delete[*gantryv1.Instance](tx, id)
			}
		}
		return nil
	})
	var gone []store.Object
	for _, id := range ids {
		gone = append(gone, &gantryv1.InstanceStatus{Meta: store.NewMeta(id)})
	}
	h.s.store.Observe(nil, gone)
	return err
}

// send keeps the node up to date: everything once, then differences.
func (h *sessions) send(ctx context.Context, node string, stream *sessionStream) error {
	sub, err := h.s.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	view := &nodeView{node: node, sealer: h.s.o.Sealer, log: h.s.log}
	for full := true; ; full = false {
		if u := view.update(h.s.store.Snapshot(), full); u != nil {
			if err := stream.Send(u); err != nil {
				return err
			}
		}
		if _, err := sub.Next(ctx); err != nil {
			return err
		}
	}
}

// nodeView remembers what a node has been sent.
type nodeView struct {
	node        string
	sealer      Sealer
	log         *slog.Logger
	assignments map[string]string // instance to what its assignment was made from
	endpoints   map[string]*gantryv1.ServiceEndpoints
	networks    map[string]*gantryv1.Network
}

// update is what the node has to be told; nil if nothing.
func (v *nodeView) update(snap *store.ReadTx, full bool) *gantryv1.NodeUpdate {
	u := &gantryv1.NodeUpdate{Full: full}
	u.Node, _ = store.Get[*gantryv1.Node](snap, v.node)
	if full {
		v.assignments = map[string]string{}
		v.endpoints, v.networks = map[string]*gantryv1.ServiceEndpoints{}, map[string]*gantryv1.Network{}
	}
	v.networkChanges(snap, u)
	v.endpointChanges(snap, u)
	v.assignmentChanges(snap, u)
	empty := len(u.Assignments)+len(u.Unassigned)+len(u.Endpoints)+len(u.RemovedEndpoints)+len(u.Networks)+len(u.RemovedNetworks) == 0
	if empty && !full {
		return nil
	}
	return u
}

func (v *nodeView) networkChanges(snap *store.ReadTx, u *gantryv1.NodeUpdate) {
	now := map[string]*gantryv1.Network{}
	for _, n := range store.List[*gantryv1.Network](snap, "") {
		now[n.Meta.Key] = n
		if old := v.networks[n.Meta.Key]; old == nil || old.Meta.Revision != n.Meta.Revision {
			u.Networks = append(u.Networks, n)
		}
	}
	for key := range v.networks {
		if now[key] == nil {
			u.RemovedNetworks = append(u.RemovedNetworks, key)
		}
	}
	v.networks = now
}

func (v *nodeView) endpointChanges(snap *store.ReadTx, u *gantryv1.NodeUpdate) {
	now := endpoints(snap)
	for key, e := range now {
		if old := v.endpoints[key]; old == nil || !proto.Equal(old, e) {
			u.Endpoints = append(u.Endpoints, e)
		}
	}
	for key := range v.endpoints {
		if now[key] == nil {
			u.RemovedEndpoints = append(u.RemovedEndpoints, key)
		}
	}
	v.endpoints = now
}

// endpoints is where every service, and every `gantry run` instance, can be reached.
func endpoints(snap *store.ReadTx) map[string]*gantryv1.ServiceEndpoints {
	out := map[string]*gantryv1.ServiceEndpoints{}
	for _, s := range store.List[*gantryv1.Service](snap, "") {
		spec := s.Spec
		if r, ok := store.Get[*gantryv1.Release](snap, rollout.ReleaseKey(s.Meta.Key, s.Release)); ok {
			spec = r.Spec
		}
		e := serviceEndpoints(s.Meta.Key, s.Environment, s.App, s.Name, spec.GetContainer())
		e.VirtualIp = s.VirtualIp
		if s.Stopped || s.Removing || s.Replicas == 0 {
			e.Ports = nil
		}
		out[s.Meta.Key] = e
	}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		key := progress.Key(i)
		if i.App == "" && out[key] == nil {
			out[key] = serviceEndpoints(key, i.Environment, "", i.Service, i.Spec)
		}
		st, ok := store.Get[*gantryv1.InstanceStatus](snap, i.Meta.Key)
		if e := out[key]; e != nil && ok && st.Address != "" {
			ready := progress.Ready(st) && i.Desired != gantryv1.Instance_DESIRED_REMOVED
			e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{
				Instance: i.Meta.Key, Slot: i.Slot, Address: st.Address, Address6: st.Address6, Node: i.Node, Ready: ready,
			})
		}
	}
	return out
}

func serviceEndpoints(key, env, app, name string, spec *gantryv1.ContainerSpec) *gantryv1.ServiceEndpoints {
	e := &gantryv1.ServiceEndpoints{
		Service: key, Environment: env, App: app, Name: name, Attachments: spec.GetNetwork().GetAttachments(),
	}
	switch spec.GetNetwork().GetKind() {
	case gantryv1.NetworkMode_KIND_UNSPECIFIED, gantryv1.NetworkMode_KIND_BRIDGE:
		e.Ports = spec.GetPorts()
	}
	return e
}

func (v *nodeView) assignmentChanges(snap *store.ReadTx, u *gantryv1.NodeUpdate) {
	now := map[string]string{}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if i.Node != v.node {
			continue
		}
		as := assignment(snap, i)
		if as == nil {
			if mark, sent := v.assignments[i.Meta.Key]; sent {
				now[i.Meta.Key] = mark // it is still there, so its node keeps it as it is
			}
			continue
		}
		mark := madeFrom(snap, as)
		now[i.Meta.Key] = mark
		if v.assignments[i.Meta.Key] == mark {
			continue
		}
		v.contents(snap, as)
		u.Assignments = append(u.Assignments, as)
	}
	for id := range v.assignments {
		if _, ok := now[id]; !ok {
			u.Unassigned = append(u.Unassigned, id)
		}
	}
	v.assignments = now
}

// assignment is an instance with its spec and volumes; nil while its release is not known.
func assignment(snap *store.ReadTx, i *gantryv1.Instance) *gantryv1.Assignment {
	spec := i.Spec
	if i.App != "" && i.Slot > 0 {
		r, ok := store.Get[*gantryv1.Release](snap, rollout.ReleaseKey(progress.Key(i), i.Release))
		if !ok {
			if i.Desired != gantryv1.Instance_DESIRED_REMOVED {
				return nil
			}
			r = &gantryv1.Release{Spec: &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}}}
		}
		spec = r.Spec.Container
	}
	env, _ := store.Get[*gantryv1.Environment](snap, i.Environment)
	as := &gantryv1.Assignment{
		Instance: i, Spec: spec, AllowPrivileged: env.GetSpec().GetAllowPrivileged(), Volumes: map[string]*gantryv1.Volume{},
	}
	for _, m := range spec.GetMounts() {
		if m.Type != gantryv1.Mount_TYPE_VOLUME || m.Source == "" {
			continue
		}
		if vol, ok := store.Get[*gantryv1.Volume](snap, m.Source); ok {
			as.Volumes[m.Source] = vol
		}
	}
	return as
}

// madeFrom names everything an assignment was made from, so that a change of any part is noticed without comparing bytes.
func madeFrom(snap *store.ReadTx, as *gantryv1.Assignment) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d %t", as.Instance.Meta.Revision, as.Instance.Release, as.AllowPrivileged)
	for _, f := range as.Spec.GetSecrets() {
		s, _ := store.Get[*gantryv1.Secret](snap, f.Source)
		fmt.Fprintf(&b, " %s@%d", f.Source, s.GetVersion())
	}
	for _, f := range as.Spec.GetConfigs() {
		c, _ := store.Get[*gantryv1.Config](snap, f.Source)
		fmt.Fprintf(&b, " %s@%d", f.Source, c.GetVersion())
	}
	return b.String()
}

// contents adds the secrets and configs that the instance uses. A secret that cannot be opened is left out: its instance
// fails for want of it, and no other does.
func (v *nodeView) contents(snap *store.ReadTx, as *gantryv1.Assignment) {
	as.Secrets, as.Configs = map[string][]byte{}, map[string][]byte{}
	for _, f := range as.Spec.GetSecrets() {
		s, ok := store.Get[*gantryv1.Secret](snap, f.Source)
		if !ok {
			continue
		}
		plain, err := v.sealer.Open(f.Source, s.Sealed)
		if err != nil {
			v.log.Error("a secret cannot be opened", "secret", f.Source, "instance", as.Instance.Meta.Key, "err", err)
			continue
		}
		as.Secrets[f.Source] = plain
	}
	for _, f := range as.Spec.GetConfigs() {
		if c, ok := store.Get[*gantryv1.Config](snap, f.Source); ok {
			as.Configs[f.Source] = c.Content
		}
	}
}
