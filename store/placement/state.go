package placement

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// Placed is one instance as the state knows it.
type Placed struct {
	Instance *gantryv1.Instance
	Service  string // key of its service
	Demand   *Demand
	Machine  *Machine // nil while it has none
}

// ID is the instance's key.
func (p *Placed) ID() string { return p.Instance.Meta.Key }

// stays reports that the instance counts for what is to be where.
func (p *Placed) stays() bool { return p.Instance.Desired != gantryv1.Instance_DESIRED_REMOVED }

// State is all machines with what is on them, kept up to date by events. It is not safe in parallel.
type State struct {
	machines  map[string]*Machine
	instances map[string]*Placed
	members   map[string]map[string]*Placed // by service, with and without a node
	services  map[string]*gantryv1.Service
	rules     map[string]*Rules // of services, as far as they have been asked for
	naming    map[string]map[string]bool
	volumes   map[string]string // to the node that holds the data
	fresh     []Pin             // of those, what the store does not know yet
	demands   map[string]*shared
	sorted    []*Machine // nil when it has to be made again
}

// shared is the demand of all instances of one release.
type shared struct {
	demand *Demand
	users  int
}

// NewState reads a whole snapshot.
func NewState(r store.Reader) *State {
	s := &State{
		machines: map[string]*Machine{}, instances: map[string]*Placed{}, members: map[string]map[string]*Placed{},
		services: map[string]*gantryv1.Service{}, rules: map[string]*Rules{}, naming: map[string]map[string]bool{},
		volumes: map[string]string{}, demands: map[string]*shared{},
	}
	each[*gantryv1.Node](s, r)
	each[*gantryv1.NodeStatus](s, r)
	each[*gantryv1.Volume](s, r)
	each[*gantryv1.Service](s, r)
	each[*gantryv1.Instance](s, r)
	return s
}

func each[T store.Object](s *State, r store.Reader) {
	for _, o := range store.List[T](r, "") {
		s.Apply(r, store.Event{New: o})
	}
}

// Apply follows one change. r is the store as it is now: releases are looked up in it.
func (s *State) Apply(r store.Reader, ev store.Event) {
	object := ev.New
	if object == nil {
		object = ev.Old
	}
	key, gone := object.GetMeta().GetKey(), ev.New == nil
	switch o := object.(type) {
	case *gantryv1.Instance:
		s.forget(key)
		if !gone {
			s.learn(r, o)
		}
	case *gantryv1.Node:
		s.node(key, o, gone)
	case *gantryv1.NodeStatus:
		m := s.machine(key)
		m.Status = o
		if gone {
			m.Status = nil
		}
		s.tidy(m)
	case *gantryv1.Volume:
		delete(s.volumes, key)
		if !gone && o.Node != "" {
			s.volumes[key] = o.Node
		}
	case *gantryv1.Service:
		s.service(key, o, gone)
	}
}

// machine is made at the first mention: instances may be heard of before their node.
func (s *State) machine(id string) *Machine {
	m := s.machines[id]
	if m == nil {
		m = &Machine{id: id, Services: map[string]int32{}, Here: map[string]*Placed{}}
		s.machines[id], s.sorted = m, nil
	}
	return m
}

func (s *State) tidy(m *Machine) {
	if m.Node == nil && m.Status == nil && len(m.Here) == 0 {
		delete(s.machines, m.id)
		s.sorted = nil
	}
}

func (s *State) node(id string, n *gantryv1.Node, gone bool) {
	m := s.machine(id)
	if gone {
		n = nil
	}
	if (m.Node == nil) != (n == nil) {
		s.sorted = nil
	}
	m.know(n)
	s.tidy(m)
}

func (s *State) service(key string, o *gantryv1.Service, gone bool) {
	for _, other := range s.services[key].GetSpec().GetPlacement().GetAntiAffinity() {
		delete(s.naming[sibling(s.services[key], other)], key)
	}
	delete(s.rules, key)
	delete(s.services, key)
	if gone {
		return
	}
	s.services[key] = o
	for _, other := range o.GetSpec().GetPlacement().GetAntiAffinity() {
		target := sibling(o, other)
		if s.naming[target] == nil {
			s.naming[target] = map[string]bool{}
		}
		s.naming[target][key] = true
	}
}

