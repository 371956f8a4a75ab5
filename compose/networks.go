package compose

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func (c *converter) networkMode(path []string, s *types.ServiceConfig) *gantryv1.NetworkMode {
	at := append(slices.Clone(path), "network_mode")
	switch mode := s.NetworkMode; {
	case mode == "":
		return c.attachments(path, s)
	case mode == "bridge", mode == "default":
		return &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_BRIDGE, Attachments: []*gantryv1.NetworkAttachment{
			{Network: c.env + "/" + c.app + "/default", Aliases: c.containerAlias(path, s)},
		}}
	case mode == "none":
		return &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_NONE}
	case mode == "host":
		return &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_HOST}
	case strings.HasPrefix(mode, types.ServicePrefix):
		return &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_SERVICE, Target: mode[len(types.ServicePrefix):]}
	case strings.HasPrefix(mode, types.ContainerPrefix):
		return &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_CONTAINER, Target: mode[len(types.ContainerPrefix):]}
	}
	c.report.refuse(at, fmt.Sprintf("the network mode %q; use bridge, none, host, service:NAME or container:ID, or networks", shorten(s.NetworkMode)))
	return nil
}

func (c *converter) attachments(path []string, s *types.ServiceConfig) *gantryv1.NetworkMode {
	out := &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_BRIDGE}
	for _, name := range slices.Sorted(maps.Keys(s.Networks)) {
		n := s.Networks[name]
		at := append(slices.Clone(path), "networks", name)
		def := c.model.project.Networks[name]
		a := &gantryv1.NetworkAttachment{
			Network: c.key("networks", name, def.Name, bool(def.External)), Aliases: c.containerAlias(path, s),
		}
		out.Attachments = append(out.Attachments, a)
		if n == nil {
			continue
		}
		for _, alias := range n.Aliases {
			a.Aliases = append(a.Aliases, c.alias(append(at, "aliases"), alias))
		}
		slices.Sort(a.Aliases)
		a.Aliases = slices.Compact(a.Aliases)
		if !n.ServiceNameAliasEnabled() {
			c.report.refuse(append(at, "use_service_name_alias"), "a service without its own name; remove the line")
		}
		c.address(append(at, "ipv4_address"), n.Ipv4Address, out)
	}
	return out
}

func (c *converter) address(at []string, address string, out *gantryv1.NetworkMode) {
	if address == "" {
		return
	}
	if a, err := netip.ParseAddr(address); err != nil || !a.Is4() {
		c.report.invalid(at, "write it like 10.64.0.9", "%q is not an IPv4 address", shorten(address))
	}
	if out.Address != "" && out.Address != address {
		c.report.refuse(at, "a second address; an instance has one for all its networks")
	}
	out.Address = address
}

func (c *converter) containerAlias(path []string, s *types.ServiceConfig) []string {
	if s.ContainerName == "" {
		return nil
	}
	return []string{c.alias(append(path, "container_name"), s.ContainerName)}
}

// alias checks a name that must work in DNS. Capitals make no difference there.
func (c *converter) alias(at []string, name string) string {
	low := strings.ToLower(name)
	for label := range strings.SplitSeq(low, ".") {
		if msg := checkLabel(label); msg != "" {
			c.report.invalid(at, "choose a name like cache or db.example", "the name %q cannot be used: %s", shorten(name), msg)
			break
		}
	}
	return low
}

// links makes the alias of a link a name of the linked service, on the networks that both are on.
func (c *converter) links(spec *gantryv1.AppSpec) {
	for _, name := range slices.Sorted(maps.Keys(spec.Services)) {
		for i, link := range c.model.project.Services[name].Links {
			target, alias, ok := strings.Cut(link, ":")
			if !ok || alias == target || spec.Services[target] == nil {
				continue
			}
			alias = c.alias([]string{"services", name, "links", strconv.Itoa(i)}, alias)
			for _, a := range spec.Services[target].Container.GetNetwork().GetAttachments() {
				if joins(spec.Services[name], a.Network) && !slices.Contains(a.Aliases, alias) {
					a.Aliases = append(a.Aliases, alias)
					slices.Sort(a.Aliases)
				}
			}
		}
	}
}

func joins(s *gantryv1.ServiceSpec, network string) bool {
	return slices.ContainsFunc(s.Container.GetNetwork().GetAttachments(),
		func(a *gantryv1.NetworkAttachment) bool { return a.Network == network })
}

// macAddress is the service's own or that of its one network.
func (c *converter) macAddress(path []string, s *types.ServiceConfig) string {
	at, mac := append(slices.Clone(path), "mac_address"), s.MacAddress
	for _, name := range slices.Sorted(maps.Keys(s.Networks)) {
		if n := s.Networks[name]; n != nil && n.MacAddress != "" {
			at = append(slices.Clone(path), "networks", name, "mac_address")
			if mac != "" && mac != n.MacAddress {
				c.report.refuse(at, "a second hardware address; an instance has one for all its networks")
			}
			mac = n.MacAddress
		}
	}
	if hw, err := net.ParseMAC(mac); mac != "" && (err != nil || len(hw) != 6) {
		c.report.invalid(at, "write it like 02:42:ac:11:00:02", "%q is not a hardware address", shorten(mac))
	}
	return mac
}

func (c *converter) ports(path []string, s *types.ServiceConfig) []*gantryv1.PortPublish {
	var out []*gantryv1.PortPublish
	for i, p := range s.Ports {
		at := append(slices.Clone(path), "ports", strconv.Itoa(i))
		if i == maxPorts {
			c.report.invalid(at[:3], "publish fewer ports, or use network_mode: host", "more than %d ports are published", maxPorts)
			break
		}
		pub := &gantryv1.PortPublish{
			HostIp: p.HostIP, ContainerPort: p.Target,
			Protocol: c.oneOf(append(at, "protocol"), strings.ToLower(p.Protocol), "", "tcp", "udp"),
			Mode:     c.oneOf(append(at, "mode"), p.Mode, "", "ingress", "host"),
		}
		if pub.Protocol == "" {
			pub.Protocol = "tcp"
		}
		if pub.Mode == "" {
			pub.Mode = "ingress"
		}
		c.port(at, p, pub)
		out = append(out, pub)
	}
	return out
}

func (c *converter) port(at []string, p types.ServicePortConfig, pub *gantryv1.PortPublish) {
	const example = `write it like "8080:80" or "127.0.0.1:8080:80/udp"`
	if p.Target == 0 || p.Target > 65535 {
		c.report.invalid(append(at, "target"), example, "%d is not a port", p.Target)
	}
	if p.HostIP != "" {
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			c.report.invalid(append(at, "host_ip"), example, "%q is not an address", shorten(p.HostIP))
		}
	}
	if p.Published == "" {
		return
	}
	if strings.Contains(p.Published, "-") {
		c.report.refuse(append(at, "published"), "a range of host ports for one container port; name one port, or leave it out for any free one")
		return
	}
	n, err := strconv.ParseUint(p.Published, 10, 16)
	if err != nil {
		c.report.invalid(append(at, "published"), example, "%q is not a port", shorten(p.Published))
	}
	pub.HostPort = uint32(n)
}
