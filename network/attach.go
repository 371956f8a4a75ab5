package network

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// AttachOptions of one container. The zero value takes any address.
type AttachOptions struct {
	// Address asked for, inside the node's Subnet.
	Address netip.Addr
	// MAC asked for, "02:42:ac:11:00:02".
	MAC string
	// Sysctls of the network namespace, "net.ipv4.tcp_syncookies" to "1". Only names that start with "net." are allowed.
	Sysctls map[string]string
}

// Attachment is a container's place in the network.
type Attachment struct {
	// Netns is the path of the network namespace to start the container in.
	Netns   string
	IPv4    netip.Addr
	IPv6    netip.Addr // invalid without IPv6
	Gateway netip.Addr
}

// record is one link: a namespace with an address. It is stored under Root once it has an owner.
type record struct {
	ID      string            `json:"id"`
	Address netip.Addr        `json:"address"`
	MAC     string            `json:"mac,omitempty"`
	Sysctls map[string]string `json:"sysctls,omitempty"`

	live bool // namespace and link exist
}

// Attach gives a container its network namespace and address, and gives the same again when called again with its id. An
// id that was attached before a reboot gets its old address back.
func (n *Network) Attach(_ context.Context, id string, o AttachOptions) (Attachment, error) {
	if err := o.check(id); err != nil {
		return Attachment{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.attached[id]; r != nil {
		return n.reattach(r, o)
	}
	r, err := n.pick(id, o)
	if err != nil {
		return Attachment{}, err
	}
	if err := n.adopt(r, id, o); err != nil {
		n.retire(r)
		return Attachment{}, err
	}
	return n.attachment(r), nil
}

// Attached is the place of a container that has been given one, for another that shares it. After a reboot that is so once
// Attach was called for it again.
func (n *Network) Attached(id string) (Attachment, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.attached[id]
	if r == nil || !r.live {
		return Attachment{}, false
	}
	return n.attachment(r), true
}

func (o AttachOptions) check(id string) error {
	if id == "" || strings.ContainsAny(id, "/\x00") || id[0] == '.' || len(id) > 200 {
		return fault.New(fault.Invalid, "%q cannot name a container's network", id)
	}
	if o.MAC != "" {
		m, err := net.ParseMAC(o.MAC)
		if err != nil || len(m) != 6 || m[0]&1 != 0 {
			return fault.New(fault.Invalid, "%q is no MAC address of one device", o.MAC).WithHint("use one such as 02:42:ac:11:00:02")
		}
	}
	for key := range o.Sysctls {
		if !strings.HasPrefix(key, "net.") || strings.ContainsAny(key, "/\x00") || strings.Contains(key, "..") {
			return fault.New(fault.Invalid, "sysctl %q does not belong to a network namespace", key)
		}
	}
	return nil
}

// reattach returns the link the container has, or makes one at its recorded address after a reboot.
func (n *Network) reattach(r *record, o AttachOptions) (Attachment, error) {
	if o.Address.IsValid() && o.Address != r.Address {
		return Attachment{}, fault.New(fault.Conflict, "%s has address %s already and cannot have %s too", r.ID, r.Address, o.Address)
	}
	if r.live {
		return n.attachment(r), nil
	}
	if err := n.build(r); err != nil {
		return Attachment{}, err
	}
	return n.attachment(r), n.setSysctls(r, r.Sysctls)
}

// pick finds a link: one made ahead if it fits, else a new one. The lock is held.
func (n *Network) pick(id string, o AttachOptions) (*record, error) {
	if !o.Address.IsValid() {
		if len(n.ready) > 0 && o.MAC == "" {
			r := n.ready[0]
			n.ready = n.ready[1:]
			n.poke()
			return r, nil
		}
		a, err := n.addresses.Take()
		if err != nil && len(n.ready) > 0 { // the last free addresses are in the pool
			a, err = n.takeReady(n.ready[0].Address), nil
		}
		if err != nil {
			return nil, err
		}
		return n.make(&record{ID: id, Address: a, MAC: o.MAC})
	}
	if !n.addresses.Usable(o.Address) {
		first, last := n.addresses.Range()
		return nil, fault.New(fault.Invalid, "address %s is not one of this node's %s", o.Address, n.opts.Subnet).
			WithHint("choose one from %s to %s", first, last)
	}
	i := slices.IndexFunc(n.ready, func(r *record) bool { return r.Address == o.Address })
	if i >= 0 && o.MAC == "" {
		r := n.ready[i]
		n.ready = slices.Delete(n.ready, i, i+1)
		return r, nil
	}
	if i >= 0 {
		n.takeReady(o.Address)
	} else if !n.addresses.Reserve(o.Address) {
		return nil, n.addressTaken(o.Address)
	}
	return n.make(&record{ID: id, Address: o.Address, MAC: o.MAC})
}

// takeReady dissolves a link of the pool and returns its address, reserved.
func (n *Network) takeReady(a netip.Addr) netip.Addr {
	i := slices.IndexFunc(n.ready, func(r *record) bool { return r.Address == a })
	n.destroy([]*record{n.ready[i]})
	n.ready = slices.Delete(n.ready, i, i+1)
	return a
}

func (n *Network) addressTaken(a netip.Addr) error {
	for _, r := range n.attached {
		if r.Address == a {
			return fault.New(fault.Conflict, "address %s belongs to %s", a, r.ID).WithHint("gantry inspect %s", r.ID)
		}
	}
	return fault.New(fault.Conflict, "address %s is still being freed", a).WithHint("try again in a moment")
}

// make builds a link for a reserved address and frees the address when that fails.
func (n *Network) make(r *record) (*record, error) {
	if err := n.build(r); err != nil {
		n.addresses.Free(r.Address)
		return nil, err
	}
	return r, nil
}

// adopt makes a link the container's own. The record is on disk before anything can use the link, so that a crash in
// between leaves either an owner or an ownerless link that the next Open removes.
func (n *Network) adopt(r *record, id string, o AttachOptions) error {
	r.ID, r.Sysctls = id, o.Sysctls
	if err := n.setSysctls(r, o.Sysctls); err != nil {
		return err
	}
	if err := writeJSON(n.recordPath(id), r); err != nil {
		return err
	}
	n.attached[id] = r
	return nil
}

func (n *Network) recordPath(id string) string { return filepath.Join(n.names.records, id+".json") }

func (n *Network) attachment(r *record) Attachment {
	return Attachment{Netns: n.netnsPath(r.Address), IPv4: r.Address, IPv6: n.address6(r.Address), Gateway: n.Gateway()}
}

// Detach takes a container's network away. It returns at once; Run deletes links in batches, because the kernel waits tens
// of milliseconds for each deletion. The address is free again after that. Unknown ids are no error.
func (n *Network) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.attached[id]
	if r == nil {
		return nil
	}
	if err := os.Remove(n.recordPath(id)); err != nil && !os.IsNotExist(err) {
		return fault.Wrap(fault.Unavailable, err, "forget the network of %s", id)
	}
	delete(n.attached, id)
	n.retire(r)
	return nil
}

func (n *Network) retire(r *record) {
	n.dying = append(n.dying, r)
	n.poke()
}

// Retain detaches every container that is not named. Call it once after a restart, with all that still exist.
func (n *Network) Retain(ctx context.Context, ids []string) error {
	keep := map[string]bool{}
	for _, id := range ids {
		keep[id] = true
	}
	n.mu.Lock()
	var gone []string
	for id := range n.attached {
		if !keep[id] {
			gone = append(gone, id)
		}
	}
	n.mu.Unlock()
	for _, id := range gone {
		if err := n.Detach(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// recover reads what an earlier daemon recorded and compares it with the kernel.
func (n *Network) recover(ctx context.Context) error {
	entries, err := os.ReadDir(n.names.records)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "read the network's records")
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r := n.readRecord(e.Name()); r != nil {
			n.attached[r.ID] = r
		}
	}
	for _, r := range n.attached {
		r.live = isNetns(n.netnsPath(r.Address))
	}
	n.removeStrays()
	n.repair()
	return nil
}

// readRecord reads one record; a damaged or foreign one is put aside, for its container cannot be running any more.
func (n *Network) readRecord(name string) *record {
	path := filepath.Join(n.names.records, name)
	b, err := os.ReadFile(path)
	r := &record{}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil || r.ID+".json" != name || !n.addresses.Usable(r.Address) || !n.addresses.Reserve(r.Address) {
		n.log.Warn("a container's network record cannot be used and is removed", "record", name, "err", err)
		os.Remove(path)
		return nil
	}
	return r
}

// removeStrays deletes namespaces and links that no record names: the pool of an earlier daemon and what it half made.
func (n *Network) removeStrays() {
	owned := map[string]bool{}
	for _, r := range n.attached {
		if r.live {
			owned[linkName(r.Address)] = true
		}
	}
	entries, _ := os.ReadDir(n.names.netns)
	for _, e := range entries {
		if !owned[e.Name()] {
			dropNetns(filepath.Join(n.names.netns, e.Name()))
		}
	}
	n.deleteLinks(func(name string) bool { return !owned[name] })
}

// repair puts back what a container's link lacks, such as a route that somebody removed. A container that may change its own
// network can make that impossible; it is the only one that is without then.
func (n *Network) repair() {
	for _, r := range n.attached {
		if !r.live {
			continue
		}
		if err := n.rewire(r); err != nil {
			n.log.Warn("a container's network cannot be repaired", "container", r.ID, "err", err)
		}
	}
}

func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func dropNetns(path string) {
	_ = unix.Unmount(path, unix.MNT_DETACH) // not mounted is fine
	_ = os.Remove(path)
}
