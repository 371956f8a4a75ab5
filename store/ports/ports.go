// Package ports gives services the host ports that every node answers on and that nobody has named.
//
// Assign, in the transaction that makes a release, chooses them once and keeps them in the service; Fill tells nodes. Ports in
// mode host are none of its business: each node chooses those for itself, as it does for `gantry run -p`. All functions are pure.
package ports

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// The ports below 32768 come first: from there on the kernel takes ports for connections that nodes make, and for what each
// chooses by itself, so that one of those may be in the way on some node.
const (
	first, last = 30000, 60999
	ephemeral   = 32768
)

// wish is a port in ingress mode that names no port of the host.
type wish struct {
	ip        string
	container uint32
	protocol  string
}

// number is a port of all nodes.
type number struct {
	protocol string
	port     uint32
}

func protocol(p *gantryv1.PortPublish) string {
	return cmp.Or(strings.ToLower(p.Protocol), "tcp")
}

func wishOf(p *gantryv1.PortPublish) wish {
	return wish{p.HostIp, p.ContainerPort, protocol(p)}
}

func isWish(p *gantryv1.PortPublish) bool { return p.HostPort == 0 && p.Mode != "host" }

// Fill gives the ports of a release the numbers that its service has for them. What has none keeps 0.
func Fill(ports, published []*gantryv1.PortPublish) []*gantryv1.PortPublish {
	if !slices.ContainsFunc(ports, isWish) {
		return ports
	}
	rest := slices.Clone(published)
	out := make([]*gantryv1.PortPublish, len(ports))
	for i, p := range ports {
		out[i] = p
		if !isWish(p) {
			continue
		}
		j := slices.IndexFunc(rest, func(o *gantryv1.PortPublish) bool { return wishOf(o) == wishOf(p) })
		if j >= 0 {
			out[i] = &gantryv1.PortPublish{
				HostIp: p.HostIp, HostPort: rest[j].HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, Mode: p.Mode,
			}
			rest = slices.Delete(rest, j, j+1)
		}
	}
	return out
}

// Assign sees to it that a service has a port for each wish of all its releases, so that one it goes back to has the same
// as before, and for no other. Those it has stay.
func Assign(r store.Reader, s *gantryv1.Service) error {
	wanted := wishes(r, s)
	var kept []*gantryv1.PortPublish
	for _, p := range s.Published {
		if w := wishOf(p); wanted[w] > 0 {
			wanted[w]--
			kept = append(kept, p)
		}
	}
	s.Published = kept
	var used map[number]bool
	for _, w := range sorted(wanted) {
		if used == nil {
			used = taken(r, s)
		}
		n, err := choose(used, s.Meta.Key, w)
		if err != nil {
			return err
		}
		used[n] = true
		s.Published = append(s.Published, &gantryv1.PortPublish{
			HostIp: w.ip, HostPort: n.port, ContainerPort: w.container, Protocol: w.protocol, Mode: "ingress",
		})
	}
	return nil
}

// wishes counts the ports of one kind that a release of the service has at most.
func wishes(r store.Reader, s *gantryv1.Service) map[wish]int {
	most := map[wish]int{}
	for _, rel := range store.List[*gantryv1.Release](r, s.Meta.Key+"/") {
		here := map[wish]int{}
		for _, p := range ofBridge(rel.Spec.GetContainer()) {
			if isWish(p) {
				here[wishOf(p)]++
				most[wishOf(p)] = max(most[wishOf(p)], here[wishOf(p)])
			}
		}
	}
	return most
}

// ofBridge is the ports that are published: those of a container on the bridge.
func ofBridge(c *gantryv1.ContainerSpec) []*gantryv1.PortPublish {
	switch c.GetNetwork().GetKind() {
	case gantryv1.NetworkMode_KIND_UNSPECIFIED, gantryv1.NetworkMode_KIND_BRIDGE:
		return c.GetPorts()
	}
	return nil
}

// sorted lists wishes, each as often as it counts.
func sorted(wanted map[wish]int) []wish {
	var out []wish
	for w, n := range wanted {
		out = append(out, slices.Repeat([]wish{w}, max(0, n))...)
	}
	slices.SortFunc(out, func(a, b wish) int {
		return cmp.Or(cmp.Compare(a.container, b.container), strings.Compare(a.protocol, b.protocol), strings.Compare(a.ip, b.ip))
	})
	return out
}

// taken is the ports that services and instances have on any node.
func taken(r store.Reader, s *gantryv1.Service) map[number]bool {
	used := map[number]bool{}
	add := func(ports []*gantryv1.PortPublish) {
		for _, p := range ports {
			used[number{protocol(p), p.HostPort}] = true
		}
	}
	for _, o := range store.List[*gantryv1.Service](r, "") {
		add(o.Published)
		add(o.Spec.GetContainer().GetPorts())
	}
	for _, rel := range store.List[*gantryv1.Release](r, s.Meta.Key+"/") {
		add(rel.Spec.GetContainer().GetPorts())
	}
	add(s.Published)
	for _, i := range store.List[*gantryv1.Instance](r, "") {
		add(i.Spec.GetPorts())
	}
	for _, st := range store.List[*gantryv1.InstanceStatus](r, "") {
		add(st.Ports)
	}
	return used
}

// choose finds a free port. The search begins where the service's name says, so that a service that comes again mostly gets
// the port that it had, and another one does not.
func choose(used map[number]bool, service string, w wish) (number, error) {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %s %d/%s", service, w.ip, w.container, w.protocol)
	const low = ephemeral - first
	start := h.Sum32() % low
	for i := range uint32(last - first + 1) {
		port := first + i
		if i < low {
			port = first + (start+i)%low
		}
		if n := (number{w.protocol, port}); !used[n] {
			return n, nil
		}
	}
	return number{}, fault.New(fault.Exhausted, "all ports from %d to %d are taken by services", first, last).
		WithHint("name a port of the host that is free, as in ports: [\"8080:%d\"]", w.container)
}
