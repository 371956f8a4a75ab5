package nodesession

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/ports"
	"github.com/gantryd/gantry/store/progress"
)

// service is where one service, or one `gantry run` instance, can be reached. It is the content of its topic.
type service struct {
	term      *term
	key       string
	object    *gantryv1.Service // nil for `gantry run`, and when it is gone before its instances
	header    *gantryv1.ServiceEndpoints
	networks  []string
	ingress   bool
	instances map[string]*instance
	endpoints int
	weighed   bool // its endpoints carry weights
	topic     *topic
}

// service finds or makes the entry of a service.
func (t *term) service(key string) *service {
	s := t.services[key]
	if s == nil {
		s = &service{term: t, key: key, instances: map[string]*instance{}}
		s.topic = newTopic(s)
		t.services[key] = s
	}
	return s
}

// tidy drops a service that nothing is left of.
func (t *term) tidy(s *service) {
	if s.object == nil && len(s.instances) == 0 && t.services[s.key] == s {
		t.setHeader(s, nil)
		delete(t.services, s.key)
		delete(t.pending, s.topic)
	}
}

func (t *term) serviceChanged(o *gantryv1.Service, gone bool) {
	s := t.service(o.Meta.Key)
	s.object = o
	if gone {
		s.object = nil
	}
	t.headerChanged(s)
	if s.weighed || len(o.Weights) > 0 {
		s.weighed = true
		t.pending[s.topic] = struct{}{}
	}
	t.tidy(s)
}

func (t *term) releaseChanged(r *gantryv1.Release) {
	if s := t.services[r.Service]; s != nil && s.object != nil && s.object.Release == r.Number {
		t.headerChanged(s)
	}
}

// headerChanged makes anew what does not depend on the service's instances.
func (t *term) headerChanged(s *service) {
	switch {
	case s.object != nil:
		t.setHeader(s, t.serviceHeader(s.object))
	default:
		t.setHeader(s, runHeader(s))
	}
}

func (t *term) serviceHeader(o *gantryv1.Service) *gantryv1.ServiceEndpoints {
	spec := o.Spec
	if r, ok := store.Get[*gantryv1.Release](t.hub.store.Live(), progress.ReleaseKey(o.Meta.Key, o.Release)); ok {
		spec = r.Spec
	}
	h := header(o.Meta.Key, o.Environment, o.App, o.Name, spec.GetContainer())
	h.VirtualIp, h.Ports = o.VirtualIp, ports.Fill(h.Ports, o.Published)
	if o.Stopped || o.Removing || o.Replicas == 0 && o.GetSpec().GetMode() != "global" {
		h.Ports = nil
	}
	return h
}

// runHeader is of a `gantry run` instance; nil if there is none. One that is on its way out counts if there is no other.
func runHeader(s *service) *gantryv1.ServiceEndpoints {
	var chosen *gantryv1.Instance
	for _, i := range s.instances {
		o := i.object
		if o.App == "" && (chosen == nil || o.Desired != gantryv1.Instance_DESIRED_REMOVED) {
			chosen = o
		}
	}
	if chosen == nil {
		return nil
	}
	return header(s.key, chosen.Environment, "", chosen.Service, chosen.Spec)
}

func header(key, env, app, name string, spec *gantryv1.ContainerSpec) *gantryv1.ServiceEndpoints {
	h := &gantryv1.ServiceEndpoints{
		Service: key, Environment: env, App: app, Name: name, Attachments: spec.GetNetwork().GetAttachments(),
	}
	switch spec.GetNetwork().GetKind() {
	case gantryv1.NetworkMode_KIND_UNSPECIFIED, gantryv1.NetworkMode_KIND_BRIDGE:
		h.Ports = spec.GetPorts()
	}
	return h
}

// networkChanged has those who know a service in the network hear of it.
func (t *term) networkChanged(o *gantryv1.Network, gone bool) {
	t.networks[o.Meta.Key] = o
	if gone {
		delete(t.networks, o.Meta.Key)
	}
	if sc := t.scopes[o.Meta.Key]; sc != nil {
		for s := range sc.services {
			t.renew(s.topic)
		}
	}
}

