package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// check holds one instance against machines.
type check struct {
	state *State
	p     *Placed
	rules *Rules
	apart []string
	only  map[string]bool
	bound bool
}

func (s *State) check(p *Placed) check {
	c := check{state: s, p: p, rules: s.Rules(p.Service)}
	c.apart = s.Apart(c.rules)
	c.only, c.bound = s.Only(p)
	return c
}

// misses lists all that keeps the instance from the machine.
func (c check) misses(m *Machine) []miss {
	if c.rules.Bad != nil {
		return []miss{missRules}
	}
	var out []miss
	note := func(found miss) {
		if found != fits {
			out = append(out, found)
		}
	}
	note(m.up())
	if !m.meets(c.rules) {
		note(missConstraint)
	}
	note(m.executes(c.p.Demand))
	if c.bound && !c.only[m.ID()] {
		if c.pinned(m) != "" {
			note(missVolume)
		} else {
			note(missPeer)
		}
	}
	note(m.room(c.p.Demand, c.rules, c.apart))
	return out
}

// pinned is the volume whose data is on another machine.
func (c check) pinned(m *Machine) string {
	for _, v := range c.p.Demand.Volumes {
		if node := c.state.volumes[v]; node != "" && node != m.ID() {
			return v
		}
	}
	return ""
}

// Reasons says all that keeps the instance from the machine; nothing if it fits.
func (s *State) Reasons(p *Placed, m *Machine) []string {
	c := s.check(p)
	var out []string
	for _, found := range c.misses(m) {
		out = append(out, c.words(found, m))
	}
	return out
}

func (c check) words(found miss, m *Machine) string {
	d, st, l := c.p.Demand, m.Status, m.Load
	switch found {
	case missRules:
		return c.rules.Bad.Error()
	case missDrained:
		return "it is drained"
	case missDown:
		return "it is down"
	case missSuspect:
		return "it has been silent for a moment"
	case missUnknown:
		return "nothing has been heard of it yet"
	case missConstraint:
		return "it does not meet " + c.unmet(m)
	case missPlatform:
		return fmt.Sprintf("it runs %s/%s, not %s", m.os(), st.GetArchitecture(), platformName(d))
	case missVolume:
		v := c.pinned(m)
		if lost := c.state.lost(v); lost != "" {
			return fmt.Sprintf("the data of the volume %s %s", v, lost)
		}
		return fmt.Sprintf("the data of the volume %s is on %s", v, c.state.nameOf(c.state.volumes[v]))
	case missPeer:
		return "no instance of " + strings.Join(d.Joins, ", ") + " is there, whose namespaces are to be shared"
	case missApart:
		return "an instance of " + c.neighbour(m) + " is there, which must be kept apart"
	case missMax:
		return fmt.Sprintf("it has %d of the service already, the most per node", m.Services[c.rules.Service])
	case missPort:
		return "its port " + c.port(m) + " is taken"
	case missCPU:
		return fmt.Sprintf("it lacks CPU: needs %s, free %s of %s", cpus(d.CPU), cpus(st.NanoCpus-l.CPU), cpus(st.NanoCpus))
	case missMemory:
		return fmt.Sprintf("it lacks memory: needs %s, free %s of %s", size(d.Memory), size(st.Memory-l.Memory), size(st.Memory))
	case missPids:
		return fmt.Sprintf("it lacks process IDs: needs %d, free %d of %d", d.Pids, st.Pids-l.Pids, st.Pids)
	case missDevice:
		return "it lacks " + c.device(m)
	}
	return fmt.Sprintf("its range has no free address: all %d are taken", m.addresses)
}

func (c check) unmet(m *Machine) string {
	var out []string
	for _, con := range c.rules.Constraints {
		if !con.Holds(m.attributes()) {
			out = append(out, con.String())
		}
	}
	return strings.Join(out, " and ")
}

func (c check) neighbour(m *Machine) string {
	for _, other := range c.apart {
		if m.Services[other] > 0 {
			return other[strings.LastIndexByte(other, '/')+1:]
		}
	}
	return ""
}

func (c check) port(m *Machine) string {
	for _, p := range c.p.Demand.Ports {
		if m.Load.taken(p) {
			return fmt.Sprintf("%d/%s", p.Number, p.Protocol)
		}
	}
	return ""
}

