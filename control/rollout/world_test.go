package rollout_test

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store/progress"
)

const (
	phaseRunning = gantryv1.InstanceStatus_PHASE_RUNNING
	phaseExited  = gantryv1.InstanceStatus_PHASE_EXITED
	phasePending = gantryv1.InstanceStatus_PHASE_PENDING
	phaseFailed  = gantryv1.InstanceStatus_PHASE_FAILED

	desiredRunning = gantryv1.Instance_DESIRED_RUNNING
	desiredRemoved = gantryv1.Instance_DESIRED_REMOVED
	desiredStopped = gantryv1.Instance_DESIRED_STOPPED
)

// world is a service with its rollout, its instances and a few nodes, as a store and agents would move them.
type world struct {
	service   *gantryv1.Service
	op        *gantryv1.Operation
	instances []*gantryv1.InstanceView
	nodes     []string
	states    map[string]progress.NodeState
	unsure    map[string]bool // nodes
	pinned    map[string]bool // instances
	bad       map[int64]bool  // releases that do not work
	since     map[string]time.Time
	failing   map[string]time.Time // nil: what cannot be made has failed at once
	blocked   bool
	healed    bool // a node that was lost came back with what it ran
	made      int
	next      int64 // number of the newest release
	now       time.Time
}

func newWorld(replicas int32, update *gantryv1.UpdateConfig) *world {
	w := &world{
		now: time.Unix(1_800_000_000, 0), nodes: []string{"n1", "n2", "n3"}, next: 1,
		states: map[string]progress.NodeState{}, pinned: map[string]bool{}, bad: map[int64]bool{}, since: map[string]time.Time{},
		service: &gantryv1.Service{
			Meta: &gantryv1.Meta{Key: "p/a/web"}, Environment: "p", App: "a", Name: "web", Replicas: replicas, Release: 1,
			Spec: &gantryv1.ServiceSpec{Update: update, Container: &gantryv1.ContainerSpec{}},
		},
	}
	w.op = rollouts.Plan(w.service, 0, "test")
	w.op.State, w.op.Number = operation.Pending, 1
	return w
}

// update begins a rollout to a new release, as the API does.
func (w *world) update() *world {
	from := rollouts.Good(w.op)
	w.next++
	w.service.PreviousRelease, w.service.Release = w.service.Release, w.next
	number := w.op.Number
	w.op = rollouts.Plan(w.service, from, "test")
	w.op.State, w.op.Number = operation.Pending, number+1
	return w
}

// breakNext is update to a release that does not work.
func (w *world) breakNext() *world {
	w.bad[w.next+1] = true
	return w.update()
}

func (w *world) input() rollout.Input {
	for _, i := range w.instances {
		id := i.Instance.Meta.Key
		if !progress.Ready(i.Status) {
			delete(w.since, id)
		} else if w.since[id].IsZero() {
			w.since[id] = w.now
		}
		if i.Status.Phase != phaseFailed {
			delete(w.failing, id)
		} else if w.failing != nil && w.failing[id].IsZero() {
			w.failing[id] = w.now
		}
	}
	var eligible []string
	for _, n := range w.nodes {
		if w.states[n] == progress.NodeServes || w.states[n] == progress.NodeLost {
			eligible = append(eligible, n)
		}
	}
	in := rollout.Input{
		Service: w.service, Release: &gantryv1.Release{Number: w.service.Release, Spec: w.service.Spec}, Operation: w.op,
		From: w.op.GetRollout().GetFrom() != 0, Instances: w.instances, Blocked: w.blocked, Eligible: eligible,
		Unsure: func(id string) bool { return w.unsure[id] },
		Node:   func(id string) progress.NodeState { return w.states[id] },
		Pinned: func(i *gantryv1.Instance) bool { return w.pinned[i.Meta.Key] },
		Ready:  func(id string) time.Time { return w.since[id] },
		Now:    w.now,
	}
	if w.failing != nil {
		in.Failing = func(id string) time.Time { return w.failing[id] }
	}
	return in
}

func (w *world) decide() rollout.Plan {
	return rollout.Decide(w.input())
}

// step decides and applies once; it reports whether anything changed.
func (w *world) step(t rapid.TB) bool {
	t.Helper()
	plan := w.decide()
	w.apply(t, plan, len(plan.Changes))
	return plan.Operation != nil || len(plan.Changes) > 0
}

// crash applies only the first of a plan's changes, and forgets what only the leader knew.
func (w *world) crash(t rapid.TB, changes int) {
	t.Helper()
	plan := w.decide()
	w.apply(t, plan, min(changes, len(plan.Changes)))
	clear(w.since)
	clear(w.failing)
}

func (w *world) apply(t rapid.TB, plan rollout.Plan, changes int) {
	t.Helper()
	if plan.Operation != nil {
		w.op = plan.Operation
	}
	turned := slices.ContainsFunc(plan.Changes, func(c rollout.Change) bool { return c.Action == rollout.PointTo })
	for n, c := range plan.Changes {
		lead := c.Action == rollout.PointTo || c.Action == rollout.Weigh // stored together with the operation
		if (n >= changes || turned) && !lead {                           // else decided anew
			continue
		}
		switch c.Action {
		case rollout.Create:
			w.create(c)
		case rollout.SetDesired:
			w.want(t, c)
		case rollout.Restart:
			w.find(t, c.Instance).Instance.RestartGeneration = w.service.RestartGeneration
		case rollout.Forget:
			w.find(t, c.Instance)
			w.drop(c.Instance)
		case rollout.PointTo:
			w.service.Release, w.service.PreviousRelease = c.Release, 0
		case rollout.Weigh:
			w.service.Weights = c.Weights
		}
	}
}

