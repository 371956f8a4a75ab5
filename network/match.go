package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of the kernel's rule machine: 32 bits each, neighbours form one concatenated key.
const (
	regA uint32 = unix.NFT_REG32_00
	regB uint32 = unix.NFT_REG32_01
	regC uint32 = unix.NFT_REG32_02
	reg1 uint32 = unix.NFT_REG_1
)

type rule []expr.Any

func join(parts ...rule) rule {
	var r rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func equals(reg uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func differs(reg uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func meta(key expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func verdict(kind expr.VerdictKind, chain string) rule {
	return rule{&expr.Verdict{Kind: kind, Chain: chain}}
}

func accept() rule { return verdict(expr.VerdictAccept, "") }
func drop() rule   { return verdict(expr.VerdictDrop, "") }

func fromOurs(group uint32) rule {
	return rule{meta(expr.MetaKeyIIFGROUP, reg1), equals(reg1, native32(group))}
}
func notFromOurs(group uint32) rule {
	return rule{meta(expr.MetaKeyIIFGROUP, reg1), differs(reg1, native32(group))}
}
func toOurs(group uint32) rule {
	return rule{meta(expr.MetaKeyOIFGROUP, reg1), equals(reg1, native32(group))}
}
func notToOurs(group uint32) rule {
	return rule{meta(expr.MetaKeyOIFGROUP, reg1), differs(reg1, native32(group))}
}

func toDevice(name string) rule {
	return rule{meta(expr.MetaKeyOIFNAME, reg1), equals(reg1, deviceName(name))}
}
func fromDevice(name string) rule {
	return rule{meta(expr.MetaKeyIIFNAME, reg1), equals(reg1, deviceName(name))}
}

// deviceName is a name as the kernel compares it.
func deviceName(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

func ipv4() rule {
	return rule{meta(expr.MetaKeyNFPROTO, reg1), equals(reg1, []byte{unix.NFPROTO_IPV4})}
}
func ipv6() rule {
	return rule{meta(expr.MetaKeyNFPROTO, reg1), equals(reg1, []byte{unix.NFPROTO_IPV6})}
}

func protocol(p uint8) rule { return rule{meta(expr.MetaKeyL4PROTO, reg1), equals(reg1, []byte{p})} }

func networkHeader(reg, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func source4(reg uint32) expr.Any      { return networkHeader(reg, 12, 4) }
func destination4(reg uint32) expr.Any { return networkHeader(reg, 16, 4) }
func source6(reg uint32) expr.Any      { return networkHeader(reg, 8, 16) }
func destination6(reg uint32) expr.Any { return networkHeader(reg, 24, 16) }

func destinationPort(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// within matches the address that load puts into a register against a range.
func within(load func(uint32) expr.Any, p netip.Prefix) rule {
	return append(rule{load(reg1)}, prefix(reg1, p, expr.CmpOpEq)...)
}

func prefix(reg uint32, p netip.Prefix, op expr.CmpOp) rule {
	n := ipNet(p)
	return rule{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(n.Mask)), Mask: n.Mask, Xor: make([]byte, len(n.Mask))},
		&expr.Cmp{Op: op, Register: reg, Data: p.Addr().AsSlice()},
	}
}

func inSet(reg uint32, s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}
}

// translate replaces a register by what a map says; a miss ends the rule.
func translate(from, to uint32, s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: from, DestRegister: to, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}
}

// dispatch goes where a verdict map says, or on to the next rule. Register 0 is the verdict's.
func dispatch(reg uint32, s *nftables.Set) expr.Any { return translate(reg, 0, s) }

func established() rule {
	return ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
}

func ctState(bits uint32) rule { return ctBits(expr.CtKeySTATE, bits) }

// destinationTranslated matches connections whose destination was replaced: IPS_DST_NAT of the kernel's ct status.
func destinationTranslated() rule { return ctBits(expr.CtKeySTATUS, 1<<5) }

func ctBits(key expr.CtKey, bits uint32) rule {
	return rule{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native32(bits), Xor: native32(0)},
		differs(reg1, native32(0)),
	}
}

// originalDestination loads where the connection was addressed to before translation.
func originalDestination(reg uint32) expr.Any {
	return &expr.Ct{Key: expr.CtKeyDST, Register: reg, Direction: 0}
}

// localDestination matches packets to any address of the node itself.
func localDestination() rule {
	return rule{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		equals(reg1, native32(unix.RTN_LOCAL)),
	}
}

// forgedSource matches packets whose source address is not routed to the device they came in by, routedBack all others.
func forgedSource() rule { return rule{sourceRoute(), equals(reg1, native32(0))} }
func routedBack() rule   { return rule{sourceRoute(), differs(reg1, native32(0))} }

func sourceRoute() expr.Any {
	return &expr.Fib{Register: reg1, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true}
}

// refuse and absent go to the branches that answer: forbidden, and nobody there.
func refuse() rule { return verdict(expr.VerdictGoto, "refuse") }
func absent() rule { return verdict(expr.VerdictGoto, "absent") }

func unreachable(code uint8) rule {
	return rule{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: code}}
}

func reset() rule { return rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func sourceTo(a netip.Addr) rule {
	return rule{
		&expr.Immediate{Register: reg1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1},
	}
}

func masquerade() rule { return rule{&expr.Masq{}} }
