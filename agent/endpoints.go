package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/discovery"
	"github.com/gantryd/gantry/network"
)

// endpointState is where every service can be reached, as this node knows it: what the server says of the whole cluster,
// overridden by what the node itself sees of its own instances, so that a dead one leaves the balancing at once.
type endpointState struct {
	node      string
	network   *network.Network
	discovery *discovery.Server

	mu       sync.Mutex
	services map[string]*gantryv1.ServiceEndpoints
	networks map[string]*gantryv1.Network
	nodes    map[string]*gantryv1.Node
	dns      map[string][]string // name servers that instances of this machine are to ask
	local    map[string]*localEndpoint
	merged   map[string]*gantryv1.ServiceEndpoints // services with this machine's instances as they are; what is missing is stale
	ports    map[string]error                      // what kept a service's ports from being published
	filled   map[string][]*gantryv1.PortPublish    // their ports, with those of the host filled in
	told     bool                                  // a server has said how things are; before, the kernel keeps what it has
	news     chan struct{}                         // closed and replaced when a server says something
	heard    uint64                                // updates of servers
	recall   recall
	asked    uint64 // changes made
	done     uint64 // changes that the kernel has

	applying sync.Mutex
}

// localEndpoint is an instance of this machine as its worker sees it.
type localEndpoint struct {
	service  string
	app      string
	endpoint *gantryv1.Endpoint
	left     time.Time // when it ceased to serve; zero if it does, or never has
}

func newEndpointState(n *network.Network, d *discovery.Server, node string) *endpointState {
	return &endpointState{
		node: node, network: n, discovery: d,
		services: map[string]*gantryv1.ServiceEndpoints{}, networks: map[string]*gantryv1.Network{},
		nodes: map[string]*gantryv1.Node{}, dns: map[string][]string{}, local: map[string]*localEndpoint{}, ports: map[string]error{},
		merged: map[string]*gantryv1.ServiceEndpoints{}, news: make(chan struct{}),
	}
}

// update takes what the server says.
func (e *endpointState) update(u *gantryv1.NodeUpdate) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.services
	if u.Full {
		e.services, e.networks = map[string]*gantryv1.ServiceEndpoints{}, map[string]*gantryv1.Network{}
		e.nodes = map[string]*gantryv1.Node{}
		clear(e.merged)
	}
	for _, s := range u.Endpoints {
		e.services[s.Service] = known(s, before[s.Service])
		delete(e.merged, s.Service)
	}
	for _, key := range u.RemovedEndpoints {
		delete(e.services, key)
		delete(e.merged, key)
	}
	for _, n := range u.Networks {
		e.networks[n.Meta.Key] = n
	}
	for _, key := range u.RemovedNetworks {
		delete(e.networks, key)
	}
	for _, n := range u.Nodes {
		e.nodes[n.Meta.Key] = n
	}
	for _, key := range u.RemovedNodes {
		delete(e.nodes, key)
	}
	e.told = true
	e.heard++
	close(e.news)
	e.news = make(chan struct{})
	e.asked++
}

// known is a service of which the server that leads now has not heard some nodes yet: what they have stays where it was.
func known(told, before *gantryv1.ServiceEndpoints) *gantryv1.ServiceEndpoints {
	unheard := func(ep *gantryv1.Endpoint) bool { return ep.Address == "" }
	if !slices.ContainsFunc(told.Endpoints, unheard) {
		return told
	}
	was := map[string]*gantryv1.Endpoint{}
	for _, ep := range before.GetEndpoints() {
		was[ep.Instance] = ep
	}
	out := withPorts(told, told.Ports)
	out.Endpoints = make([]*gantryv1.Endpoint, 0, len(told.Endpoints))
	for _, ep := range told.Endpoints {
		old := was[ep.Instance]
		switch {
		case !unheard(ep):
			out.Endpoints = append(out.Endpoints, ep)
		case old != nil:
			out.Endpoints = append(out.Endpoints, &gantryv1.Endpoint{
				Instance: ep.Instance, Slot: ep.Slot, Address: old.Address, Address6: old.Address6, Node: ep.Node,
				Ready: ep.Ready && old.Ready, Weight: ep.Weight,
			})
		}
	}
	return out
}