func (c check) device(m *Machine) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(c.p.Demand.Devices)) {
		need, all := c.p.Demand.Devices[name], m.Status.GetDevices()[name]
		if free := all - m.Load.Devices[name]; need > free {
			out = append(out, fmt.Sprintf("%s: needs %d, free %d of %d", name, need, free, all))
		}
	}
	return strings.Join(out, "; ")
}

func (s *State) nameOf(id string) string {
	if m := s.machines[id]; m != nil && m.Node != nil {
		return "node " + m.Name()
	}
	return "node " + id + ", which is gone"
}

// lost says that the node with a volume's data has been removed, and what to do; "" if it is there.
func (s *State) lost(volume string) string {
	node := s.volumes[volume]
	if m := s.machines[node]; node == "" || m != nil && m.Node != nil {
		return ""
	}
	_, name, _ := strings.Cut(volume, "/")
	return fmt.Sprintf("was on node %s, which has been removed: gantry volume rm --force %s has its users begin with an empty one", node, name)
}

func platformName(d *Demand) string { return cmp.Or(d.OS, "linux") + "/" + cmp.Or(d.Arch, "any") }

func cpus(nano int64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", float64(max(0, nano))/1e9), "0"), ".")
}

func size(bytes int64) string {
	v, unit := float64(max(0, bytes)), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, next
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + " " + unit
}

// Why says in one line why an instance has no machine: "no node fits: 2 lack memory (needs 4 GiB, most free 1.2 GiB), 1 is
// drained". It is empty if some machine fits.
func (s *State) Why(p *Placed) string {
	c := s.check(p)
	if c.rules.Bad != nil {
		return c.rules.Bad.Error()
	}
	if len(s.Machines()) == 0 {
		return "there is no node"
	}
	groups := map[miss][]*Machine{}
	for _, m := range s.Machines() {
		found := c.misses(m)
		if len(found) == 0 {
			return ""
		}
		groups[found[0]] = append(groups[found[0]], m)
	}
	order := slices.SortedFunc(maps.Keys(groups), func(a, b miss) int {
		return cmp.Or(cmp.Compare(len(groups[b]), len(groups[a])), cmp.Compare(a, b))
	})
	var parts []string
	for _, found := range order {
		parts = append(parts, c.several(found, groups[found]))
	}
	return "no node fits: " + strings.Join(parts, ", ")
}

// several says what keeps an instance from some machines, in few words.
func (c check) several(found miss, machines []*Machine) string {
	n, d := len(machines), c.p.Demand
	verb := func(one, many string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %s", n, many)
	}
	most := func(free func(*Machine) int64) int64 {
		best := int64(0)
		for _, m := range machines {
			best = max(best, free(m))
		}
		return best
	}
	switch found {
	case missDrained:
		return verb("is drained", "are drained")
	case missDown:
		return verb("is down", "are down")
	case missSuspect:
		return verb("is silent", "are silent")
	case missUnknown:
		return verb("has not been heard of yet", "have not been heard of yet")
	case missConstraint:
		return verb("does", "do") + " not meet the constraints"
	case missPlatform:
		return verb("does", "do") + " not run " + platformName(d)
	case missVolume:
		v := c.pinned(machines[0])
		if lost := c.state.lost(v); lost != "" {
			return verb("lacks", "lack") + fmt.Sprintf(" the data of the volume %s, which %s", v, lost)
		}
		return verb("lacks", "lack") + fmt.Sprintf(" the data of the volume %s (on %s)", v, c.state.nameOf(c.state.volumes[v]))
	case missPeer:
		return verb("has", "have") + " no instance of " + strings.Join(d.Joins, ", ")
	case missApart:
		return verb("has", "have") + " a service that must be kept apart"
	case missMax:
		return verb("has", "have") + fmt.Sprintf(" %d of the service already", c.rules.MaxPerNode)
	case missPort:
		return verb("has", "have") + " the host port taken"
	case missCPU:
		return verb("lacks", "lack") + fmt.Sprintf(" CPU (needs %s, most free %s)", cpus(d.CPU), cpus(most(func(m *Machine) int64 { return m.Status.NanoCpus - m.Load.CPU })))
	case missMemory:
		return verb("lacks", "lack") + fmt.Sprintf(" memory (needs %s, most free %s)", size(d.Memory), size(most(func(m *Machine) int64 { return m.Status.Memory - m.Load.Memory })))
	case missPids:
		return verb("lacks", "lack") + " process IDs"
	case missDevice:
		return verb("lacks", "lack") + " " + strings.Join(slices.Sorted(maps.Keys(d.Devices)), ", ")
	}
	return verb("has", "have") + " no address left"
}