// setHeader publishes a service, or takes it back with nil, and sees to who has to know it.
func (t *term) setHeader(s *service, h *gantryv1.ServiceEndpoints) {
	if proto.Equal(s.header, h) {
		return
	}
	s.header = h
	t.renew(s.topic)
	t.setNetworks(s, networksOf(h))
	if ingress := publishes(h); ingress != s.ingress {
		s.ingress = ingress
		if ingress {
			t.open(s)
		} else {
			t.shut(s)
		}
	}
	for _, n := range t.nodes {
		if n.session == nil || n.needs[s] == 0 {
			continue
		}
		if h == nil {
			t.unsubscribe(n, s)
		} else {
			t.subscribe(n, s)
		}
	}
}

func (t *term) setNetworks(s *service, networks []string) {
	was := s.networks
	s.networks = networks
	for _, n := range networks {
		if !slices.Contains(was, n) {
			t.attachService(s, n)
		}
	}
	for _, n := range was {
		if !slices.Contains(networks, n) {
			t.detachService(s, n)
		}
	}
}

// networksOf lists the networks in which a service can be seen. One of another environment does not count.
func networksOf(h *gantryv1.ServiceEndpoints) []string {
	var out []string
	for _, at := range h.GetAttachments() {
		if env, _, _ := strings.Cut(at.Network, "/"); env == h.Environment && !slices.Contains(out, at.Network) {
			out = append(out, at.Network)
		}
	}
	return out
}

// publishes reports that every node answers for a port of the service.
func publishes(h *gantryv1.ServiceEndpoints) bool {
	return slices.ContainsFunc(h.GetPorts(), func(p *gantryv1.PortPublish) bool { return p.Mode != "host" })
}

// endpointChanged works out where an instance can be reached and has it logged if that has changed.
func (t *term) endpointChanged(i *instance) {
	now := t.endpoint(i)
	if sameEndpoint(i.endpoint, now) {
		return
	}
	switch {
	case i.endpoint == nil:
		i.service.endpoints++
	case now == nil:
		i.service.endpoints--
	}
	i.endpoint = now
	t.touch(i.service.topic, i.object.Meta.Key)
}

// endpoint is nil for an instance without address. Nobody is sent to one on a node that is down. What a node says is lost with
// the server that led; until it has said it to this one, nodes go on with the address that they know.
func (t *term) endpoint(i *instance) *gantryv1.Endpoint {
	st, n := i.status, t.nodes[i.object.Node]
	if i.object.Node == "" || st.GetAddress() == "" && n.status != nil {
		return nil
	}
	wanted := i.object.Desired != gantryv1.Instance_DESIRED_REMOVED
	return &gantryv1.Endpoint{
		Instance: i.object.Meta.Key, Slot: i.object.Slot, Address: st.GetAddress(), Address6: st.GetAddress6(), Node: i.object.Node,
		Ready: wanted && (st.GetAddress() == "" || progress.Ready(st) && n.status.GetState() != stateDown),
	}
}

// sameEndpoint leaves weights out: they are worked out for all endpoints of a service together.
func sameEndpoint(a, b *gantryv1.Endpoint) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Ready == b.Ready && a.Address == b.Address && a.Address6 == b.Address6 && a.Node == b.Node && a.Slot == b.Slot
}

// weigh gives the share of each ready instance while a rollout holds traffic: percents of the service are divided among
// the instances of a release. Those on suspect nodes get nothing new while another is ready elsewhere. It returns the instances
// whose weight has changed.
func (s *service) weigh() []string {
	if !s.weighed {
		return nil
	}
	weights := s.object.GetWeights()
	shares := s.shares(weights)
	suspect, avoided := s.suspicion(shares)
	s.weighed = len(weights) > 0 || suspect
	var changed []string
	for id, i := range s.instances {
		if i.endpoint == nil {
			continue
		}
		w := shares[i.object.Release]
		if avoided && s.term.suspects(i) {
			w = withheld
		}
		if i.endpoint.Weight != w {
			e := proto.Clone(i.endpoint).(*gantryv1.Endpoint)
			e.Weight = w
			i.endpoint = e
			changed = append(changed, id)
		}
	}
	return changed
}

