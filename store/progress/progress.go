// Package progress judges how far services are: which instances are ready, what a service waits for, why it cannot go on.
//
// All functions are pure: they look at a snapshot of the store and nothing else. The rollout controller decides by them and
// the API shows them, so that both always agree.
package progress

import (
	"cmp"
	"fmt"
	"sort"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// crashLoop is the number of restarts in a row from which a service counts as failing to come up.
const crashLoop = 3

// ByService groups the instances of services by their service's key, of all whose key begins so: "env/app/" for an app.
func ByService(r store.Reader, prefix string) map[string][]*gantryv1.InstanceView {
	out := map[string][]*gantryv1.InstanceView{}
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		if key := Key(i); strings.HasPrefix(key, prefix) {
			out[key] = append(out[key], View(r, i))
		}
	}
	for _, views := range out {
		Sort(views)
	}
	return out
}

// Sort puts instances in the order of their slots, older first within one.
func Sort(views []*gantryv1.InstanceView) {
	sort.SliceStable(views, func(a, b int) bool {
		x, y := views[a].Instance, views[b].Instance
		if x.Slot != y.Slot {
			return x.Slot < y.Slot
		}
		return x.Meta.CreatedAt.AsTime().Before(y.Meta.CreatedAt.AsTime())
	})
}

// View joins an instance with its status; one that no node has reported is pending, one whose node is out of reach is lost.
func View(r store.Reader, i *gantryv1.Instance) *gantryv1.InstanceView {
	st, ok := store.Get[*gantryv1.InstanceStatus](r, i.Meta.Key)
	if !ok {
		st = &gantryv1.InstanceStatus{
			Meta: store.NewMeta(i.Meta.Key), Node: i.Node, Phase: gantryv1.InstanceStatus_PHASE_PENDING,
		}
	}
	if i.Node != "" && NodeIs(r, i.Node) == NodeLost {
		st = lost(r, i, st)
	}
	return &gantryv1.InstanceView{Instance: i, Status: st}
}

// Key is the key of the service an instance belongs to; that of a `gantry run` instance is its own pseudo service.
func Key(i *gantryv1.Instance) string {
	if i.App == "" {
		return i.Environment + "//" + i.Service
	}
	return i.Environment + "/" + i.App + "/" + i.Service
}

// Ready reports whether an instance takes connections: running and, where it has a health check, healthy.
func Ready(st *gantryv1.InstanceStatus) bool {
	if st.GetPhase() != gantryv1.InstanceStatus_PHASE_RUNNING {
		return false
	}
	return st.Health == gantryv1.InstanceStatus_HEALTH_UNSPECIFIED || st.Health == gantryv1.InstanceStatus_HEALTH_HEALTHY
}

// Completed reports whether an instance has done its work and is not to be started again.
func Completed(st *gantryv1.InstanceStatus) bool {
	return st.GetPhase() == gantryv1.InstanceStatus_PHASE_EXITED && st.ExitCode == 0
}

// Stale reports that what the node said of an instance was before the restart that is wanted now.
func Stale(v *gantryv1.InstanceView) bool {
	return v.Status.GetRestartGeneration() < v.Instance.RestartGeneration
}

// Failure says why an instance does not come up by itself; "" if it may.
func Failure(v *gantryv1.InstanceView) string {
	if Stale(v) {
		return ""
	}
	if why := failure(v.Status); why != "" {
		return Name(v.Instance) + why
	}
	return ""
}

func failure(st *gantryv1.InstanceStatus) string {
	switch st.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_LOST:
		if st.Error != "" {
			return " " + st.Error
		}
	case gantryv1.InstanceStatus_PHASE_FAILED:
		return ": " + st.Error
	case gantryv1.InstanceStatus_PHASE_EXITED:
		if st.ExitCode != 0 {
			return fmt.Sprintf(" exited with code %d%s", st.ExitCode, limit(st))
		}
	case gantryv1.InstanceStatus_PHASE_RESTARTING:
		if st.Streak >= crashLoop {
			return fmt.Sprintf(" keeps exiting, last with code %d%s, after %d restarts in a row", st.ExitCode, limit(st), st.Streak)
		}
	case gantryv1.InstanceStatus_PHASE_RUNNING:
		if st.Health == gantryv1.InstanceStatus_HEALTH_UNHEALTHY {
			return " is unhealthy: " + st.HealthOutput
		}
	}
	return ""
}