// setLocal records an instance of this machine and reports whether its reachability changed.
func (e *endpointState) setLocal(i *gantryv1.Instance, st *gantryv1.InstanceStatus) bool {
	if st.GetAddress() == "" {
		return false
	}
	ep := &gantryv1.Endpoint{
		Instance: i.Meta.Key, Slot: i.Slot, Address: st.Address, Address6: st.Address6, Node: e.node, Ready: serves(i, st),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.local[i.Meta.Key]
	if old != nil && proto.Equal(old.endpoint, ep) {
		return false
	}
	l := &localEndpoint{service: serviceKey(i), app: i.App, endpoint: ep}
	if old != nil && !ep.Ready {
		l.left = old.left
		if old.endpoint.Ready {
			l.left = time.Now()
		}
	}
	e.local[i.Meta.Key] = l
	delete(e.merged, serviceKey(i))
	e.asked++
	return true
}

// serves reports whether an instance takes new connections.
func serves(i *gantryv1.Instance, st *gantryv1.InstanceStatus) bool {
	if st.Phase != gantryv1.InstanceStatus_PHASE_RUNNING || i.Desired == gantryv1.Instance_DESIRED_REMOVED {
		return false
	}
	return st.Health == gantryv1.InstanceStatus_HEALTH_UNSPECIFIED || st.Health == gantryv1.InstanceStatus_HEALTH_HEALTHY
}

// setNameServers records which name servers an instance of this machine asks instead of the machine's. The machine's own
// loopback is not theirs.
func (e *endpointState) setNameServers(id string, spec *gantryv1.ContainerSpec) {
	servers := slices.DeleteFunc(slices.Clone(spec.GetDns()), func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err != nil || a.Unmap().IsLoopback() || a.IsUnspecified()
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Equal(e.dns[id], servers) {
		e.dns[id] = servers
		e.asked++
	}
}

func (e *endpointState) dropLocal(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.dns, id)
	if l, ok := e.local[id]; ok {
		delete(e.local, id)
		delete(e.merged, l.service)
		e.asked++
	}
}

// portError is why the ports of a service could not be published, nil if they are.
func (e *endpointState) portError(service string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ports[service]
}

// apply brings kernel and name server up to all changes made before the call. Calls made meanwhile share one pass.
func (e *endpointState) apply(ctx context.Context, log *slog.Logger) {
	e.mu.Lock()
	want := e.asked
	e.mu.Unlock()
	e.applying.Lock()
	defer e.applying.Unlock()
	e.mu.Lock()
	if e.done >= want && len(e.ports) == 0 || !e.told {
		e.mu.Unlock()
		return
	}
	upTo := e.asked
	state, upstreams := e.state(), maps.Clone(e.dns)
	e.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	ports, filled := e.publish(ctx, state.Endpoints, log)
	err := e.network.Apply(ctx, state)
	e.discovery.Apply(discovery.State{Endpoints: state.Endpoints, Networks: state.Networks, Upstreams: upstreams})
	if err != nil { // run tries again
		log.Error("the kernel's tables could not be brought up to date", "err", err)
		return
	}
	e.mu.Lock()
	e.done, e.ports, e.filled = upTo, ports, filled
	e.mu.Unlock()
}

// state is the server's view with this machine's instances as they are; mu is held. What has not changed is the same object as
// before, by which network and name server know.
func (e *endpointState) state() network.State {
	if len(e.merged) < len(e.services) {
		e.mergeStale()
	}
	out := slices.SortedFunc(maps.Values(e.merged), func(a, b *gantryv1.ServiceEndpoints) int { return strings.Compare(a.Service, b.Service) })
	return network.State{
		Endpoints: out, Networks: slices.Collect(maps.Values(e.networks)), Nodes: slices.Collect(maps.Values(e.nodes)),
	}
}

func (e *endpointState) mergeStale() {
	byService := map[string][]*gantryv1.Endpoint{}
	for _, l := range e.local {
		byService[l.service] = append(byService[l.service], l.endpoint)
	}
	for key, s := range e.services {
		if e.merged[key] != nil {
			continue
		}
		c := withPorts(s, s.Ports)
		c.Endpoints = weighed(byService[key], s.Endpoints)
		for _, ep := range s.Endpoints {
			if ep.Node != e.node {
				c.Endpoints = append(c.Endpoints, ep)
			}
		}
		slices.SortFunc(c.Endpoints, func(a, b *gantryv1.Endpoint) int { return strings.Compare(a.Instance, b.Instance) })
		e.merged[key] = c
	}
}

// withPorts is a service with other ports. What it consists of is shared: nobody changes that.
func withPorts(s *gantryv1.ServiceEndpoints, ports []*gantryv1.PortPublish) *gantryv1.ServiceEndpoints {
	return &gantryv1.ServiceEndpoints{
		Service: s.Service, Environment: s.Environment, App: s.App, Name: s.Name, VirtualIp: s.VirtualIp, Endpoints: s.Endpoints,
		Ports: ports, Attachments: s.Attachments,
	}
}

// weighed gives this machine's endpoints the weights that the server has for them. One that a rollout withholds traffic from
// gets none here either.
func weighed(local, told []*gantryv1.Endpoint) []*gantryv1.Endpoint {
	out := slices.Clone(local)
	for i, ep := range out {
		j := slices.IndexFunc(told, func(t *gantryv1.Endpoint) bool { return t.Instance == ep.Instance })
		if j >= 0 && told[j].Weight != ep.Weight {
			out[i] = proto.Clone(ep).(*gantryv1.Endpoint)
			out[i].Weight, out[i].Ready = told[j].Weight, ep.Ready && told[j].Weight >= 0
		}
	}
	return out
}

// portsHere are the ports of a service that this machine publishes: those in host mode only where an instance runs.
func portsHere(s *gantryv1.ServiceEndpoints, node string) []*gantryv1.PortPublish {
	if slices.ContainsFunc(s.Endpoints, func(ep *gantryv1.Endpoint) bool { return ep.Node == node }) {
		return s.Ports
	}
	return slices.DeleteFunc(slices.Clone(s.Ports), func(p *gantryv1.PortPublish) bool { return p.Mode == "host" })
}

// publish reserves the host ports of every service and fills in those that any free port will do for, in copies of the services.
func (e *endpointState) publish(ctx context.Context, services []*gantryv1.ServiceEndpoints, log *slog.Logger) (map[string]error, map[string][]*gantryv1.PortPublish) {
	failed, filled := map[string]error{}, map[string][]*gantryv1.PortPublish{}
	keep := map[string]bool{}
	for i, s := range services {
		if len(s.Ports) == 0 {
			continue
		}
		services[i] = withPorts(s, nil)
		wanted := portsHere(s, e.node)
		if len(wanted) == 0 {
			continue
		}
		keep[s.Service] = true
		ports, err := e.network.Publish(ctx, s.Service, wanted)
		if err != nil {
			failed[s.Service] = err
			if e.portError(s.Service) == nil {
				log.Warn("the ports of a service cannot be published", "service", s.Service, "err", err)
			}
			continue
		}
		services[i].Ports, filled[s.Service] = ports, ports
	}
	e.network.KeepPublished(keep)
	return failed, filled
}

// published is the ports of a service with host ports filled in.
func (e *endpointState) published(service string) []*gantryv1.PortPublish {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.filled[service]
}

// run tries again what the kernel has refused and what was in the way of a port, until ctx ends.
func (e *endpointState) run(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(retryApply)
	defer tick.Stop()
	keep := func() {
		if err := e.save(); err != nil {
			log.Warn("after a start without a server, names will be those of before", "err", err)
		}
	}
	defer keep()
	for {
		select {
		case <-tick.C:
			if e.due(time.Now()) {
				keep()
			}
			e.mu.Lock()
			behind := e.done < e.asked || len(e.ports) > 0
			e.mu.Unlock()
			if behind {
				e.apply(ctx, log)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

const retryApply = time.Second
