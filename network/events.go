package network

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/addresses"
	"github.com/gantryd/gantry/network/event"
	"github.com/gantryd/gantry/network/overlay"
)

// damage is what events say may be missing.
type damage struct {
	host     bool                // the bridge, forwarding, the overlay
	links    map[netip.Addr]bool // links of these containers
	allLinks bool
}

func (d damage) none() bool { return !d.host && !d.allLinks && len(d.links) == 0 }

// hostPause lets events of one action come together, and keeps two programs that disagree from fighting at full speed.
const hostPause = 20 * time.Millisecond

var hostGroups = []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}

// watchHost puts back what somebody else removes: the bridge, the overlay's device, their routes and addresses, containers'
// links, forwarding.
func (n *Network) watchHost(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "watch the host's network")
	}
	defer c.Close()
	err = c.SetReadBuffer(netlinkBuffer)
	for _, group := range hostGroups {
		err = errors.Join(err, c.JoinGroup(group))
	}
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "watch the host's network")
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	todo := damage{host: true} // whatever happened before anybody watched
	for ctx.Err() == nil {
		todo = n.mend(ctx, c, todo)
		events, err := c.Receive()
		switch {
		case errors.Is(err, syscall.ENOBUFS): // events were lost, perhaps those that matter
			todo = damage{host: true, allLinks: true}
		case errors.Is(err, os.ErrDeadlineExceeded): // the end, or the time to try again
		case err != nil && ctx.Err() == nil:
			return fault.Wrap(fault.Internal, err, "watch the host's network")
		}
		for _, e := range events {
			n.assess(e, &todo)
		}
	}
	return nil
}

// mend repairs damage and returns what is left of it, to be tried again.
func (n *Network) mend(ctx context.Context, c *netlink.Conn, d damage) damage {
	if d.none() {
		return d
	}
	select {
	case <-ctx.Done():
		return d
	case <-time.After(hostPause):
	}
	var err error
	if d.host {
		err = n.reassertHost()
	}
	if d.allLinks {
		d.links = nil
	}
	if d.allLinks || len(d.links) > 0 {
		err = errors.Join(err, n.reassertLinks(d.links))
	}
	if err == nil {
		_ = c.SetReadDeadline(time.Time{})
		if ctx.Err() != nil { // the end came in between
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
		return damage{}
	}
	n.log.Error("the node's network was changed and cannot be put back", "err", err, "again", retryPool)
	_ = c.SetReadDeadline(time.Now().Add(retryPool))
	return d
}

// assess adds to the damage what one event tells.
func (n *Network) assess(e netlink.Message, d *damage) {
	switch e.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		n.assessLink(e, d)
	case unix.RTM_DELADDR:
		if a := event.Address(event.Attribute(e.Data, unix.SizeofIfAddrmsg, unix.IFA_ADDRESS)); a == n.Gateway() || a.IsValid() && a == n.Gateway6() {
			d.host = true
		}
	case unix.RTM_DELROUTE:
		n.assessRoute(e, d)
	case unix.RTM_DELNEIGH:
		if n.overlay != nil && len(e.Data) >= unix.SizeofNdMsg && int(int32(binary.NativeEndian.Uint32(e.Data[4:]))) == n.overlay.Index() {
			d.host = true
		}
	case unix.RTM_NEWNETCONF:
		if event.ForwardingOff(e.Data) {
			d.host = true
		}
	}
}

func (n *Network) assessLink(e netlink.Message, d *damage) {
	if len(e.Data) < unix.SizeofIfInfomsg {
		return
	}
	name := unix.ByteSliceToString(event.Attribute(e.Data, unix.SizeofIfInfomsg, unix.IFLA_IFNAME))
	lost := e.Header.Type == unix.RTM_DELLINK || binary.NativeEndian.Uint32(e.Data[8:])&unix.IFF_UP == 0
	switch {
	case !lost:
	case name == n.opts.Bridge || name == overlayDevice(n.opts.Bridge):
		d.host = true
	default:
		d.suspect(linkAddress(name))
	}
}

// assessRoute looks at routes that went: those of the overlay and the bridge, and those to single containers.
func (n *Network) assessRoute(e netlink.Message, d *damage) {
	if len(e.Data) < unix.SizeofRtMsg {
		return
	}
	to := event.Address(event.Attribute(e.Data, unix.SizeofRtMsg, unix.RTA_DST))
	bits, protocol := int(e.Data[1]), e.Data[5]
	switch {
	case protocol == overlay.Protocol || to.IsValid() && netip.PrefixFrom(to, bits) == n.opts.VirtualIPs:
		d.host = true
	case to.Is4() && bits == 32 && n.opts.Subnet.Contains(to):
		d.suspect(to)
	case to.Is6() && bits == 128 && n.opts.Subnet6.IsValid() && n.opts.Subnet6.Contains(to):
		b := to.As16()
		d.suspect(netip.AddrFrom4([4]byte(b[12:])))
	}
}

func (d *damage) suspect(a netip.Addr) {
	if !a.IsValid() {
		return
	}
	if d.links == nil {
		d.links = map[netip.Addr]bool{}
	}
	d.links[a] = true
}

// linkAddress reads back what linkName made.
func linkAddress(name string) netip.Addr {
	hex, ours := strings.CutPrefix(name, "gv")
	v, err := strconv.ParseUint(hex, 16, 32)
	if !ours || err != nil || len(hex) != 8 {
		return netip.Addr{}
	}
	return addresses.At(uint32(v))
}
