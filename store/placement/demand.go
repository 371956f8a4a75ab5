package placement

import (
	"maps"
	"slices"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/constraint"
	"github.com/gantryd/gantry/store"
)

// Demand is what one instance takes from the node it is on. It is not changed once made.
type Demand struct {
	CPU      int64 // billionths
	Memory   int64 // bytes
	Pids     int64
	Address  bool             // one of the node's addresses
	Devices  map[string]int32 // named devices
	Ports    []Port
	Volumes  []string // keys of named volumes
	Joins    []string // services or instances whose namespaces are shared
	OS, Arch string   // empty for any
}

// Port is a port of the node that nothing else can have.
type Port struct {
	IP       string // empty for all
	Number   uint32
	Protocol string
}

// clashes reports that two ports cannot be had at once.
func (p Port) clashes(o Port) bool {
	return p.Number == o.Number && p.Protocol == o.Protocol && (p.IP == o.IP || p.IP == "" || o.IP == "")
}

// DemandOf reads a container's spec.
func DemandOf(c *gantryv1.ContainerSpec) *Demand {
	r := c.GetResources()
	d := &Demand{CPU: r.GetNanoCpusReservation(), Memory: r.GetMemoryReservation(), Pids: max(0, r.GetPids()), Devices: r.GetNamedDevices()}
	switch n := c.GetNetwork(); n.GetKind() {
	case gantryv1.NetworkMode_KIND_UNSPECIFIED, gantryv1.NetworkMode_KIND_BRIDGE:
		d.Address = true
		d.Ports = hostPorts(c.GetPorts())
	case gantryv1.NetworkMode_KIND_SERVICE, gantryv1.NetworkMode_KIND_CONTAINER:
		d.Joins = append(d.Joins, n.GetTarget())
	}
	for _, mode := range []string{c.GetPidMode(), c.GetIpcMode()} {
		if _, target, shared := strings.Cut(mode, ":"); shared && !slices.Contains(d.Joins, target) {
			d.Joins = append(d.Joins, target)
		}
	}
	for _, m := range c.GetMounts() {
		if m.Type == gantryv1.Mount_TYPE_VOLUME && m.Source != "" && !slices.Contains(d.Volumes, m.Source) {
			d.Volumes = append(d.Volumes, m.Source)
		}
	}
	d.platform(c.GetPlatform())
	return d
}

func hostPorts(ports []*gantryv1.PortPublish) []Port {
	var out []Port
	for _, p := range ports {
		if p.Mode != "host" || p.HostPort == 0 {
			continue
		}
		port := Port{IP: p.HostIp, Number: p.HostPort, Protocol: p.Protocol}
		if port.IP == "0.0.0.0" || port.IP == "::" {
			port.IP = ""
		}
		if port.Protocol == "" {
			port.Protocol = "tcp"
		}
		out = append(out, port)
	}
	return out
}

// platform reads "linux/amd64"; the variant is the image's affair.
func (d *Demand) platform(text string) {
	if text == "" {
		return
	}
	os, arch, both := strings.Cut(text, "/")
	if !both {
		d.Arch = constraint.Arch(os)
		if os == "linux" || os == "windows" {
			d.OS, d.Arch = os, ""
		}
		return
	}
	arch, _, _ = strings.Cut(arch, "/")
	d.OS, d.Arch = strings.ToLower(os), constraint.Arch(arch)
}

// runs reports whether a machine executes programs of an architecture.
func runs(machine, arch string) bool {
	return machine == arch || machine == "amd64" && arch == "386" || machine == "arm64" && arch == "arm"
}

// Bound reports that a container must be where something else is, which may be another node than this: the data of its
// volumes, or an instance whose namespaces it shares.
func Bound(r store.Reader, c *gantryv1.ContainerSpec, node string) bool {
	d := DemandOf(c)
	for _, v := range d.Volumes {
		if o, ok := store.Get[*gantryv1.Volume](r, v); ok && o.Node != "" && o.Node != node {
			return true
		}
	}
	return len(d.Joins) > 0
}

// Load is what instances take together.
type Load struct {
	CPU, Memory, Pids int64
	Addresses         int32
	Instances         int32
	Devices           map[string]int32
	Ports             map[Port]int32
}

// add puts n times the demand on top.
func (l *Load) add(d *Demand, n int32) {
	l.CPU += d.CPU * int64(n)
	l.Memory += d.Memory * int64(n)
	l.Pids += d.Pids * int64(n)
	l.Instances += n
	if d.Address {
		l.Addresses += n
	}
	for name, count := range d.Devices {
		l.Devices = count1(l.Devices, name, count*n)
	}
	for _, p := range d.Ports {
		l.Ports = count1(l.Ports, p, n)
	}
}

// count1 adds to one count of a map and keeps no zeros.
func count1[K comparable](m map[K]int32, key K, n int32) map[K]int32 {
	if m == nil {
		m = map[K]int32{}
	}
	if m[key] += n; m[key] == 0 {
		delete(m, key)
	}
	return m
}

func (l *Load) clone() Load {
	c := *l
	c.Devices, c.Ports = maps.Clone(l.Devices), maps.Clone(l.Ports)
	return c
}

// taken reports that a port cannot be had beside the load.
func (l *Load) taken(p Port) bool {
	for o := range l.Ports {
		if p.clashes(o) {
			return true
		}
	}
	return false
}
