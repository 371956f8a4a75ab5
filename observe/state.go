package observe

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// state publishes what the store holds. What nodes observe is known to the leader only.
type state struct {
	store     *store.Store
	revision  *prometheus.Desc
	objects   *prometheus.Desc
	instances *prometheus.Desc
	nodes     *prometheus.Desc
	services  *prometheus.Desc
	unplaced  *prometheus.Desc
	steps     *prometheus.Desc
	runs      *prometheus.Desc
}

// State publishes the objects of the store: how many there are, instances by phase, nodes by state.
func (m *Metrics) State(s *store.Store) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, labels, nil)
	}
	m.registry.MustRegister(&state{
		store:     s,
		revision:  desc("store_revision", "Revision of the state that reads reflect."),
		objects:   desc("store_objects", "Objects of the state, by kind.", "kind"),
		instances: desc("cluster_instances", "Instances by phase, as their nodes have said to this server.", "phase"),
		nodes:     desc("cluster_nodes", "Nodes by state; unknown to a server that does not lead.", "state"),
		services:  desc("cluster_services", "Services of all environments."),
		unplaced:  desc("cluster_unplaced_instances", "Instances that have no node yet: the queue of the scheduler."),
		steps:     desc("cluster_operations", "Operations that are kept, by kind and state.", "kind", "state"),
		runs:      desc("cluster_job_runs", "Runs of jobs that are kept, by state.", "state"),
	})
}

// Describe is part of prometheus.Collector.
func (s *state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.revision, s.objects, s.instances, s.nodes, s.services, s.unplaced, s.steps, s.runs} {
		out <- d
	}
}

// Collect is part of prometheus.Collector.
func (s *state) Collect(out chan<- prometheus.Metric) {
	snap := s.store.Snapshot()
	put := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	put(s.revision, int(snap.Revision()))
	objects := map[string]int{"instance": 0}
	phases, unplaced := instances(snap, objects)
	for phase, n := range phases {
		put(s.instances, n, word(phase.String(), "PHASE_"))
	}
	put(s.unplaced, unplaced)
	for state, n := range count(snap, objects, "node", func(n *gantryv1.Node) string {
		st, ok := store.Get[*gantryv1.NodeStatus](snap, n.Meta.Key)
		if !ok || st.State == "" {
			return "unknown"
		}
		return st.State
	}) {
		put(s.nodes, n, state)
	}
	for step, n := range count(snap, objects, "operation", func(o *gantryv1.Operation) [2]string {
		return [2]string{o.Kind, word(o.State.String(), "STATE_")}
	}) {
		put(s.steps, n, step[:]...)
	}
	runs := map[string]int{}
	count(snap, objects, "job", func(j *gantryv1.Job) bool {
		for _, r := range j.Runs {
			runs[r.State]++
		}
		return true
	})
	for state, n := range runs {
		put(s.runs, n, state)
	}
	count(snap, objects, "service", func(*gantryv1.Service) bool { return true })
	count(snap, objects, "release", func(*gantryv1.Release) bool { return true })
	count(snap, objects, "volume", func(*gantryv1.Volume) bool { return true })
	count(snap, objects, "app", func(*gantryv1.App) bool { return true })
	put(s.services, objects["service"])
	for kind, n := range objects {
		put(s.objects, n, kind)
	}
}

// instances counts instances by phase, and those without a node. Both lists are in the order of their keys: looking each of
// a hundred thousand up would take most of the time.
func instances(snap *store.ReadTx, objects map[string]int) (phases map[gantryv1.InstanceStatus_Phase]int, unplaced int) {
	phases = map[gantryv1.InstanceStatus_Phase]int{}
	statuses := store.List[*gantryv1.InstanceStatus](snap, "")
	store.Each(snap, "", func(i *gantryv1.Instance) bool {
		objects["instance"]++
		if i.Node == "" {
			unplaced++
		}
		for len(statuses) > 0 && statuses[0].Meta.Key < i.Meta.Key {
			statuses = statuses[1:]
		}
		var said *gantryv1.InstanceStatus
		if len(statuses) > 0 && statuses[0].Meta.Key == i.Meta.Key {
			said = statuses[0]
		}
		phases[said.GetPhase()]++
		return true
	})
	return phases, unplaced
}

// count is how many there are of each sort, and notes how many in all.
func count[T store.Object, K comparable](snap *store.ReadTx, objects map[string]int, name string, sort func(T) K) map[K]int {
	out := map[K]int{}
	objects[name] = 0
	store.Each(snap, "", func(o T) bool {
		out[sort(o)]++
		objects[name]++
		return true
	})
	return out
}

// word is an enum's value in lower case, without its prefix.
func word(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}
