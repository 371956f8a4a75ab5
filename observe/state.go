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
	})
}

// Describe is part of prometheus.Collector.
func (s *state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.revision, s.objects, s.instances, s.nodes, s.services} {
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
	phases := map[string]int{}
	instances := store.List[*gantryv1.Instance](snap, "")
	for _, i := range instances {
		st, _ := store.Get[*gantryv1.InstanceStatus](snap, i.Meta.Key)
		phases[word(st.GetPhase().String(), "PHASE_")]++
	}
	for phase, n := range phases {
		put(s.instances, n, phase)
	}
	states := map[string]int{}
	nodes := store.List[*gantryv1.Node](snap, "")
	for _, n := range nodes {
		st, ok := store.Get[*gantryv1.NodeStatus](snap, n.Meta.Key)
		if !ok {
			states["unknown"]++
			continue
		}
		states[st.State]++
	}
	for state, n := range states {
		put(s.nodes, n, state)
	}
	services := len(store.List[*gantryv1.Service](snap, ""))
	put(s.services, services)
	for kind, n := range map[string]int{
		"instance": len(instances), "node": len(nodes), "service": services,
		"release": len(store.List[*gantryv1.Release](snap, "")), "volume": len(store.List[*gantryv1.Volume](snap, "")),
		"operation": len(store.List[*gantryv1.Operation](snap, "")), "app": len(store.List[*gantryv1.App](snap, "")),
	} {
		put(s.objects, n, kind)
	}
}

// word is an enum's value in lower case, without its prefix.
func word(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}
