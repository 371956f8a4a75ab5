package network

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/event"
	"github.com/gantryd/gantry/network/overlay"
)

// hostRecord is what Open found on the host before it changed it, so that Cleanup can put it back.
type hostRecord struct {
	Subnet6 string            `json:"subnet6,omitempty"`
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

func (n *Network) readHostRecord() hostRecord {
	var r hostRecord
	if b, err := os.ReadFile(n.names.host); err == nil {
		_ = json.Unmarshal(b, &r) // a damaged record only loses the values to put back
	}
	if r.Sysctls == nil {
		r.Sysctls = map[string]string{}
	}
	return r
}

// chooseIPv6 settles the IPv6 range: the given one, the cluster's, the one derived before, or a new random private one.
func (n *Network) chooseIPv6() error {
	if n.opts.DisableIPv6 || !hostHasIPv6() {
		n.opts.Subnet6 = netip.Prefix{}
		return nil
	}
	if n.opts.Subnet6.IsValid() {
		return nil
	}
	if !n.opts.alone() {
		// An address that other nodes do not know must not be given to anybody: clients try IPv6 first.
		if n.opts.Cluster != "" {
			n.opts.Subnet6 = overlay.Subnet6(n.opts.Cluster, n.opts.Subnet)
		}
		return nil
	}
	r := n.readHostRecord()
	if p, err := netip.ParsePrefix(r.Subnet6); err == nil && p.Bits() <= 96 {
		n.opts.Subnet6 = p
		return nil
	}
	b := [16]byte{0: 0xfd}
	rand.Read(b[1:8]) // RFC 4193: 40 random bits and a subnet, so that two sites can be joined later
	n.opts.Subnet6 = netip.PrefixFrom(netip.AddrFrom16(b), 64)
	r.Subnet6 = n.opts.Subnet6.String()
	return writeJSON(n.names.host, r)
}

func hostHasIPv6() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// prepareHost makes the gateway device with its routes and switches forwarding on.
func (n *Network) prepareHost() error {
	if err := n.recordSysctls(); err != nil {
		return err
	}
	link, err := n.ensureBridge()
	if err != nil {
		return err
	}
	if err := n.checkRoutes(link.Attrs().Index); err != nil {
		return err
	}
	if n.opts.MTU == 0 {
		n.opts.MTU = n.linkMTU()
	}
	if err := n.ensureGateway(link); err != nil {
		return fault.Wrap(fault.Unsupported, err, "give %s its addresses", n.opts.Bridge)
	}
	return n.enableForwarding()
}

func (n *Network) ensureBridge() (netlink.Link, error) {
	name := n.opts.Bridge
	link, err := n.links.LinkByName(name)
	if err == nil && link.Type() != "bridge" {
		return nil, fault.New(fault.Conflict, "a network device %q of type %s exists already", name, link.Type()).
			WithHint("start gantryd with another --bridge, or remove the device: ip link delete %s", name)
	}
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, fault.Wrap(fault.Unsupported, err, "make the bridge %s", name).WithHint("modprobe bridge")
		}
		n.log.Info("the bridge was not there and is made", "device", name)
		if link, err = n.links.LinkByName(name); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "find the bridge %s", name)
		}
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return nil, fault.Wrap(fault.Unsupported, err, "switch %s on", name)
	}
	return link, nil
}

// reassertHost puts back what somebody took away of the bridge, forwarding and the overlay.
func (n *Network) reassertHost() error {
	n.applying.Lock()
	defer n.applying.Unlock()
	if n.removed {
		return nil
	}
	link, err := n.ensureBridge()
	if err != nil {
		return err
	}
	if err := n.ensureGateway(link); err != nil {
		return fault.Wrap(fault.Unsupported, err, "give %s its addresses", n.opts.Bridge)
	}
	if err := n.enableForwarding(); err != nil {
		return err
	}
	if n.overlay == nil {
		return nil
	}
	return errors.Join(n.overlay.Ensure(), n.overlaySysctls())
}

// reassertLinks repairs the links of containers that are attached, and those made ahead. Nil means all.
func (n *Network) reassertLinks(addresses map[netip.Addr]bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var failures []error
	for _, r := range slices.AppendSeq(slices.Clone(n.ready), maps.Values(n.attached)) {
		if r.live && (addresses == nil || addresses[r.Address]) {
			failures = append(failures, n.rewire(r))
		}
	}
	return errors.Join(failures...)
}

// checkRoutes refuses ranges that the host uses already: one of the two would lose its traffic.
func (n *Network) checkRoutes(bridge int) error {
	routes, err := whole(func() ([]netlink.Route, error) { return n.links.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fault.Wrap(fault.Internal, err, "list the host's routes")
	}
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == bridge || r.LinkIndex == 0 || r.Protocol == overlay.Protocol {
			continue
		}
		bits, _ := r.Dst.Mask.Size()
		dst := netip.PrefixFrom(event.Address(r.Dst.IP), bits)
		for _, ours := range []netip.Prefix{n.opts.Subnet, n.opts.VirtualIPs, n.opts.NodeRange} {
			if !ours.IsValid() || bits < ours.Bits() || !ours.Contains(dst.Addr()) {
				continue // a wider route, such as the default one, gives way to ours
			}
			link, err := n.links.LinkByIndex(r.LinkIndex)
			if err == nil && link.Attrs().Group != n.group {
				return fault.New(fault.Conflict, "the range %s is in use: the host reaches %s by %s", ours, dst, link.Attrs().Name).
					WithHint("choose another range for containers; ip route shows which are free")
			}
		}
	}
	return nil
}

