// Package tracked forgets connections that the kernel tracks (nf_conntrack), so that their next packet is judged anew.
package tracked

import (
	"errors"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a connection as the kernel knows it.
type Flow struct {
	From, To       netip.Addr // its ends: who began it, and where replies come from
	Said           netip.Addr // where it was begun to
	FromPort, Port uint16     // as it was begun, 0 where the protocol has none
	Protocol       uint8
	state          uint8 // of TCP
}

// Translated reports whether a flow went elsewhere than its sender said.
func (f Flow) Translated() bool { return f.Said != f.To }

// States of TCP connections, of linux/netfilter/nf_conntrack_tcp.h.
const (
	synSent  = 1
	timeWait = 7
	closed   = 8
)

// Unanswered reports whether a flow is a TCP connection whose first packet has got no answer yet.
func (f Flow) Unanswered() bool { return f.state == synSent }

// Broken reports whether a flow is a TCP connection that ended with a reset. For ten seconds the kernel sends a new one of the same
// ports where that one went, if the reset came from there.
func (f Flow) Broken() bool { return f.state == closed }

// Closed reports whether a flow is a TCP connection that both sides have closed. The kernel remembers it for two minutes, and
// takes it away when one of the same ports begins, often to put the new one in its place, with its number. Who reads the list
// of flows and then forgets a closed one may forget the one that has begun since.
func (f Flow) Closed() bool { return f.state == timeWait }

// Selection says which flows are to be forgotten.
type Selection interface {
	Match(Flow) bool
	// Ends lists the addresses of which each flow that matches has one as an end; false if there are others that match, of IPv4.
	Ends() ([]netip.Addr, bool)
}

// fewEnds is for how many addresses the kernel is asked one after the other: each time it goes through its whole table, which takes
// milliseconds if that is large and empty. To read 30,000 flows takes 300 (BenchmarkForget).
const fewEnds = 8

// Forget forgets flows that match.
func Forget(s Selection) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, question := range questions(s.Ends()) {
		list, err := ask(c, question)
		if err != nil {
			return err
		}
		for _, m := range list {
			if len(m.Data) < headerSize || !s.Match(parse(m.Data)) {
				continue
			}
			if _, err := ask(c, message(deleteFlow, netlink.Acknowledge, m.Data)); err != nil {
				return err
			}
		}
	}
	return nil
}

// List is all flows of IPv4.
func List() ([]Flow, error) {
	var out []Flow
	return out, Forget(listed{&out})
}

type listed struct{ flows *[]Flow }

func (l listed) Match(f Flow) bool {
	*l.flows = append(*l.flows, f)
	return false
}

func (listed) Ends() ([]netip.Addr, bool) { return nil, false }

// ask returns what the kernel answers. What is gone already, and what it does not track, is no failure.
func ask(c *netlink.Conn, m netlink.Message) ([]netlink.Message, error) {
	list, err := c.Execute(m)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	return list, err
}
