package rollout

import (
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// index is what the controller remembers of the store, brought up to date by events: a change costs what it concerns.
type index struct {
	entries map[string]*entry // by service key
	owner   map[string]*entry // by instance
	onNode  map[string]map[string]bool
	needs   map[string]map[*entry]bool // who depends on a service
	dirty   map[*entry]bool
	unmade  map[string]*entry // instances that were made and have not been seen yet
	gone    map[string]bool   // instances to be forgotten: wanted gone and on no node
	runs    map[string]bool   // `gantry run --rm`
	apps    map[string]bool   // apps that may have left networks behind
	nodes   map[string]progress.NodeState
}

// entry is one service with its instances; one without a service object holds instances of `gantry run`, or what is left of
// a service.
type entry struct {
	key     string
	service *gantryv1.Service
	op      *gantryv1.Operation
	views   map[string]*gantryv1.InstanceView
	since   map[string]time.Time // when instances were first seen ready
	failing map[string]time.Time // since when instances could not be made
	before  map[string]time.Time // since when they were ready, as an earlier leader has noted
	slots   map[int32][]string   // to instances
	loud    map[int32]struct{}   // slots in which something may be to do; nil for all
	unmade  int                  // its share of index.unmade
	blocked bool                 // waited for a dependency when it was decided last
	again   time.Time            // when to decide again although nothing changes
	after   time.Time            // not to be decided before: deciding it is costly
}

func newIndex() *index {
	return &index{
		entries: map[string]*entry{}, owner: map[string]*entry{}, onNode: map[string]map[string]bool{},
		needs: map[string]map[*entry]bool{}, dirty: map[*entry]bool{}, unmade: map[string]*entry{},
		gone: map[string]bool{}, runs: map[string]bool{}, apps: map[string]bool{},
		nodes: map[string]progress.NodeState{},
	}
}

// read fills the index from a snapshot: everything is to be decided once.
func (x *index) read(snap *store.ReadTx, now time.Time) {
	for _, s := range store.List[*gantryv1.Service](snap, "") {
		x.setService(s)
	}
	for _, op := range store.List[*gantryv1.Operation](snap, "") {
		x.setOperation(nil, op)
	}
	for _, e := range x.entries {
		e.inherit(now)
	}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		x.setInstance(snap, i, now)
	}
	for _, n := range store.List[*gantryv1.Network](snap, "") {
		x.apps[appOf(n.Meta.Key)] = true
	}
	for _, e := range x.entries {
		x.dirty[e] = true
	}
}

func (x *index) entry(key string) *entry {
	e := x.entries[key]
	if e == nil {
		e = &entry{
			key: key, views: map[string]*gantryv1.InstanceView{}, slots: map[int32][]string{},
			since: map[string]time.Time{}, failing: map[string]time.Time{},
		}
		x.entries[key] = e
	}
	return e
}

// absorb takes events in. snap is at least as new as they are.
func (x *index) absorb(snap *store.ReadTx, events []store.Event, now time.Time) {
	for _, ev := range events {
		switch o := either(ev).(type) {
		case *gantryv1.Service:
			x.service(o, ev.New == nil)
		case *gantryv1.App:
			if ev.New == nil {
				x.apps[o.Meta.Key] = true
			}
		case *gantryv1.Operation:
			x.setOperation(ev.Old, ev.New)
		case *gantryv1.Instance:
			x.instance(snap, o, ev, now)
		case *gantryv1.InstanceStatus:
			st, _ := ev.New.(*gantryv1.InstanceStatus)
			x.status(snap, o.Meta.Key, st, now)
		case *gantryv1.Node:
			x.node(snap, o.Meta.Key, now)
		case *gantryv1.NodeStatus:
			if stateOf(ev.Old) != stateOf(ev.New) {
				x.node(snap, o.Meta.Key, now)
			}
		}
	}
}

func either(ev store.Event) store.Object {
	if ev.New != nil {
		return ev.New
	}
	return ev.Old
}