func (w *world) create(c rollout.Change) {
	w.made++
	w.instances = append(w.instances, &gantryv1.InstanceView{
		Instance: &gantryv1.Instance{
			Meta: &gantryv1.Meta{Key: fmt.Sprint("i", w.made), CreatedAt: timestamppb.New(w.now.Add(time.Duration(w.made)))},
			Slot: c.Slot, Release: c.Release, Node: c.Node, Desired: desiredRunning, Service: "web", App: "a",
		},
		Status: &gantryv1.InstanceStatus{Phase: phasePending},
	})
}

// want does what the controller does: what has never been placed goes at once, what is to go stays so.
func (w *world) want(t rapid.TB, c rollout.Change) {
	t.Helper()
	i := w.find(t, c.Instance)
	switch {
	case c.Desired == desiredRemoved && i.Instance.Node == "":
		w.drop(c.Instance)
	case i.Instance.Desired != desiredRemoved:
		i.Instance.Desired = c.Desired
	}
}

func (w *world) find(t rapid.TB, id string) *gantryv1.InstanceView {
	t.Helper()
	for _, i := range w.instances {
		if i.Instance.Meta.Key == id {
			return i
		}
	}
	t.Fatalf("the plan names the unknown instance %s", id)
	return nil
}

func (w *world) drop(id string) {
	for n, i := range w.instances {
		if i.Instance.Meta.Key == id {
			w.instances = append(w.instances[:n:n], w.instances[n+1:]...)
			return
		}
	}
}

// node places an instance or brings it as far as it is wanted; it reports whether anything changed.
func (w *world) node(i *gantryv1.InstanceView) bool {
	if i.Instance.Node == "" {
		i.Instance.Node = w.lightest()
		return i.Instance.Node != ""
	}
	if s := w.states[i.Instance.Node]; s == progress.NodeLost || s == progress.NodeRemoved {
		return false
	}
	was := i.Status.Phase
	switch i.Instance.Desired {
	case desiredRemoved:
		w.drop(i.Instance.Meta.Key)
		return true
	case desiredStopped:
		i.Status = &gantryv1.InstanceStatus{Phase: phaseExited, ExitCode: 143}
	default:
		i.Status = &gantryv1.InstanceStatus{Phase: phaseRunning}
		if w.bad[i.Instance.Release] {
			i.Status = &gantryv1.InstanceStatus{Phase: phaseFailed, Error: "does not work"}
		}
	}
	return i.Status.Phase != was
}

// lightest is the serving node with the fewest instances.
func (w *world) lightest() string {
	load := map[string]int{}
	for _, i := range w.instances {
		load[i.Instance.Node]++
	}
	best := ""
	for _, n := range w.nodes {
		if w.states[n] == progress.NodeServes && (best == "" || load[n] < load[best]) {
			best = n
		}
	}
	return best
}

// lose has a node go down: its server calls what is on it lost.
func (w *world) lose(node string) {
	w.states[node] = progress.NodeLost
	for _, i := range w.instances {
		if i.Instance.Node == node {
			i.Status = proto.CloneOf(i.Status)
			i.Status.Phase = gantryv1.InstanceStatus_PHASE_LOST
		}
	}
}

// heal brings a node back, with what it ran before.
func (w *world) heal(node string) {
	w.states[node], w.healed = progress.NodeServes, true
	for _, i := range w.instances {
		if i.Instance.Node == node {
			i.Status = &gantryv1.InstanceStatus{Phase: phaseRunning}
		}
	}
}

// round is a second in which everybody acts once.
func (w *world) round(t rapid.TB) (changed bool) {
	t.Helper()
	changed = w.step(t)
	for _, i := range append([]*gantryv1.InstanceView(nil), w.instances...) {
		changed = w.node(i) || changed
	}
	w.now = w.now.Add(time.Second)
	return changed
}

// settle lets everything go on until nothing moves any more.
func (w *world) settle(t rapid.TB) {
	t.Helper()
	for range 3000 {
		changed := w.round(t)
		if plan := w.decide(); !changed && plan.Operation == nil && len(plan.Changes) == 0 && plan.Again.IsZero() {
			return
		}
	}
	t.Fatalf("did not settle: %s", w)
}

// count counts instances that are wanted, of a release, in a phase.
func (w *world) count(release int64, phase gantryv1.InstanceStatus_Phase) int {
	n := 0
	for _, i := range w.instances {
		if i.Instance.Release == release && i.Status.Phase == phase && i.Instance.Desired == desiredRunning {
			n++
		}
	}
	return n
}

// serving counts slots in which something takes connections.
func (w *world) serving() int {
	slots := map[int32]bool{}
	for _, i := range w.instances {
		if progress.Ready(i.Status) {
			slots[i.Instance.Slot] = true
		}
	}
	return len(slots)
}

// String shows the world when a test fails.
func (w *world) String() string {
	out := fmt.Sprintf("release %d of %d, %d replicas, %v\n", w.service.Release, w.next, w.service.Replicas, w.op)
	for _, i := range w.instances {
		out += fmt.Sprintf("  %s slot %d release %d on %s: %s, wanted %s\n", i.Instance.Meta.Key, i.Instance.Slot, i.Instance.Release,
			i.Instance.Node, i.Status.Phase, i.Instance.Desired)
	}
	return out
}