func sibling(s *gantryv1.Service, name string) string {
	return s.Environment + "/" + s.App + "/" + name
}

// learn takes in an instance. One whose job is done takes nothing.
func (s *State) learn(r store.Reader, i *gantryv1.Instance) {
	if i.Outcome != "" {
		return
	}
	p := &Placed{Instance: i, Service: ServiceKey(i), Demand: s.demand(r, i)}
	s.instances[p.ID()] = p
	if s.members[p.Service] == nil {
		s.members[p.Service] = map[string]*Placed{}
	}
	s.members[p.Service][p.ID()] = p
	if i.Node != "" {
		s.put(p, s.machine(i.Node))
		s.pin(r, p)
	}
}

// Pin is where the data of a volume is.
type Pin struct{ Volume, Node string }

// pin notes volumes that were given to an instance without the scheduler. Those of a global service are each node's own.
func (s *State) pin(r store.Reader, p *Placed) {
	if len(p.Demand.Volumes) == 0 {
		return
	}
	if o, ok := store.Get[*gantryv1.Service](r, p.Service); ok && IsGlobal(o.Spec) {
		return
	}
	if _, ok := store.Get[*gantryv1.Node](r, p.Instance.Node); !ok {
		return // it has been removed, with what it had
	}
	for _, v := range p.Demand.Volumes {
		if s.volumes[v] == "" {
			s.volumes[v] = p.Instance.Node
			s.fresh = append(s.fresh, Pin{v, p.Instance.Node})
		}
	}
}

// Pins are the volumes whose place the store does not know yet. They are told once.
func (s *State) Pins() []Pin {
	out := s.fresh
	s.fresh = nil
	return out
}

func (s *State) forget(id string) {
	p := s.instances[id]
	if p == nil {
		return
	}
	s.take(p)
	delete(s.instances, id)
	if delete(s.members[p.Service], id); len(s.members[p.Service]) == 0 {
		delete(s.members, p.Service)
	}
	s.release(p.Instance)
}

func (s *State) put(p *Placed, m *Machine) {
	p.Machine = m
	m.Here[p.ID()] = p
	m.Load.add(p.Demand, 1)
	if p.stays() {
		count1(m.Services, p.Service, 1)
	}
}

func (s *State) take(p *Placed) {
	m := p.Machine
	if m == nil {
		return
	}
	delete(m.Here, p.ID())
	m.Load.add(p.Demand, -1)
	if p.stays() {
		count1(m.Services, p.Service, -1)
	}
	p.Machine = nil
	s.tidy(m)
}

// Place assumes that an instance is on a machine, before the store says so. Its volumes are there from now on.
func (s *State) Place(p *Placed, m *Machine) {
	s.put(p, m)
	for _, v := range p.Demand.Volumes {
		if s.volumes[v] == "" {
			s.volumes[v] = m.ID()
			s.fresh = append(s.fresh, Pin{v, m.ID()})
		}
	}
}

// Without calls fn with the state as it would be if an instance had left.
func (s *State) Without(p *Placed, fn func()) {
	m := p.Machine
	s.take(p)
	fn()
	s.put(p, m)
}

// SendAway assumes that an instance is leaving its machine, before the store says so.
func (s *State) SendAway(p *Placed) {
	m := p.Machine
	s.take(p)
	p.Instance = proto.Clone(p.Instance).(*gantryv1.Instance)
	p.Instance.Desired = gantryv1.Instance_DESIRED_REMOVED
	s.put(p, m)
}

// demand is shared by the instances of a release.
func (s *State) demand(r store.Reader, i *gantryv1.Instance) *Demand {
	if i.Spec != nil {
		return DemandOf(i.Spec)
	}
	key := releaseOf(i)
	d := s.demands[key]
	if d == nil {
		rel, _ := store.Get[*gantryv1.Release](r, key)
		d = &shared{demand: DemandOf(rel.GetSpec().GetContainer())}
		s.demands[key] = d
	}
	d.users++
	return d.demand
}

