package nodesession

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/silence"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// term is one time of leading: the index over the store's objects, and the sessions.
type term struct {
	hub *Hub

	mu        sync.Mutex
	ended     error
	sessions  int
	nodes     map[string]*node
	services  map[string]*service
	instances map[string]*instance
	scopes    map[string]*scope // by network key
	ingress   map[*service]struct{}
	networks  map[string]*gantryv1.Network
	machines  *topic
	objects   *machineSet // what machines is about
	servers   []string
	cluster   *gantryv1.Cluster
	times     silence.Times
	users     map[string]map[*session]struct{} // of secrets and the like, by path
	pending   map[*topic]struct{}              // topics with changes that no log has yet
}

// node is what the index knows of a machine.
type node struct {
	id        string
	instances map[string]*instance
	hosts     map[*service]int // instances of the service here
	scopes    map[string]int   // networks of those services
	needs     map[*service]int // reasons why the node has to know the service
	session   *session
	status    *gantryv1.NodeStatus // as it is in the store

	heard time.Time
	state string               // ready, suspect, down; empty as long as nothing is known
	late  bool                 // nothing was ever heard, for so long that it would be suspect
	said  *gantryv1.NodeStatus // by the node, with the last news in it
	ahead time.Duration        // its clock against ours, at that time
}

// scope is who is in a network.
type scope struct {
	services map[*service]struct{}
	nodes    map[*node]struct{}
}

// instance is one instance with what its node says of it.
type instance struct {
	object   *gantryv1.Instance
	status   *gantryv1.InstanceStatus
	service  *service
	endpoint *gantryv1.Endpoint // nil while it has no address
}

func newTerm(h *Hub) *term {
	objects := newMachineSet()
	return &term{
		hub: h, nodes: map[string]*node{}, services: map[string]*service{}, instances: map[string]*instance{},
		scopes: map[string]*scope{}, ingress: map[*service]struct{}{}, objects: objects,
		networks: map[string]*gantryv1.Network{}, machines: newTopic(objects),
		users: map[string]map[*session]struct{}{}, pending: map[*topic]struct{}{}, times: silence.After(0, 0),
	}
}

// load makes the index from a snapshot.
func (t *term) load(r *store.ReadTx) {
	t.mu.Lock()
	defer t.mu.Unlock()
	loadKind[*gantryv1.Cluster](t, r)
	loadKind[*gantryv1.Node](t, r)
	loadKind[*gantryv1.Network](t, r)
	loadKind[*gantryv1.Service](t, r)
	loadKind[*gantryv1.Instance](t, r)
	loadKind[*gantryv1.InstanceStatus](t, r)
	loadKind[*gantryv1.NodeStatus](t, r)
	t.flush(time.Now())
}

func loadKind[T store.Object](t *term, r *store.ReadTx) {
	for _, o := range store.List[T](r, "") {
		t.event(store.Event{New: o})
	}
}

// run follows the store until ctx ends.
func (t *term) run(ctx context.Context, sub *store.Subscription) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	looked := time.Now()
	var later *time.Timer
	for {
		if later != nil {
			later.Stop()
		}
		later = time.NewTimer(t.hold(time.Now()))
		select {
		case <-sub.Wake():
			events, err := sub.Take()
			if err != nil {
				return err
			}
			t.apply(events)
		case <-later.C:
			t.apply(nil)
		case <-ticker.C:
			now := time.Now()
			t.watch(now, now.Sub(looked))
			looked = now
		case <-ctx.Done():
			return nil
		}
	}
}

// apply takes the store's events and has what changed logged for the sessions.
func (t *term) apply(events []store.Event) {
	t.mu.Lock()
	var stray []store.Object
	for _, e := range events {
		if o := t.event(e); o != nil {
			stray = append(stray, o)
		}
	}
	t.flush(time.Now())
	t.mu.Unlock()
	if len(stray) > 0 {
		t.hub.store.Observe(nil, stray)
	}
}

// event takes one; it returns an observation of something that is gone, to be forgotten.
func (t *term) event(e store.Event) store.Object {
	o := e.New
	if o == nil {
		o = e.Old
	}
	gone := e.New == nil
	switch o := o.(type) {
	case *gantryv1.Instance:
		return t.instanceChanged(o, gone)
	case *gantryv1.InstanceStatus:
		return t.statusChanged(o, gone)
	case *gantryv1.Service:
		t.serviceChanged(o, gone)
	case *gantryv1.Release:
		t.releaseChanged(o)
		t.used("Release/" + o.Meta.Key)
	case *gantryv1.Network:
		t.networkChanged(o, gone)
	case *gantryv1.Node:
		return t.nodeChanged(o, gone)
	case *gantryv1.NodeStatus:
		t.nodeStatusChanged(o, gone)
	case *gantryv1.Cluster:
		t.clusterChanged(o, gone)
	case *gantryv1.Secret:
		t.used("Secret/" + o.Meta.Key)
	case *gantryv1.Config:
		t.used("Config/" + o.Meta.Key)
	case *gantryv1.Environment:
		t.used("Environment/" + o.Meta.Key)
	}
	return nil
}

// used has the sessions look again at what they made of an object.
func (t *term) used(path string) {
	for s := range t.users[path] {
		s.recheck = true
		s.urge()
	}
}

func (t *term) clusterChanged(c *gantryv1.Cluster, gone bool) {
	t.cluster = nil
	if !gone {
		t.cluster = proto.Clone(c).(*gantryv1.Cluster)
		t.cluster.SealedKey = nil // it signs certificates: no node has to have it
	}
	t.setTimes(silence.After(c.GetSuspectAfter().AsDuration(), c.GetDownAfter().AsDuration()))
	for _, n := range t.nodes {
		if n.session != nil {
			n.session.cluster = true
			n.session.urge()
		}
	}
}

