package placement

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// Another is one more instance of a service, of its release now, as it would be if there were one.
func (s *State) Another(r store.Reader, service *gantryv1.Service) *Placed {
	i := &gantryv1.Instance{
		Meta: store.NewMeta(""), Environment: service.Environment, App: service.App, Service: service.Name, Release: service.Release,
	}
	rel, _ := store.Get[*gantryv1.Release](r, releaseOf(i))
	return &Placed{Instance: i, Service: service.Meta.Key, Demand: DemandOf(rel.GetSpec().GetContainer())}
}

// Asks says what an instance wants of a machine, a line each.
func (s *State) Asks(p *Placed) []string {
	out := p.Demand.words()
	for _, v := range p.Demand.Volumes {
		if node := s.volumes[v]; node != "" {
			out = append(out, fmt.Sprintf("the volume %s, whose data is on %s", v, s.nameOf(node)))
		} else {
			out = append(out, fmt.Sprintf("the volume %s, whose data will be where it is used first", v))
		}
	}
	r := s.Rules(p.Service)
	for _, c := range r.Constraints {
		out = append(out, c.String())
	}
	if r.MaxPerNode > 0 {
		out = append(out, fmt.Sprintf("at most %d of the service", r.MaxPerNode))
	}
	for _, other := range s.Apart(r) {
		out = append(out, "no instance of "+other)
	}
	for _, a := range r.Preferences {
		out = append(out, "if possible, few others with the same "+a.String())
	}
	if r.Priority != 0 {
		out = append(out, fmt.Sprintf("priority %d", r.Priority))
	}
	return out
}

func (d *Demand) words() (out []string) {
	if d.CPU > 0 {
		out = append(out, "CPU: "+cpus(d.CPU))
	}
	if d.Memory > 0 {
		out = append(out, "memory: "+size(d.Memory))
	}
	if d.Pids > 0 {
		out = append(out, fmt.Sprintf("process IDs: %d", d.Pids))
	}
	for _, name := range slices.Sorted(maps.Keys(d.Devices)) {
		out = append(out, fmt.Sprintf("device %s: %d", name, d.Devices[name]))
	}
	if d.OS != "" || d.Arch != "" {
		out = append(out, "platform: "+platformName(d))
	}
	for _, p := range d.Ports {
		out = append(out, fmt.Sprintf("port %d/%s of the node", p.Number, p.Protocol))
	}
	if len(d.Joins) > 0 {
		out = append(out, "an instance of "+strings.Join(d.Joins, " and of ")+", whose namespaces it shares")
	}
	return out
}
