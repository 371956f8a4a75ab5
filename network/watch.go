package network

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/event"
)

// watchTable puts our table back when somebody else changes it: a firewall that starts with `flush ruleset` would
// otherwise take isolation and published ports away.
func (n *Network) watchTable(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "watch nftables")
	}
	defer c.Close()
	if err := errors.Join(c.JoinGroup(unix.NFNLGRP_NFTABLES), c.SetReadBuffer(netlinkBuffer)); err != nil {
		return fault.Wrap(fault.Unsupported, err, "watch nftables")
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if n.vanished() { // before anybody watched
		_ = c.SetReadDeadline(time.Now())
	}
	for {
		events, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ENOBUFS): // events were lost, perhaps the one that matters
		case errors.Is(err, os.ErrDeadlineExceeded): // the time to put it back, or to try again
		case err != nil:
			return fault.Wrap(fault.Internal, err, "watch nftables")
		case !n.foreign(events):
			continue
		default:
			n.log.Warn("somebody else changed the nftables table; it is written anew", "table", n.opts.Bridge)
		}
		again := time.Time{}
		if err := n.reassert(); err != nil {
			n.log.Error("the nftables table cannot be restored", "table", n.opts.Bridge, "err", err, "again", retryPool)
			again = time.Now().Add(retryPool)
		}
		if _ = c.SetReadDeadline(again); ctx.Err() != nil {
			return nil
		}
	}
}

// vanished reports whether the table is not there.
func (n *Network) vanished() bool {
	n.applying.Lock()
	defer n.applying.Unlock()
	return !n.nft.exists(n.opts.Bridge)
}

// foreign reports whether an event tells of a change of our table that was not ours. Every event about a table, chain,
// rule, set or element has the table's name as its first attribute, and the netlink port of whoever caused it.
func (n *Network) foreign(events []netlink.Message) bool {
	for _, e := range events {
		if e.Header.PID == n.nft.port.Load() || e.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || e.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
			continue
		}
		if name := tableOf(e.Data); name == n.opts.Bridge || name == n.nft.deputy() {
			return true
		}
	}
	return false
}

func tableOf(data []byte) string {
	const header = 4 // struct nfgenmsg
	return unix.ByteSliceToString(event.Attribute(data, header, unix.NFTA_TABLE_NAME))
}