// setTimes has shorter times count for nodes from when they could have heard of them.
func (t *term) setTimes(now silence.Times) {
	if now.Suspect < t.times.Suspect || now.Down < t.times.Down {
		for _, n := range t.nodes {
			n.heard = time.Now()
		}
	}
	t.times = now
}

func (t *term) nodeChanged(o *gantryv1.Node, gone bool) store.Object {
	n := t.node(o.Meta.Key)
	if t.objects.nodes[o.Meta.Key] == nil {
		n.heard = time.Now()
	}
	t.objects.set(o, gone)
	t.touch(t.machines, o.Meta.Key)
	t.serversChanged()
	if n.session != nil && gone {
		n.session.cancel(errStranger(n.id))
	} else if n.session != nil {
		n.session.self = true
		n.session.urge()
	}
	if !gone {
		return nil
	}
	n.state, n.said, n.late = "", nil, false
	t.tidyNode(n)
	if n.status == nil {
		return nil
	}
	return n.status
}

// tidyNode drops the entry of a machine that is none of the cluster's any more.
func (t *term) tidyNode(n *node) {
	if t.objects.nodes[n.id] == nil && n.session == nil && len(n.instances) == 0 {
		delete(t.nodes, n.id)
	}
}

func (t *term) serversChanged() {
	var servers []string
	for _, o := range t.objects.nodes {
		if o.Role == "server" && o.ApiAddress != "" {
			servers = append(servers, o.ApiAddress)
		}
	}
	slices.Sort(servers)
	if slices.Equal(servers, t.servers) {
		return
	}
	t.servers = servers
	for _, n := range t.nodes {
		if n.session != nil {
			n.session.servers = true
			n.session.urge()
		}
	}
}

func (t *term) nodeStatusChanged(o *gantryv1.NodeStatus, gone bool) {
	n := t.nodes[o.Meta.Key]
	if n == nil {
		return
	}
	was := n.status.GetState()
	n.status = o
	if gone {
		n.status = nil
	}
	now := n.status.GetState()
	if was == now {
		return
	}
	for _, i := range n.instances {
		t.endpointChanged(i)
	}
	if was == stateSuspect || now == stateSuspect {
		t.doubt(n)
	}
}

// doubt has the services of a node look again at whether it is to get new connections.
func (t *term) doubt(n *node) {
	for _, i := range n.instances {
		i.service.weighed = true
		t.pending[i.service.topic] = struct{}{}
	}
}

// node finds or makes the entry of a machine.
func (t *term) node(id string) *node {
	n := t.nodes[id]
	if n == nil {
		n = &node{id: id, instances: map[string]*instance{}, hosts: map[*service]int{}, scopes: map[string]int{},
			needs: map[*service]int{}, heard: time.Now()}
		t.nodes[id] = n
		for s := range t.ingress {
			t.need(n, s)
		}
	}
	return n
}

func (t *term) instanceChanged(o *gantryv1.Instance, gone bool) store.Object {
	id := o.Meta.Key
	i := t.instances[id]
	if gone {
		if i == nil {
			return nil
		}
		t.dropInstance(id, i)
		if i.status != nil {
			return i.status
		}
		return nil
	}
	if i == nil {
		i = &instance{service: t.service(progress.Key(o))}
		i.service.instances[id] = i
		t.instances[id] = i
	}
	was := i.object
	i.object = o
	if was.GetNode() != o.Node {
		t.unplace(id, i, was.GetNode())
		t.place(id, i)
	}
	t.tell(id, o.Node)
	if o.App == "" {
		t.headerChanged(i.service)
	}
	t.endpointChanged(i)
	return nil
}

// tell has a node's session look at one instance.
func (t *term) tell(id, at string) {
	n := t.nodes[at]
	if n == nil || n.session == nil {
		return
	}
	n.session.dirty[id] = struct{}{}
	n.session.urge()
}

func (t *term) dropInstance(id string, i *instance) {
	t.unplace(id, i, i.object.Node)
	t.tell(id, i.object.Node)
	delete(t.instances, id)
	delete(i.service.instances, id)
	if i.endpoint != nil {
		t.touch(i.service.topic, id)
	}
	if i.object.App == "" {
		t.headerChanged(i.service)
	}
	t.tidy(i.service)
}

func (t *term) place(id string, i *instance) {
	if i.object.Node == "" {
		return
	}
	n := t.node(i.object.Node)
	n.instances[id] = i
	if n.hosts[i.service]++; n.hosts[i.service] == 1 {
		t.need(n, i.service)
		for _, network := range i.service.networks {
			t.enter(n, network)
		}
	}
}

func (t *term) unplace(id string, i *instance, from string) {
	n := t.nodes[from]
	if n == nil || n.instances[id] == nil {
		return
	}
	delete(n.instances, id)
	if n.hosts[i.service]--; n.hosts[i.service] == 0 {
		delete(n.hosts, i.service)
		for _, network := range i.service.networks {
			t.leave(n, network)
		}
		t.unneed(n, i.service)
	}
	t.tidyNode(n)
}

func (t *term) statusChanged(o *gantryv1.InstanceStatus, gone bool) store.Object {
	i := t.instances[o.Meta.Key]
	if i == nil {
		if _, ok := store.Get[*gantryv1.Instance](t.hub.store.Live(), o.Meta.Key); !ok && !gone {
			return o // it came after its instance had gone
		}
		return nil
	}
	i.status = o
	if gone {
		i.status = nil
	}
	t.endpointChanged(i)
	return nil
}

// end ends all sessions.
func (t *term) end(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = cause
	for _, n := range t.nodes {
		if n.session != nil {
			n.session.cancel(cause)
		}
	}
}