func stateOf(o store.Object) string {
	st, _ := o.(*gantryv1.NodeStatus)
	return st.GetState() + st.GetOs() + st.GetArchitecture()
}

func (x *index) service(s *gantryv1.Service, gone bool) {
	e := x.entry(s.Meta.Key)
	x.mark(e)
	if !gone {
		x.setService(s)
		return
	}
	for _, d := range e.service.GetSpec().GetDependsOn() {
		delete(x.needs[sibling(s, d.Service)], e)
	}
	e.service, e.op = nil, nil
	x.apps[appOf(s.Meta.Key)] = true
	x.drop(e)
}

func (x *index) setService(s *gantryv1.Service) {
	e := x.entry(s.Meta.Key)
	for _, d := range e.service.GetSpec().GetDependsOn() {
		delete(x.needs[sibling(s, d.Service)], e)
	}
	e.service, e.loud = s, nil
	for _, d := range s.GetSpec().GetDependsOn() {
		key := sibling(s, d.Service)
		if x.needs[key] == nil {
			x.needs[key] = map[*entry]bool{}
		}
		x.needs[key][e] = true
	}
}

func sibling(s *gantryv1.Service, name string) string {
	return s.Environment + "/" + s.App + "/" + name
}

// drop forgets an entry that holds nothing.
func (x *index) drop(e *entry) {
	if e.service == nil && e.op == nil && len(e.views) == 0 && e.unmade == 0 {
		delete(x.entries, e.key)
		delete(x.dirty, e)
	}
}

func (x *index) setOperation(was, is store.Object) {
	if is == nil {
		old := was.(*gantryv1.Operation)
		if e := x.entries[old.Subject]; e != nil && e.op.GetNumber() == old.Number {
			e.op = nil
			x.mark(e)
			x.drop(e)
		}
		return
	}
	op := is.(*gantryv1.Operation)
	if e := x.entry(op.Subject); op.Number >= e.op.GetNumber() {
		e.op = op
		x.mark(e)
	}
}

// mark has a service decided, and those that wait for it.
func (x *index) mark(e *entry) {
	x.dirty[e] = true
	for d := range x.needs[e.key] {
		if d.blocked {
			x.dirty[d] = true
		}
	}
}

func (x *index) instance(snap *store.ReadTx, i *gantryv1.Instance, ev store.Event, now time.Time) {
	id := i.Meta.Key
	if e := x.unmade[id]; e != nil {
		e.unmade--
		delete(x.unmade, id)
	}
	if ev.New == nil {
		if e := x.owner[id]; e != nil {
			x.mark(e)
			x.forget(e, id)
		}
		return
	}
	was, _ := ev.Old.(*gantryv1.Instance)
	e := x.setInstance(snap, i, now)
	if was == nil || was.Desired != i.Desired || was.Release != i.Release || was.RestartGeneration != i.RestartGeneration ||
		i.Node != "" && x.nodeState(snap, i.Node) != progress.NodeServes {
		x.mark(e)
	}
}

func (x *index) setInstance(snap *store.ReadTx, i *gantryv1.Instance, now time.Time) *entry {
	id := i.Meta.Key
	e := x.owner[id]
	if e == nil {
		e = x.entry(progress.Key(i))
		x.owner[id] = e
	}
	if old := e.views[id]; old != nil && old.Instance.Node != i.Node {
		delete(x.onNode[old.Instance.Node], id)
	}
	if i.Node != "" {
		if x.onNode[i.Node] == nil {
			x.onNode[i.Node] = map[string]bool{}
		}
		x.onNode[i.Node][id] = true
	}
	if old := e.views[id]; old != nil {
		x.see(e, x.view(snap, i, old.Status), now)
	} else {
		x.see(e, progress.View(snap, i), now)
	}
	if i.AutoRemove {
		x.runs[id] = true
	}
	if i.Desired == removed && i.Node == "" || i.Node != "" && e.service == nil && x.nodeState(snap, i.Node) == progress.NodeRemoved {
		x.gone[id] = true
	}
	return e
}

