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
	})
}

// Describe is part of prometheus.Collector.
func (s *state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.revision, s.objects, s.instances, s.nodes, s.services, s.unplaced, s.steps} {
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
	phases, unplaced := map[string]int{}, 0
	instances := store.List[*gantryv1.Instance](snap, "")
	for _, i := range instances {
		if i.Node == "" {
			unplaced++
		}
		st, _ := store.Get[*gantryv1.InstanceStatus](snap, i.Meta.Key)
		phases[word(st.GetPhase().String(), "PHASE_")]++
	}
	for phase, n := range phases {
		put(s.instances, n, phase)
	}
	put(s.unplaced, unplaced)
	nodes := store.List[*gantryv1.Node](snap, "")
	for state, n := range count(nodes, func(n *gantryv1.Node) string {
		st, ok := store.Get[*gantryv1.NodeStatus](snap, n.Meta.Key)
		if !ok || st.State == "" {
			return "unknown"
		}
		return st.State
	}) {
		put(s.nodes, n, state)
	}
	operations := store.List[*gantryv1.Operation](snap, "")
	for kind, n := range count(operations, func(o *gantryv1.Operation) [2]string { return [2]string{o.Kind, word(o.State.String(), "STATE_")} }) {
		put(s.steps, n, kind[:]...)
	}
	services := len(store.List[*gantryv1.Service](snap, ""))
	put(s.services, services)
	for kind, n := range map[string]int{
		"instance": len(instances), "node": len(nodes), "service": services,
		"release": len(store.List[*gantryv1.Release](snap, "")), "volume": len(store.List[*gantryv1.Volume](snap, "")),
		"operation": len(operations), "app": len(store.List[*gantryv1.App](snap, "")),
	} {
		put(s.objects, n, kind)
	}
}

// count is how many there are of each kind.
func count[T any, K comparable](all []T, kind func(T) K) map[K]int {
	out := map[K]int{}
	for _, o := range all {
		out[kind(o)]++
	}
	return out
}

// word is an enum's value in lower case, without its prefix.
func word(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}
