// Package event reads what the kernel says over netlink when somebody changes its network.
package event

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ForwardingOff reads an event about a setting of all devices: struct netconfmsg of linux/netconf.h, and its attributes.
func ForwardingOff(data []byte) bool {
	const header, attrIndex, attrForwarding, all = 1, 1, 2, ^uint32(0)
	index, forwarding := Attribute(data, header, attrIndex), Attribute(data, header, attrForwarding)
	return len(index) == 4 && binary.NativeEndian.Uint32(index) == all && len(forwarding) == 4 && binary.NativeEndian.Uint32(forwarding) == 0
}

// Address is the address that an attribute holds; the zero value if it holds none.
func Address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}

// Attribute is the value of the first attribute of a kind in a message, after its header.
func Attribute(data []byte, header int, kind uint16) []byte {
	for at := (header + 3) &^ 3; at+4 <= len(data); {
		size := int(binary.NativeEndian.Uint16(data[at:]))
		if size < 4 || at+size > len(data) {
			return nil
		}
		if binary.NativeEndian.Uint16(data[at+2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return data[at+4 : at+size]
		}
		at += (size + 3) &^ 3
	}
	return nil
}