// limit says which limit an instance has met.
func limit(st *gantryv1.InstanceStatus) string {
	switch {
	case st.OomKilled:
		return " (out of memory)"
	case st.PidsLimitReached > 0:
		return fmt.Sprintf(" (it reached its limit of %d processes)", st.PidsLimitReached)
	}
	return ""
}

// Name is what people call an instance: "db.1", or the name given to `gantry run`.
func Name(i *gantryv1.Instance) string {
	if i.Slot == 0 {
		return i.Service
	}
	return fmt.Sprintf("%s.%d", i.Service, i.Slot)
}

// Current reports whether an instance is one of those the service wants now.
func Current(s *gantryv1.Service, i *gantryv1.Instance) bool {
	return i.Release == s.Release && (i.Slot <= s.Replicas || placement.IsGlobal(s.Spec)) && i.Desired != gantryv1.Instance_DESIRED_REMOVED
}

// Wanted is how many instances a service is to have: its replicas, or one for each node that a global one may run on. Nodes that
// are down are left out, unless all are: nobody waits for them.
func Wanted(r store.Reader, s *gantryv1.Service) int32 {
	if s.Stopped || s.Removing {
		return 0
	}
	if placement.IsGlobal(s.Spec) {
		nodes := Eligible(r, s)
		if up := serving(r, nodes); up > 0 {
			return up
		}
		return int32(len(nodes))
	}
	return s.Replicas
}

// Facts is what a service is judged by.
type Facts struct {
	Instances []*gantryv1.InstanceView
	Wanted    int32
	Rollout   *gantryv1.Operation // the last one; nil if there is none
	Job       *gantryv1.Job       // what a job has run; nil if nothing is recorded
	// What it waits for, and why the wait cannot end by itself; empty for nothing.
	Waits, Blocked string
}

// Gather collects the facts about a service. byService holds its instances and those of the services it depends on.
func Gather(r store.Reader, s *gantryv1.Service, byService map[string][]*gantryv1.InstanceView) Facts {
	f := Facts{Instances: byService[s.Meta.Key], Wanted: Wanted(r, s), Rollout: Rollout(r, s.Meta.Key)}
	f.Job, _ = store.Get[*gantryv1.Job](r, s.Meta.Key)
	f.Waits, f.Blocked = Blocked(r, s, byService)
	return f
}

func serving(r store.Reader, nodes []string) (up int32) {
	for _, n := range nodes {
		if NodeIs(r, n) != NodeLost {
			up++
		}
	}
	return up
}

// leftBehind reports that the node of an instance is down and that nobody waits for it: the instance is to go, or it belongs to a
// global service, which is as it is to be when it is so on the nodes that are up.
func leftBehind(s *gantryv1.Service, i *gantryv1.InstanceView) bool {
	return isLost(i) && (i.Instance.Desired == gantryv1.Instance_DESIRED_REMOVED || placement.IsGlobal(s.Spec))
}

func isLost(i *gantryv1.InstanceView) bool {
	return i.Status.GetPhase() == gantryv1.InstanceStatus_PHASE_LOST
}