// suspicion reports whether instances are on suspect nodes, and whether another one can do their work.
func (s *service) suspicion(shares map[int64]int32) (suspect, avoided bool) {
	for _, i := range s.instances {
		switch {
		case i.endpoint == nil:
		case s.term.suspects(i):
			suspect = true
		case i.endpoint.Ready && shares[i.object.Release] != withheld:
			avoided = true
		}
	}
	return suspect, avoided
}

// suspects reports whether the node of an instance is silent for longer than it should be.
func (t *term) suspects(i *instance) bool {
	n := t.nodes[i.object.Node]
	return n.late || n.status.GetState() == stateSuspect
}

const weightUnit = 100 // so that a percent of a large release is not rounded away

// shares is the weight of one instance of each release; an empty result weighs all alike. A release with 0 percent is
// withheld while another is ready.
func (s *service) shares(weights map[int64]int32) map[int64]int32 {
	if len(weights) == 0 {
		return nil
	}
	ready, rest, others := map[int64]int32{}, int32(100), int32(0)
	for _, i := range s.instances {
		if i.endpoint.GetReady() {
			ready[i.object.Release]++
		}
	}
	for release, n := range ready {
		if w, named := weights[release]; named {
			rest -= w
		} else {
			others += n
		}
	}
	out := map[int64]int32{}
	for release, n := range ready {
		w, named := weights[release]
		switch {
		case named && w == 0 && (others > 0 || rest < 100):
			out[release] = withheld
		case !named && rest <= 0:
			out[release] = withheld
		case named:
			out[release] = max(1, w*weightUnit/n)
		default:
			out[release] = max(1, rest*weightUnit/others)
		}
	}
	return out
}

// withheld is the weight of an endpoint that gets no new connections.
const withheld = -1

// full is part of content. The networks that the service is in go with it.
func (s *service) full() []fragment {
	if s.header == nil {
		return nil
	}
	u := &gantryv1.NodeUpdate{Endpoints: []*gantryv1.ServiceEndpoints{proto.Clone(s.header).(*gantryv1.ServiceEndpoints)}}
	for _, network := range s.networks {
		if o := s.term.networks[network]; o != nil {
			u.Networks = append(u.Networks, o)
		}
	}
	keys := make([]string, 0, len(s.instances))
	for id, i := range s.instances {
		if i.endpoint != nil {
			keys = append(keys, id)
		}
	}
	return s.encode(u, keys)
}

// delta is part of content.
func (s *service) delta(keys []string) []fragment {
	return s.encode(s.difference(), keys)
}

func (s *service) difference() *gantryv1.NodeUpdate {
	return &gantryv1.NodeUpdate{Endpoints: []*gantryv1.ServiceEndpoints{{Service: s.key, Delta: true}}}
}

// encode puts endpoints into as many messages as keep each small, of which u is the first.
func (s *service) encode(u *gantryv1.NodeUpdate, keys []string) []fragment {
	slices.Sort(keys)
	var out []fragment
	for n, id := range keys {
		if n > 0 && n%endpointsPerFragment == 0 {
			out = append(out, encode(u))
			u = s.difference()
		}
		e := u.Endpoints[0]
		if i := s.instances[id]; i == nil || i.endpoint == nil {
			e.Removed = append(e.Removed, id)
		} else {
			e.Endpoints = append(e.Endpoints, outward(i.endpoint))
		}
	}
	return append(out, encode(u))
}

const endpointsPerFragment = 500

// outward is an endpoint as nodes are told of it.
func outward(e *gantryv1.Endpoint) *gantryv1.Endpoint {
	if e.Weight != withheld {
		return e
	}
	c := proto.Clone(e).(*gantryv1.Endpoint)
	c.Ready = false
	return c
}

// size is part of content.
func (s *service) size() int { return s.endpoints }

// settle is part of content.
func (s *service) settle() []string { return s.weigh() }