// ensureGateway gives the bridge the gateway's address and the routes that catch what no container has: an address of the
// range without a container, and virtual addresses. The table rejects what arrives there, so that callers fail fast.
func (n *Network) ensureGateway(link netlink.Link) error {
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.Gateway(), n.opts.Subnet.Bits()))}
	old, _ := n.links.AddrList(link, netlink.FAMILY_V4)
	for _, a := range old { // the node may have had another range before
		if !a.Equal(*addr) {
			_ = n.links.AddrDel(link, &a)
		}
	}
	if err := n.links.AddrReplace(link, addr); err != nil {
		return err
	}
	if n.opts.VirtualIPs.IsValid() {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(n.opts.VirtualIPs), Scope: netlink.SCOPE_LINK,
			Src: n.Gateway().AsSlice()}
		if err := n.links.RouteReplace(r); err != nil {
			return err
		}
	}
	if !n.opts.Subnet6.IsValid() {
		return nil
	}
	addr6 := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.Gateway6(), n.opts.Subnet6.Bits())), Flags: syscall.IFA_F_NODAD}
	return n.links.AddrReplace(link, addr6)
}

// linkMTU is what containers' links can carry, to other nodes too.
func (n *Network) linkMTU() int {
	if n.opts.alone() {
		return n.uplinkMTU()
	}
	outer := n.uplinkMTU()
	if l := n.uplink(); l != nil {
		outer = min(l.Attrs().MTU, 9216)
	}
	return outer - overlay.Overhead(n.opts.Overlay, n.opts.Address)
}

// uplinkMTU is the MTU of the default route's device: a larger one in containers would rely on path MTU discovery, which
// firewalls break.
func (n *Network) uplinkMTU() int {
	routes, _ := n.links.RouteList(nil, netlink.FAMILY_V4)
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		if l, err := n.links.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 1280 {
			return min(l.Attrs().MTU, 9216)
		}
	}
	return 1500
}

const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
)

func (n *Network) recordSysctls() error {
	r := n.readHostRecord()
	for _, key := range []string{forward4, forward6} {
		if _, known := r.Sysctls[key]; known {
			continue
		}
		if v, err := readSysctl(key); err == nil {
			r.Sysctls[key] = v
		}
	}
	return writeJSON(n.names.host, r)
}

func (n *Network) enableForwarding() error {
	if v, _ := readSysctl(forward4); v != "1" {
		n.log.Info("forwarding was off and is switched on", "sysctl", forward4)
	}
	if err := writeSysctl(forward4, "1"); err != nil {
		return fault.Wrap(fault.Unsupported, err, "switch IPv4 forwarding on").WithHint("sysctl -w net.ipv4.ip_forward=1")
	}
	if !n.opts.Subnet6.IsValid() {
		return nil
	}
	if v, _ := readSysctl(forward6); v == "1" {
		return nil
	}
	n.log.Info("forwarding was off and is switched on", "sysctl", forward6)
	keepRouterAdvertisements()
	if err := writeSysctl(forward6, "1"); err != nil {
		return fault.Wrap(fault.Unsupported, err, "switch IPv6 forwarding on")
	}
	return nil
}

// keepRouterAdvertisements lets devices that learn their default route from router advertisements go on doing so: the
// kernel ignores them on a forwarding host unless accept_ra is 2.
func keepRouterAdvertisements() {
	files, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == "1" {
			_ = os.WriteFile(f, []byte("2"), 0) // best effort: a device may vanish meanwhile
		}
	}
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + key)
	return strings.TrimSpace(string(b)), err
}

// writeSysctl writes only a change: /proc/sys may be read-only in a nested container where the value is right already.
func writeSysctl(key, value string) error {
	if v, err := readSysctl(key); err == nil && v == value {
		return nil
	}
	return os.WriteFile("/proc/sys/"+key, []byte(value), 0)
}

// writeJSON replaces a file in one step. It does not sync: what is recorded here matters across a crash of the daemon,
// while after a crash of the machine no container is left that could use it.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode %s", filepath.Base(path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "write the network's records")
	}
	tmp := path + ".new"
	if err := errors.Join(os.WriteFile(tmp, b, 0o600)); err != nil {
		os.Remove(tmp)
		return fault.Wrap(diskKind(err), err, "write the network's records").WithHint("df -h %s", filepath.Dir(path))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fault.Wrap(diskKind(err), err, "write the network's records")
	}
	return nil
}

func diskKind(err error) fault.Kind {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.Exhausted
	}
	return fault.Unavailable
}
