package network

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/event"
	"github.com/gantryd/gantry/network/overlay"
)

// OverlayKey is the public key of this node's end of the encrypted overlay, for the Node.overlay_key that others are told.
// root is Options.Root. The first call makes the key pair; it stays on the machine.
func OverlayKey(root string) (string, error) { return overlay.PublicKey(overlayKeyFile(root)) }

func overlayKeyFile(root string) string { return filepath.Join(root, "network", "overlay.key") }

// overlayDevice names the overlay's device beside the bridge's.
func overlayDevice(bridge string) string { return bridge[:min(len(bridge), 13)] + "-x" }

// alone reports whether the node knows no others.
func (o Options) alone() bool { return !o.Address.IsValid() }

func (o Options) overlayPort() uint16 {
	switch {
	case o.OverlayPort != 0:
		return o.OverlayPort
	case o.Overlay == overlay.WireGuard:
		return overlay.WireGuardPort
	}
	return overlay.VXLANPort
}

// completeOverlay checks what the options say of other nodes.
func (o Options) completeOverlay() (Options, error) {
	if o.alone() {
		return o, nil
	}
	if o.Overlay == "" {
		o.Overlay = overlay.VXLAN
	}
	o.Address, o.NodeRange = o.Address.Unmap(), o.NodeRange.Masked()
	switch {
	case o.Overlay != overlay.VXLAN && o.Overlay != overlay.WireGuard:
		return o, fault.New(fault.Invalid, "network: %q is no kind of overlay", o.Overlay).WithHint("it is %s or %s", overlay.VXLAN, overlay.WireGuard)
	case o.Address.IsUnspecified() || o.Address.IsLoopback() || o.Address.IsMulticast():
		return o, fault.New(fault.Invalid, "network: other machines cannot reach this one at %s", o.Address)
	case o.NodeRange.IsValid() && !contains(o.NodeRange, o.Subnet):
		return o, fault.New(fault.Invalid, "network: the node's range %s is not in the cluster's %s", o.Subnet, o.NodeRange)
	case o.NodeRange.IsValid() && o.NodeRange.Overlaps(o.VirtualIPs):
		return o, fault.New(fault.Invalid, "network: virtual addresses %s must be outside of the nodes' %s", o.VirtualIPs, o.NodeRange)
	case contains(o.NodeRange, single(o.Address)):
		return o, fault.New(fault.Invalid, "network: this machine's address %s is in the range of instances %s", o.Address, o.NodeRange).
			WithHint("choose another range for instances")
	}
	return o, nil
}

func contains(outer, inner netip.Prefix) bool {
	return outer.IsValid() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// openOverlay makes the way to other nodes, to those that were there when the daemon ended. A machine that stands alone
// loses the one it may have had.
func (n *Network) openOverlay() error {
	if n.opts.alone() {
		return overlay.RemoveLeft(n.links, overlayDevice(n.opts.Bridge), n.group, n.opts.Subnet)
	}
	o := overlay.Options{
		Kind: n.opts.Overlay, Device: overlayDevice(n.opts.Bridge), Group: n.group, Address: n.opts.Address, Port: n.opts.overlayPort(),
		Subnet: n.opts.Subnet, Subnet6: n.opts.Subnet6, Range: n.opts.NodeRange, MTU: n.opts.MTU,
		KeyFile: overlayKeyFile(n.opts.Root), Logger: n.log,
	}
	if n.opts.Cluster != "" && n.opts.Subnet6.IsValid() {
		o.Range6 = overlay.Range6(n.opts.Cluster)
	}
	var err error
	if n.overlay, err = overlay.Open(n.links, o, n.readPeers()); err != nil {
		return err
	}
	return n.overlaySysctls()
}

// overlaySysctls are those of a container's link, for the same reasons.
func (n *Network) overlaySysctls() error {
	return n.linkSysctls(overlayDevice(n.opts.Bridge))
}

func (n *Network) readPeers() []overlay.Peer {
	var peers []overlay.Peer
	if b, err := os.ReadFile(n.names.nodes); err == nil {
		_ = json.Unmarshal(b, &peers) // a damaged record only costs the time until a server tells
	}
	return slices.DeleteFunc(peers, func(p overlay.Peer) bool { return !p.Address.IsValid() || !n.isElsewhere(p.Subnet) })
}

// isElsewhere reports whether a range can be another node's.
func (n *Network) isElsewhere(subnet netip.Prefix) bool {
	return subnet.IsValid() && subnet.Addr().Is4() && subnet.Bits() <= 30 && !subnet.Overlaps(n.opts.Subnet) &&
		!subnet.Overlaps(n.opts.VirtualIPs) && (!n.opts.NodeRange.IsValid() || contains(n.opts.NodeRange, subnet))
}

// peers are the other nodes, sorted. Of a node without address or range nothing can be reached yet.
func (n *Network) peers(nodes []*gantryv1.Node) []overlay.Peer {
	if n.opts.alone() {
		return nil
	}
	var out []overlay.Peer
	for _, node := range nodes {
		address, err := netip.ParseAddr(node.Address)
		subnet, err2 := netip.ParsePrefix(node.Subnet)
		if err != nil || err2 != nil || address.Unmap() == n.opts.Address || subnet.Masked() == n.opts.Subnet {
			continue
		}
		if !n.isElsewhere(subnet) {
			n.log.Warn("a node's range cannot be used; its instances are not reachable", "node", node.Name, "range", node.Subnet)
			continue
		}
		out = append(out, overlay.Peer{Address: address.Unmap(), Subnet: subnet.Masked(), Subnet6: n.subnet6Of(node, subnet), Key: node.OverlayKey})
	}
	slices.SortFunc(out, func(a, b overlay.Peer) int { return a.Subnet.Addr().Compare(b.Subnet.Addr()) })
	return slices.CompactFunc(out, func(a, b overlay.Peer) bool { return a.Subnet.Overlaps(b.Subnet) })
}

// subnet6Of is a node's IPv6 range: its own, or the one that follows from the cluster and its IPv4 range.
func (n *Network) subnet6Of(node *gantryv1.Node, subnet netip.Prefix) netip.Prefix {
	if p, err := netip.ParsePrefix(node.Subnet6); err == nil && p.Addr().Is6() && p.Bits() <= 96 {
		return p.Masked()
	}
	if n.opts.Cluster == "" {
		return netip.Prefix{}
	}
	return overlay.Subnet6(n.opts.Cluster, subnet.Masked())
}

// meet opens the ways to other nodes and closes those to nodes that are gone. They are recorded, so that a restart opens
// them before a server has been heard.
func (n *Network) meet(want *model) error {
	if n.overlay == nil || n.met != nil && slices.Equal(*n.met, want.peers) {
		return nil
	}
	if err := errors.Join(writeJSON(n.names.nodes, want.peers), n.overlay.Set(want.peers)); err != nil {
		return err
	}
	met := want.peers // the model changes in place
	n.met = &met
	return nil
}

// uplink is the device that has the address other machines know, if any.
func (n *Network) uplink() netlink.Link {
	if n.opts.alone() {
		return nil
	}
	family := netlink.FAMILY_V4
	if n.opts.Address.Is6() {
		family = netlink.FAMILY_V6
	}
	addrs, _ := whole(func() ([]netlink.Addr, error) { return n.links.AddrList(nil, family) })
	for _, a := range addrs {
		if event.Address(a.IP) != n.opts.Address {
			continue
		}
		if l, err := n.links.LinkByIndex(a.LinkIndex); err == nil {
			return l
		}
	}
	return nil
}
