package network

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/network/addresses"
)

// retryPool is how long keepPool waits after a failure, such as no memory for another namespace.
const retryPool = 2 * time.Second

// poke tells keepPool that there is something to do.
func (n *Network) poke() {
	select {
	case n.wake <- struct{}{}:
	default: // it has not seen the last one yet
	}
}

// keepPool makes links ahead of Attach and deletes those of Detach until ctx ends.
func (n *Network) keepPool(ctx context.Context) error {
	n.poke()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-retry:
		}
		retry = nil
		// Making comes first: somebody may wait for it, while nobody waits for a deletion.
		if err := n.refill(ctx); err != nil {
			n.log.Warn("no network links can be made ahead", "err", err)
			retry = time.After(retryPool)
		}
		n.reap()
	}
}

// refill makes links until the pool is full.
func (n *Network) refill(ctx context.Context) error {
	for ctx.Err() == nil {
		n.mu.Lock()
		// The last addresses are left for Attach: one that is being prepared here would look taken to it.
		if len(n.ready) >= n.opts.PoolSize || n.addresses.Left() <= n.opts.PoolSize {
			n.mu.Unlock()
			return nil
		}
		a, err := n.addresses.Take()
		n.mu.Unlock()
		if err != nil {
			return nil // a full range is reported by the Attach that needs an address
		}
		r := &record{Address: a}
		err = n.build(r)
		n.mu.Lock()
		if err == nil {
			n.ready = append(n.ready, r)
		} else {
			n.addresses.Free(a)
		}
		n.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// reap deletes the links of detached containers, all at once, and frees their addresses.
func (n *Network) reap() {
	n.mu.Lock()
	dying := n.dying
	n.dying = nil
	n.mu.Unlock()
	if len(dying) == 0 {
		return
	}
	n.destroy(dying)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range dying {
		n.addresses.Free(r.Address)
	}
}

// deleteGroup deletes all links of an interface group in one request.
func deleteGroup(group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err == syscall.ENODEV {
		return nil
	}
	return err
}

// Cleanup removes all that the package made: every container's link, the bridge, the table, the records. Forwarding goes
// back to what it was before the first Open.
func (n *Network) Cleanup(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	entries, _ := os.ReadDir(n.names.netns)
	for _, e := range entries {
		dropNetns(n.names.netns + "/" + e.Name())
	}
	n.deleteLinks(func(string) bool { return true })
	n.attached, n.ready, n.dying = map[string]*record{}, nil, nil
	n.addresses = addresses.New(n.opts.Subnet)
	n.ports.close()
	if err := n.removeTable(); err != nil {
		return err
	}
	if n.overlay != nil {
		if err := n.overlay.Remove(); err != nil {
			return err
		}
	}
	if link, err := n.links.LinkByName(n.opts.Bridge); err == nil {
		if err := n.links.LinkDel(link); err != nil {
			return err
		}
	}
	for key, value := range n.readHostRecord().Sysctls {
		if err := writeSysctl(key, value); err != nil {
			n.log.Warn("a sysctl cannot be put back", "sysctl", key, "value", value, "err", err)
		}
	}
	_ = os.Remove(n.names.netns)
	return os.RemoveAll(n.names.root)
}

func (n *Network) removeTable() error {
	n.applying.Lock()
	defer n.applying.Unlock()
	n.removed = true
	return n.nft.remove()
}
