// Package tracked forgets connections that the kernel tracks, so that their next packet is judged anew.
package tracked

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/gantryd/gantry/network/event"
)

// Selection says which tracked connections are to be forgotten, and whether IPv6 ones can be among them.
type Selection interface {
	netlink.CustomConntrackFilter
	Has6() bool
}

// Forget forgets connections that match. The list is read once, however many containers are gone.
func Forget(h *netlink.Handle, s Selection) error {
	_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, s)
	if err != nil && !harmless(err) {
		return err
	}
	if !s.Has6() { // to list a family costs milliseconds even when it is empty
		return nil
	}
	if _, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V6, s); err != nil && !harmless(err) {
		return err
	}
	return nil
}

// harmless reports whether a list was merely disturbed, or the kernel tracks nothing of the family.
func harmless(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// Translated reports whether a flow went elsewhere than its sender said.
func Translated(flow *netlink.ConntrackFlow) bool {
	return !flow.Forward.DstIP.Equal(flow.Reverse.SrcIP)
}

// Unanswered reports whether a flow is a TCP connection whose first packet has got no answer yet.
func Unanswered(flow *netlink.ConntrackFlow) bool { return is(flow, nl.TCP_CONNTRACK_SYN_SENT) }

// Broken reports whether a flow is a TCP connection that ended with a reset. For ten seconds the kernel sends a new one of the same
// ports where that one went, if the reset came from there.
func Broken(flow *netlink.ConntrackFlow) bool { return is(flow, nl.TCP_CONNTRACK_CLOSE) }

// Closed reports whether a flow is a TCP connection that both sides have closed. The kernel remembers it for two minutes, and
// takes it away when one of the same ports begins, often to put the new one in its place, with its number. Who reads the list
// of flows and then forgets a closed one may forget the one that has begun since.
func Closed(flow *netlink.ConntrackFlow) bool { return is(flow, nl.TCP_CONNTRACK_TIME_WAIT) }

func is(flow *netlink.ConntrackFlow, state uint8) bool {
	tcp, is := flow.ProtoInfo.(*netlink.ProtoInfoTCP)
	return is && tcp.State == state
}

// Between is where a flow comes from and where it really goes: where replies come from.
func Between(flow *netlink.ConntrackFlow) (from, to netip.Addr) {
	return event.Address(flow.Forward.SrcIP), event.Address(flow.Reverse.SrcIP)
}
