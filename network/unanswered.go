package network

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantryd/gantry/network/tracked"
)

// unanswered is backends that services have lost. The kernel remembers for two minutes where it has sent the first packet of a
// connection, and sends what is repeated there, even a new connection from the same port: if that machine is dead, in vain.
type unanswered map[netip.Addr]bool

// answerTime is what a backend that serves may take to answer. It gets no new connections any more, so that what has not been
// answered then waits for one that is dead.
const answerTime = 200 * time.Millisecond

// Match reports whether a flow is a connection to one of them that has got no answer, or that it has broken off.
func (u unanswered) Match(flow tracked.Flow) bool {
	return u[flow.To] && flow.Translated() && (flow.Unanswered() || flow.Broken())
}

// Ends lists the backends.
func (u unanswered) Ends() ([]netip.Addr, bool) { return slices.Collect(maps.Keys(u)), true }

// lose notes backends that a service has lost. The caller holds applying.
func (n *Network) lose(backends map[netip.Addr]bool) {
	if len(backends) == 0 {
		return
	}
	maps.Copy(n.lost, backends)
	select {
	case n.losing <- struct{}{}:
	default:
	}
}

// moveUnanswered has connections that a lost backend has not answered go to another one with their next packet.
func (n *Network) moveUnanswered(ctx context.Context) error {
	for {
		select {
		case <-n.losing:
		case <-ctx.Done():
			return nil
		}
		lost := n.takeLost()
		select {
		case <-time.After(answerTime):
		case <-ctx.Done():
			return nil
		}
		if err := n.cutUnanswered(lost); err != nil {
			n.log.Warn("connections that nobody has answered go on to where they went", "err", err)
		}
	}
}

func (n *Network) takeLost() unanswered {
	n.applying.Lock()
	defer n.applying.Unlock()
	lost := n.lost
	n.lost = unanswered{}
	return lost
}

func (n *Network) cutUnanswered(lost unanswered) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	if n.applied == nil || n.removed {
		return nil
	}
	for _, t := range n.applied.services { // what has come back may answer yet
		for _, a := range t.backends {
			delete(lost, a)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return tracked.Forget(lost)
}
