package placement

import (
	"net/netip"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/constraint"
)

// Machine is a node with what is on it.
type Machine struct {
	id     string
	Node   *gantryv1.Node
	Status *gantryv1.NodeStatus // nil while nothing has been heard of it
	Load   Load
	// Services counts instances that are to stay, by service key.
	Services map[string]int32
	// Here are the instances on it.
	Here map[string]*Placed

	addresses int32 // that instances can have; 0 if not known
}

// ID is the node's key.
func (m *Machine) ID() string { return m.id }

// Name is what people call the node.
func (m *Machine) Name() string {
	if m.Node.GetName() != "" {
		return m.Node.Name
	}
	return m.ID()
}

// reservedAddresses of a node's range are the network's own, the gateway's and the broadcast's.
const reservedAddresses = 3

func (m *Machine) know(n *gantryv1.Node) {
	m.Node, m.addresses = n, 0
	if p, err := netip.ParsePrefix(n.GetSubnet()); err == nil && p.Addr().Is4() && p.Bits() >= 2 {
		m.addresses = int32(max(1, 1<<(32-p.Bits())-reservedAddresses))
	}
}

func (m *Machine) attributes() constraint.Node {
	return constraint.Node{
		ID: m.ID(), Hostname: m.Node.GetName(), Role: m.Node.GetRole(), OS: m.os(), Arch: m.Status.GetArchitecture(),
		Labels: m.Node.GetMeta().GetLabels(),
	}
}

func (m *Machine) os() string {
	if m.Status.GetOs() == "" {
		return "linux"
	}
	return m.Status.Os
}

// Value is the machine's value of an attribute; "" for a label that it does not have.
func (m *Machine) Value(a constraint.Attribute) string { return a.Of(m.attributes()) }

// miss is what keeps an instance from a node.
type miss int

const (
	fits miss = iota
	missRules
	missDrained
	missDown
	missSuspect
	missUnknown
	missConstraint
	missPlatform
	missVolume
	missPeer
	missApart
	missMax
	missPort
	missCPU
	missMemory
	missPids
	missDevice
	missAddress
)

// Fits reports whether one more instance can be placed on the machine, without regard to volumes and joins.
func (m *Machine) Fits(d *Demand, r *Rules, apart []string) bool { return m.miss(d, r, apart) == fits }

func (m *Machine) miss(d *Demand, r *Rules, apart []string) miss {
	if why := m.may(d, r); why != fits {
		return why
	}
	return m.room(d, r, apart)
}

// may looks at what no other instance changes.
func (m *Machine) may(d *Demand, r *Rules) miss {
	if r.Bad != nil {
		return missRules
	}
	if why := m.up(); why != fits {
		return why
	}
	if !m.meets(r) {
		return missConstraint
	}
	return m.executes(d)
}

func (m *Machine) up() miss {
	if !Active(m.Node) {
		return missDrained
	}
	switch m.Status.GetState() {
	case "ready":
		return fits
	case "down":
		return missDown
	case "suspect":
		return missSuspect
	}
	return missUnknown
}

func (m *Machine) executes(d *Demand) miss {
	if d.OS != "" && d.OS != m.os() {
		return missPlatform
	}
	if have := m.Status.GetArchitecture(); d.Arch != "" && have != "" && !runs(constraint.Arch(have), d.Arch) {
		return missPlatform
	}
	return fits
}

// room looks at what other instances have left.
func (m *Machine) room(d *Demand, r *Rules, apart []string) miss {
	for _, other := range apart {
		if m.Services[other] > 0 {
			return missApart
		}
	}
	if r.MaxPerNode > 0 && m.Services[r.Service] >= r.MaxPerNode {
		return missMax
	}
	return m.holds(d, &m.Load)
}

// holds reports whether the demand fits beside a load. Capacities that are not known bound nothing, but for devices: a
// machine has those that it names.
func (m *Machine) holds(d *Demand, l *Load) miss {
	st := m.Status
	for _, p := range d.Ports {
		if l.taken(p) {
			return missPort
		}
	}
	switch {
	case d.CPU > 0 && st.GetNanoCpus() > 0 && l.CPU+d.CPU > st.NanoCpus:
		return missCPU
	case d.Memory > 0 && st.GetMemory() > 0 && l.Memory+d.Memory > st.Memory:
		return missMemory
	case d.Pids > 0 && st.GetPids() > 0 && l.Pids+d.Pids > st.Pids:
		return missPids
	case d.Address && m.addresses > 0 && l.Addresses >= m.addresses:
		return missAddress
	}
	for name, n := range d.Devices {
		if l.Devices[name]+n > st.GetDevices()[name] {
			return missDevice
		}
	}
	return fits
}

// Fullness is the larger share of CPU and memory that is reserved, from 0 to 1 and above where a node is over its capacity.
func (m *Machine) Fullness() float64 {
	return max(share(m.Load.CPU, m.Status.GetNanoCpus()), share(m.Load.Memory, m.Status.GetMemory()))
}

func share(part, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return float64(part) / float64(of)
}