func (s *State) release(i *gantryv1.Instance) {
	if d := s.demands[releaseOf(i)]; i.Spec == nil && d != nil {
		if d.users--; d.users == 0 {
			delete(s.demands, releaseOf(i))
		}
	}
}

// ServiceKey is the key of the service an instance belongs to; that of a `gantry run` instance is its own pseudo service.
func ServiceKey(i *gantryv1.Instance) string { return i.Environment + "/" + i.App + "/" + i.Service }

func releaseOf(i *gantryv1.Instance) string {
	return fmt.Sprintf("%s/%08d", ServiceKey(i), i.Release)
}

// SpecKey is the same for all instances that were made from the same spec.
func SpecKey(i *gantryv1.Instance) string {
	if i.Spec != nil {
		return i.Meta.Key
	}
	return releaseOf(i)
}

// Instance is what the state knows of an instance; nil if there is none that takes anything.
func (s *State) Instance(id string) *Placed { return s.instances[id] }

// Service is the service with the key, nil for `gantry run` instances.
func (s *State) Service(key string) *gantryv1.Service { return s.services[key] }

// Members are the instances of a service.
func (s *State) Members(service string) map[string]*Placed { return s.members[service] }

// Machine is the machine with the ID; nil if none has been heard of.
func (s *State) Machine(id string) *Machine { return s.machines[id] }

// Machines are those that belong to the cluster, in order of their IDs. The slice is not to be changed.
func (s *State) Machines() []*Machine {
	if s.sorted == nil {
		s.sorted = make([]*Machine, 0, len(s.machines))
		for _, m := range s.machines {
			if m.Node != nil {
				s.sorted = append(s.sorted, m)
			}
		}
		slices.SortFunc(s.sorted, func(a, b *Machine) int { return strings.Compare(a.ID(), b.ID()) })
	}
	return s.sorted
}

// Rules are those of the instance's service as it is wanted now.
func (s *State) Rules(service string) *Rules {
	if r := s.rules[service]; r != nil {
		return r
	}
	o := s.services[service]
	if o == nil {
		return &Rules{Service: service}
	}
	r := RulesOf(o.Environment+"/"+o.App, o.Name, o.Spec)
	s.rules[service] = r
	return r
}

// Apart are the services that must not share a machine with one: those it names, and those that name it.
func (s *State) Apart(r *Rules) []string {
	out := slices.Clone(r.Apart)
	for other := range s.naming[r.Service] {
		if !slices.Contains(out, other) {
			out = append(out, other)
		}
	}
	slices.Sort(out)
	return out
}

// Only are the machines that an instance is bound to by the data of its volumes and by the instances whose namespaces it
// shares; bound is false if any will do.
func (s *State) Only(p *Placed) (only map[string]bool, bound bool) {
	narrow := func(to map[string]bool) {
		if bound {
			for id := range only {
				if !to[id] {
					delete(only, id)
				}
			}
			return
		}
		only, bound = to, true
	}
	for _, v := range p.Demand.Volumes {
		if node := s.volumes[v]; node != "" {
			narrow(map[string]bool{node: true})
		}
	}
	for _, target := range p.Demand.Joins {
		narrow(s.peers(p, target))
	}
	return only, bound
}

// peers are the machines with an instance that the target means, as agents look it up: by ID, by the name of a
// `gantry run` instance, or by service with the same slot first.
func (s *State) peers(p *Placed, target string) map[string]bool {
	i := p.Instance
	if o := s.instances[target]; o != nil {
		return homes(o)
	}
	out := map[string]bool{}
	for _, key := range []string{i.Environment + "/" + i.App + "/" + target, i.Environment + "//" + target} {
		for _, o := range s.members[key] {
			if !o.stays() || o.Machine == nil || o == p {
				continue
			}
			if i.Slot > 0 && o.Instance.Slot == i.Slot {
				return homes(o)
			}
			out[o.Machine.ID()] = true
		}
	}
	return out
}

func homes(o *Placed) map[string]bool {
	if o.Machine == nil || !o.stays() {
		return map[string]bool{}
	}
	return map[string]bool{o.Machine.ID(): true}
}
