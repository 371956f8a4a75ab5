package network

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
)

// selection says which tracked connections are to be forgotten, and whether IPv6 ones can be among them.
type selection interface {
	netlink.CustomConntrackFilter
	has6() bool
}

// deleteFlows forgets tracked connections that match. The list is read once, however many containers are gone.
func deleteFlows(h *netlink.Handle, f selection) error {
	_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, f)
	if err != nil && !harmless(err) {
		return err
	}
	if !f.has6() { // to list a family costs milliseconds even when it is empty
		return nil
	}
	if _, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V6, f); err != nil && !harmless(err) {
		return err
	}
	return nil
}

// harmless reports whether a list was merely disturbed, or the kernel tracks nothing of the family.
func harmless(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// MatchConntrackFlow reports whether a flow is to be forgotten. The reply's source is where the connection really went.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, to := toAddr(flow.Forward.SrcIP), toAddr(flow.Reverse.SrcIP)
	if f.gone[from] || f.gone[to] {
		return true
	}
	if (f.moved[from] || f.moved[to]) && !f.allowed(from, to) {
		return true
	}
	if flow.Forward.Protocol != protoUDP {
		return false
	}
	return translated(flow) && f.left[to] || !translated(flow) && f.ports[flow.Forward.DstPort]
}

// translated reports whether a flow went elsewhere than its sender said.
func translated(flow *netlink.ConntrackFlow) bool {
	return !flow.Forward.DstIP.Equal(flow.Reverse.SrcIP)
}

// allowed repeats what the table's rules would say of a new connection.
func (f flows) allowed(from, to netip.Addr) bool {
	s, isContainer := f.model.segments[from]
	t, toContainer := f.model.segments[to]
	if isContainer && toContainer {
		return f.model.table.Share(s, t)
	}
	_, internal := f.model.internal[from]
	return !internal
}

func toAddr(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
