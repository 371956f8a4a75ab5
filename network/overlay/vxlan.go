package overlay

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// vni tells our networks from those of others that use the same port. It keeps nobody out: the table does.
const vni = 7452

// vxlan is a device that never asks who is where: each node's gateway has a fixed neighbour entry, and each of those MAC
// addresses a fixed machine.
type vxlan struct {
	o     Options
	links *netlink.Handle
}

// mac is a node's address on the overlay's link, a function of its range.
func mac(subnet netip.Prefix) net.HardwareAddr {
	b := Gateway(subnet).As4()
	return net.HardwareAddr{0x02, 0x76, b[0], b[1], b[2], b[3]}
}

func (v *vxlan) ensure() (netlink.Link, bool, error) {
	link, err := v.links.LinkByName(v.o.Device)
	if err == nil {
		if err := ours(link, v.o); err != nil {
			return nil, false, err
		}
		if v.fits(link) {
			return link, false, v.up(link)
		}
		if err := v.links.LinkDel(link); err != nil {
			return nil, false, fault.Wrap(fault.Internal, err, "remove the overlay %s, to make it anew", v.o.Device)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group, attrs.HardwareAddr = v.o.Device, v.o.MTU, v.o.Group, mac(v.o.Subnet)
	// With a checksum of the outer packet the receiver's card, or the kernel, need not look at the inner one.
	err = v.links.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, SrcAddr: v.o.Address.AsSlice(), Port: int(v.o.Port), UDPCSum: true})
	if err != nil {
		return nil, false, fault.Wrap(fault.Unsupported, err, "make the overlay %s", v.o.Device).WithHint("modprobe vxlan")
	}
	if link, err = v.links.LinkByName(v.o.Device); err != nil {
		return nil, false, fault.Wrap(fault.Internal, err, "find the overlay %s", v.o.Device)
	}
	return link, true, v.up(link)
}

// ours refuses a device of somebody else.
func ours(link netlink.Link, o Options) error {
	if link.Attrs().Group == o.Group {
		return nil
	}
	return fault.New(fault.Conflict, "a network device %q of type %s exists already", o.Device, link.Type()).
		WithHint("start gantryd with another --bridge, or remove the device: ip link delete %s", o.Device)
}

// fits reports whether a device that is there can stay.
func (v *vxlan) fits(link netlink.Link) bool {
	x, ok := link.(*netlink.Vxlan)
	if !ok {
		return false
	}
	source, _ := netip.AddrFromSlice(x.SrcAddr)
	return x.VxlanId == vni && x.Port == int(v.o.Port) && source.Unmap() == v.o.Address && !x.Learning &&
		x.Attrs().HardwareAddr.String() == mac(v.o.Subnet).String()
}

func (v *vxlan) up(link netlink.Link) error {
	if link.Attrs().MTU != v.o.MTU {
		if err := v.links.LinkSetMTU(link, v.o.MTU); err != nil {
			return fault.Wrap(fault.Unsupported, err, "give %s an MTU of %d", v.o.Device, v.o.MTU)
		}
	}
	err := v.links.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) {
		return fault.New(fault.Conflict, "UDP port %d of the overlay is taken", v.o.Port).
			WithHint("ss -lunp | grep :%d shows by whom; all nodes need the same port free", v.o.Port)
	}
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "switch %s on", v.o.Device)
	}
	return nil
}

func (v *vxlan) put(link netlink.Link, p Peer) error {
	for _, e := range v.entries(link, p) {
		if err := v.links.NeighSet(e); err != nil {
			return err
		}
	}
	return nil
}

func (v *vxlan) drop(link netlink.Link, p Peer) error {
	for _, e := range v.entries(link, p) {
		if err := v.links.NeighDel(e); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// entries are what leads to a peer: its gateways have its MAC address, and that is at its address.
func (v *vxlan) entries(link netlink.Link, p Peer) []*netlink.Neigh {
	index, to := link.Attrs().Index, mac(p.Subnet)
	out := []*netlink.Neigh{
		{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: p.Address.AsSlice(), HardwareAddr: to},
		{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: Gateway(p.Subnet).AsSlice(), HardwareAddr: to},
	}
	if p.Subnet6.IsValid() && v.o.Subnet6.IsValid() {
		out = append(out, &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: Gateway6(p.Subnet6, p.Subnet).AsSlice(), HardwareAddr: to})
	}
	return out
}

// retain removes entries of machines that are gone. Those of machines that moved are replaced by put.
func (v *vxlan) retain(link netlink.Link, peers []Peer) error {
	keep := map[string]bool{}
	for _, p := range peers {
		keep[mac(p.Subnet).String()] = true
	}
	for _, family := range []int{unix.AF_BRIDGE, netlink.FAMILY_V4, netlink.FAMILY_V6} {
		entries, err := v.links.NeighList(link.Attrs().Index, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		for _, e := range entries {
			if e.State&netlink.NUD_PERMANENT != 0 && len(e.HardwareAddr) == 6 && !keep[e.HardwareAddr.String()] {
				_ = v.links.NeighDel(&e) // it may have gone meanwhile
			}
		}
	}
	return nil
}

func (v *vxlan) route(r *netlink.Route, gateway netip.Addr) {
	r.Gw, r.Flags = gateway.AsSlice(), int(netlink.FLAG_ONLINK)
}

// met and takes are always true: machines need not talk before they send.
func (v *vxlan) met(Peer) bool   { return true }
func (v *vxlan) takes(Peer) bool { return true }

func (v *vxlan) close() {}