// Service judges one service.
func Service(s *gantryv1.Service, f Facts) *gantryv1.ServiceView {
	if placement.IsJob(s.Spec) {
		return job(s, f)
	}
	v := &gantryv1.ServiceView{Service: s, Instances: f.Instances, Wanted: f.Wanted, Operation: f.Rollout}
	settled, old := int32(0), 0
	for _, i := range f.Instances {
		if leftBehind(s, i) {
			continue
		}
		if !Current(s, i.Instance) {
			if !kept(v.Operation, i.Instance) {
				old++
			}
			if isLost(i) && v.Wanted > 0 { // the rollout has passed it by
				v.Failure = cmp.Or(v.Failure, Failure(i))
			}
			continue
		}
		if Stale(i) || i.Instance.RestartGeneration < s.RestartGeneration {
			continue
		}
		if Ready(i.Status) {
			v.Ready++
			settled++
		} else if Completed(i.Status) {
			settled++
		}
		if v.Failure == "" && v.Wanted > 0 {
			v.Failure = Failure(i)
		}
	}
	v.Converged = settled >= v.Wanted && old == 0 && (v.Wanted > 0 || len(f.Instances) == 0 || s.Stopped && down(s, f.Instances)) &&
		(s.Stopped || reached(v.Operation))
	judgeRollout(v)
	if !v.Converged {
		v.Waiting = cmp.Or(f.Waits, v.Waiting, unplaced(f.Instances))
		v.Failure = cmp.Or(v.Failure, f.Blocked)
	}
	return v
}

func down(s *gantryv1.Service, instances []*gantryv1.InstanceView) bool {
	for _, i := range instances {
		if leftBehind(s, i) {
			continue
		}
		switch i.Status.GetPhase() {
		case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_FAILED, gantryv1.InstanceStatus_PHASE_CREATED:
		default:
			return false
		}
	}
	return true
}

// Blocked says which dependency a service waits for ("db to be healthy"), and why the wait cannot end by itself, if so.
func Blocked(r store.Reader, s *gantryv1.Service, byService map[string][]*gantryv1.InstanceView) (waits, failure string) {
	for _, d := range s.Spec.GetDependsOn() {
		key := s.Environment + "/" + s.App + "/" + d.Service
		dep, ok := store.Get[*gantryv1.Service](r, key)
		if !ok || dep.Removing {
			if d.Required {
				return d.Service + " to exist", ""
			}
			continue
		}
		if placement.IsJob(dep.Spec) {
			waits, failure = jobDependency(r, d, dep)
		} else {
			waits, failure = dependency(d, dep, Wanted(r, dep), byService[key])
		}
		if waits != "" {
			return "waits for " + waits, failure
		}
	}
	return "", ""
}

func dependency(d *gantryv1.Dependency, dep *gantryv1.Service, wanted int32, instances []*gantryv1.InstanceView) (waits, failure string) {
	met, fail := int32(0), ""
	for _, i := range instances {
		if !Current(dep, i.Instance) {
			continue
		}
		ok, why := condition(d.Condition, i)
		if ok {
			met++
		}
		if why != "" {
			fail = fmt.Sprintf("its dependency %s", why)
		}
	}
	if met >= wanted && !dep.Stopped {
		return "", ""
	}
	word := map[gantryv1.Dependency_Condition]string{
		gantryv1.Dependency_CONDITION_HEALTHY:                "be healthy",
		gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY: "complete",
	}[d.Condition]
	if word == "" {
		word = "start"
	}
	if dep.Stopped {
		fail = fmt.Sprintf("its dependency %s is stopped", d.Service)
	}
	return d.Service + " to " + word, fail
}

func condition(c gantryv1.Dependency_Condition, i *gantryv1.InstanceView) (met bool, failure string) {
	st := i.Status
	switch c {
	case gantryv1.Dependency_CONDITION_HEALTHY:
		if st.Phase == gantryv1.InstanceStatus_PHASE_RUNNING && st.Health == gantryv1.InstanceStatus_HEALTH_UNSPECIFIED {
			return false, Name(i.Instance) + " has no health check, so it can never be healthy"
		}
		return st.Phase == gantryv1.InstanceStatus_PHASE_RUNNING && st.Health == gantryv1.InstanceStatus_HEALTH_HEALTHY, Failure(i)
	case gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY:
		return Completed(st), Failure(i)
	default:
		return st.Phase == gantryv1.InstanceStatus_PHASE_RUNNING || Completed(st), Failure(i)
	}
}