// see notes how an instance is, and since when it is ready.
func (x *index) see(e *entry, v *gantryv1.InstanceView, now time.Time) {
	id := v.Instance.Meta.Key
	if e.views[id] == nil {
		e.slots[v.Instance.Slot] = append(e.slots[v.Instance.Slot], id)
	}
	e.views[id] = v
	e.touch(v.Instance.Slot)
	e.clock(v, now)
}

func (x *index) forget(e *entry, id string) {
	if v := e.views[id]; v != nil {
		delete(x.onNode[v.Instance.Node], id)
		e.vacate(v.Instance.Slot, id)
	}
	delete(e.views, id)
	delete(e.since, id)
	delete(e.failing, id)
	delete(e.before, id)
	delete(x.owner, id)
	delete(x.runs, id)
	delete(x.gone, id)
	x.drop(e)
}

// nodeState is what a node means for the instances on it.
func (x *index) nodeState(snap *store.ReadTx, id string) progress.NodeState {
	state, ok := x.nodes[id]
	if !ok {
		state = progress.NodeIs(snap, id)
		x.nodes[id] = state
	}
	return state
}

// view joins an instance with what its node said last; nil if that is nothing.
func (x *index) view(snap *store.ReadTx, i *gantryv1.Instance, st *gantryv1.InstanceStatus) *gantryv1.InstanceView {
	if st == nil || st.Phase == gantryv1.InstanceStatus_PHASE_LOST || i.Node != "" && x.nodeState(snap, i.Node) == progress.NodeLost {
		return progress.View(snap, i)
	}
	return &gantryv1.InstanceView{Instance: i, Status: st}
}

// status takes in what a node said of an instance; the service is decided if it makes a difference to it.
func (x *index) status(snap *store.ReadTx, id string, st *gantryv1.InstanceStatus, now time.Time) {
	e := x.owner[id]
	if e == nil {
		return
	}
	old := e.views[id]
	v := x.view(snap, old.Instance, st)
	x.see(e, v, now)
	if meaning(old) != meaning(v) {
		x.mark(e)
	}
}

// judgement is all of a status that decisions look at.
type judgement struct {
	phase        gantryv1.InstanceStatus_Phase
	health       gantryv1.InstanceStatus_Health
	fails, stale bool
}

func meaning(v *gantryv1.InstanceView) judgement {
	return judgement{v.Status.GetPhase(), v.Status.GetHealth(), progress.Failure(v) != "", progress.Stale(v)}
}

// node takes in that a node has changed: all on it is looked at again, and every global service.
func (x *index) node(snap *store.ReadTx, id string, now time.Time) {
	delete(x.nodes, id)
	for i := range x.onNode[id] {
		e := x.owner[i]
		x.setInstance(snap, e.views[i].Instance, now)
		x.mark(e)
	}
	for _, e := range x.entries {
		if e.service != nil && placement.IsGlobal(e.service.Spec) {
			x.mark(e)
		}
	}
}

// made notes an instance that has been stored: its service is not decided before it is seen, or it would be made again.
func (x *index) made(e *entry, id string) {
	if x.owner[id] == nil && x.unmade[id] == nil {
		x.unmade[id] = e
		e.unmade++
	}
}

// due lists the services to be decided now, and says when the next ones will be.
func (x *index) due(now time.Time) (out []*entry, again time.Time) {
	for _, e := range x.entries {
		if !e.again.IsZero() && !now.Before(e.again) {
			x.dirty[e] = true
		}
		if !x.dirty[e] {
			again = store.Sooner(again, e.again)
			continue
		}
		switch {
		case e.unmade > 0:
		case now.Before(e.after):
			again = store.Sooner(again, e.after)
		default:
			out = append(out, e)
			delete(x.dirty, e)
			e.again = time.Time{}
		}
	}
	return out, again
}

// strays reports that the last operation does not lead to the release that the service has.
func (e *entry) strays() bool {
	return e.service != nil && !e.service.Removing && !placement.IsJob(e.service.Spec) &&
		(e.op == nil || rollouts.Goal(e.op) != e.service.Release)
}
