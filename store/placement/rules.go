package placement

import (
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/constraint"
)

// Rules is how the instances of one service are to be placed. It is not changed once made.
type Rules struct {
	Service     string // its key
	Priority    int32
	MaxPerNode  int32 // 0 for any number
	Binpack     bool
	Rebalance   bool
	Constraints []constraint.Constraint
	Preferences []constraint.Attribute
	Apart       []string // keys of services that must not be on the same node
	// Bad is why the rules cannot be followed: a constraint that is none.
	Bad error
}

// RulesOf reads the spec of a service. app is "env/app".
func RulesOf(app, name string, s *gantryv1.ServiceSpec) *Rules {
	p := s.GetPlacement()
	r := &Rules{
		Service: app + "/" + name, Priority: s.GetPriority(), MaxPerNode: p.GetMaxReplicasPerNode(),
		Binpack: p.GetStrategy() == "binpack", Rebalance: p.GetRebalance(),
	}
	for _, text := range p.GetConstraints() {
		c, err := constraint.Parse(text)
		if err != nil {
			r.Bad = err
		}
		r.Constraints = append(r.Constraints, c)
	}
	for _, text := range p.GetPreferences() {
		a, err := constraint.ParseAttribute(text)
		if err != nil {
			r.Bad = err
		}
		r.Preferences = append(r.Preferences, a)
	}
	for _, other := range p.GetAntiAffinity() {
		r.Apart = append(r.Apart, app+"/"+other)
	}
	return r
}

// Modes of services.
const (
	ModeReplicated    = "replicated"
	ModeGlobal        = "global"
	ModeReplicatedJob = "replicated-job"
	ModeGlobalJob     = "global-job"
)

// IsJob reports that a service's instances end by themselves: control/job makes them, not control/rollout.
func IsJob(s *gantryv1.ServiceSpec) bool {
	return s.GetMode() == ModeReplicatedJob || s.GetMode() == ModeGlobalJob
}

// IsGlobal reports that a service has one instance on each node that is eligible, placed when it is made.
func IsGlobal(s *gantryv1.ServiceSpec) bool {
	return s.GetMode() == ModeGlobal || s.GetMode() == ModeGlobalJob
}

// Eligible reports whether a global service wants an instance on a node: it is active, meets the constraints and runs the
// platform. Whether it is up or has room is not asked. st may be nil: what a node has not said excludes nothing, see Unsure.
func Eligible(n *gantryv1.Node, st *gantryv1.NodeStatus, s *gantryv1.ServiceSpec) bool {
	m := &Machine{id: n.GetMeta().GetKey(), Node: n, Status: st}
	r := RulesOf("", "", s)
	return Active(n) && r.Bad == nil && !m.excluded(r) && m.executes(DemandOf(s.GetContainer())) == fits
}

// Unsure reports that an eligible node may turn out not to be: its architecture matters and it has not said it, as no node has
// to a server that begins to lead. What is there stays, and nothing is put there. st may be nil.
func Unsure(n *gantryv1.Node, st *gantryv1.NodeStatus, s *gantryv1.ServiceSpec) bool {
	m := &Machine{id: n.GetMeta().GetKey(), Node: n, Status: st}
	return st.GetArchitecture() == "" && (DemandOf(s.GetContainer()).Arch != "" || m.unsaid(RulesOf("", "", s)))
}

// Meets reports whether a node is one that a service's constraints allow, as far as it has said what they ask for. st may be nil.
func Meets(n *gantryv1.Node, st *gantryv1.NodeStatus, s *gantryv1.ServiceSpec) bool {
	m := &Machine{id: n.GetMeta().GetKey(), Node: n, Status: st}
	r := RulesOf("", "", s)
	return r.Bad == nil && !m.excluded(r)
}

// Active reports whether a node takes instances, as far as people say.
func Active(n *gantryv1.Node) bool {
	return n.GetAvailability() == "" || n.GetAvailability() == "active"
}

func (m *Machine) meets(r *Rules) bool {
	return !slices.ContainsFunc(r.Constraints, func(c constraint.Constraint) bool { return !c.Holds(m.attributes()) })
}

// excluded reports that a constraint does not hold, whatever the machine has yet to say.
func (m *Machine) excluded(r *Rules) bool {
	at := m.attributes()
	return slices.ContainsFunc(r.Constraints, func(c constraint.Constraint) bool { return !c.Unsaid(at) && !c.Holds(at) })
}

func (m *Machine) unsaid(r *Rules) bool {
	at := m.attributes()
	return slices.ContainsFunc(r.Constraints, func(c constraint.Constraint) bool { return c.Unsaid(at) })
}
