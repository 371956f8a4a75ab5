package tracked

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/network/event"
)

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	getFlows   = 1 // IPCTNL_MSG_CT_GET
	deleteFlow = 2 // IPCTNL_MSG_CT_DELETE

	attrOrig, attrReply, attrProtocolInfo, attrFilter  = 1, 2, 4, 25
	attrAddresses, attrProtocol                        = 1, 2       // of a direction
	attrSource4, attrTarget4, attrSource6, attrTarget6 = 1, 2, 3, 4 // of addresses
	attrNumber, attrSourcePort, attrTargetPort         = 1, 2, 3    // of a protocol
	attrTCP, attrState                                 = 1, 1       // of protocol information

	filterSource = uint32(1) // CTA_FILTER_F_CTA_IP_SRC
	headerSize   = 4         // struct nfgenmsg
)

func message(kind uint8, flags netlink.HeaderFlags, data []byte) netlink.Message {
	const ofTracking = unix.NFNL_SUBSYS_CTNETLINK << 8
	return netlink.Message{Header: netlink.Header{Type: ofTracking | netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: data}
}

// questions ask for all flows that begin or end at addresses, or for all there are. A kernel before 5.8 takes no notice of
// addresses, and lists all.
func questions(ends []netip.Addr, only bool) []netlink.Message {
	var out []netlink.Message
	if only && len(ends) <= fewEnds {
		for _, a := range ends {
			out = append(out, question(a, attrOrig), question(a, attrReply))
		}
		return out
	}
	if slices.ContainsFunc(ends, netip.Addr.Is6) {
		out = append(out, whole(unix.AF_INET6))
	}
	if !only || slices.ContainsFunc(ends, netip.Addr.Is4) {
		out = append(out, whole(unix.AF_INET))
	}
	return out
}

func whole(family byte) netlink.Message {
	return message(getFlows, netlink.Dump, []byte{family, unix.NFNETLINK_V0, 0, 0})
}

// question asks for the flows of which an address is the source, in the direction in which they were begun or in that of replies.
func question(a netip.Addr, direction uint16) netlink.Message {
	family, source := byte(unix.AF_INET), uint16(attrSource4)
	if a.Is6() {
		family, source = unix.AF_INET6, attrSource6
	}
	e := netlink.NewAttributeEncoder()
	e.Nested(direction, func(e *netlink.AttributeEncoder) error {
		e.Nested(attrAddresses, func(e *netlink.AttributeEncoder) error {
			e.Bytes(source, a.AsSlice())
			return nil
		})
		return nil
	})
	e.Nested(attrFilter, func(e *netlink.AttributeEncoder) error {
		e.Uint32(direction, filterSource) // the filter numbers its directions alike
		return nil
	})
	attributes, err := e.Encode()
	if err != nil {
		panic(err) // of a few bytes
	}
	m := whole(family)
	m.Data = append(m.Data, attributes...)
	return m
}

// parse reads what a list says of a flow. What it does not say stays zero.
func parse(data []byte) Flow {
	orig, reply := event.Attribute(data, headerSize, attrOrig), event.Attribute(data, headerSize, attrReply)
	tcp := event.Attribute(event.Attribute(data, headerSize, attrProtocolInfo), 0, attrTCP)
	protocol := event.Attribute(orig, 0, attrProtocol)
	f := Flow{From: address(orig, attrSource4, attrSource6), To: address(reply, attrSource4, attrSource6), Said: address(orig, attrTarget4, attrTarget6)}
	f.FromPort, f.Port = port(protocol, attrSourcePort), port(protocol, attrTargetPort)
	f.Protocol, f.state = number(protocol, attrNumber), number(tcp, attrState)
	return f
}

func address(tuple []byte, kind4, kind6 uint16) netip.Addr {
	all := event.Attribute(tuple, 0, attrAddresses)
	if a := event.Attribute(all, 0, kind4); a != nil {
		return event.Address(a)
	}
	return event.Address(event.Attribute(all, 0, kind6))
}

func port(protocol []byte, kind uint16) uint16 {
	b := event.Attribute(protocol, 0, kind)
	if len(b) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func number(attributes []byte, kind uint16) uint8 {
	b := event.Attribute(attributes, 0, kind)
	if len(b) != 1 {
		return 0
	}
	return b[0]
}
