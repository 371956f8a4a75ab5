package cluster_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// TestRestoreOnNewMachine loses both servers of an encrypted cluster, and restores its backup on a machine that was set up
// with nothing but `gantry init`, at the address of the second server. What it has founded and what it takes over differ in
// everything: the kind of the overlay, the addresses of services, the cluster that IPv6 ranges come from; and the range of
// addresses that it has given itself is that of the first server.
func TestRestoreOnNewMachine(t *testing.T) {
	tr := begin(t, lab.Shape{Servers: 2, Nodes: 1, Flags: []string{"--overlay", "wireguard", "--virtual-ips", "10.225.0.0/16"}})
	tr.ledger.end()
	tr.up(t, "web", 6)
	first, fresh, node := tr.Node(0), tr.Node(1), tr.Node(2)
	file := filepath.Join(t.TempDir(), "backup")
	first.Gantry(t, "cluster", "backup", file)
	before, here := starts(t, first), ids(node)
	for id := range before {
		if !here[id] {
			delete(before, id)
		}
	}
	first.PowerOff(t)
	fresh.Wipe(t)
	fresh.Refound(t)
	fresh.Gantry(t, "image", "import", tr.image)
	fresh.Gantry(t, "run", "-d", "--name", "stray", lab.Busybox, "sleep", "600") // its address is in the range of the first server
	pid := fresh.DaemonPID(t)

	fresh.Gantry(t, "cluster", "restore", file, "--force")
	awaitRoles(t, fresh, map[*lab.Node]string{fresh: "server", node: "node"}, first)
	sameStarts(t, fresh, before)
	tr.converge(t) // without the stray one
	tr.want["late"] = 3
	tr.update(t, fresh, 2)
	tr.converge(t)
	speaksWireGuard(t, fresh)
	ownRanges(t, fresh)
	reachEachOther(t, fresh, node)
	if got := fresh.DaemonPID(t); got != pid {
		t.Errorf("the daemon was process %d and is %d: who started it does not know it any more", pid, got)
	}

	first.PowerOn(t)
	awaitRoles(t, fresh, map[*lab.Node]string{fresh: "server", node: "node", first: "node"})
	ownRanges(t, fresh)
	fresh.Reboot(t)
	awaitRoles(t, fresh, map[*lab.Node]string{fresh: "server", node: "node", first: "node"})
	tr.converge(t)
	ownRanges(t, fresh)
	reachEachOther(t, fresh, node)
	tr.slots.check(t)
}

// speaksWireGuard fails if a machine has another overlay than the encrypted one.
func speaksWireGuard(t *testing.T, n *lab.Node) {
	t.Helper()
	if links := n.Exec(t, "ip", "-d", "link"); strings.Contains(links, "vxlan") || !strings.Contains(links, "gantry0-x") {
		t.Errorf("%s speaks to the others without encryption:\n%s", n.Name(), links)
	}
	if got := n.Exec(t, "ip", "-d", "link", "show", "gantry0-x"); !strings.Contains(got, "wireguard") && !strings.Contains(got, "tun") {
		t.Errorf("the overlay of %s:\n%s", n.Name(), got)
	}
}

// ownRanges fails if two machines have a range of addresses in common, or one has another than the cluster says.
func ownRanges(t *testing.T, by *lab.Node) {
	t.Helper()
	views, err := by.Machines()
	if err != nil {
		t.Fatal(err)
	}
	var all []netip.Prefix
	for _, v := range views {
		p, err := netip.ParsePrefix(v.Node.Subnet)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if o.Overlaps(p) {
				t.Errorf("%s has the range %s, and another has %s", v.Node.Name, p, o)
			}
		}
		all = append(all, p)
		if v.Node.Name != by.Name() {
			continue
		}
		if got := by.Exec(t, "ip", "-4", "-o", "addr", "show", "gantry0"); !strings.Contains(got, fmt.Sprintf("/%d ", p.Bits())) || !strings.Contains(got, " "+p.Addr().Next().String()+"/") {
			t.Errorf("%s has the range %s, and its bridge is at %s", by.Name(), p, got)
		}
	}
	t.Logf("the ranges are %v", all)
}

// reachEachOther waits until an instance on each of the two machines is answered by one on the other, with IPv4 and with IPv6,
// and by a service's virtual address.
func reachEachOther(t *testing.T, a, b *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "instances on "+a.Name()+" and "+b.Name()+" reach each other", func() error {
		views, err := a.TryInstances()
		if err != nil {
			return err
		}
		on := func(n *lab.Node) *gantryv1.InstanceView {
			here := ids(n)
			i := slices.IndexFunc(views, func(v *gantryv1.InstanceView) bool { return here[v.Instance.Meta.Key] && lab.Ready(v) })
			if i < 0 {
				return nil
			}
			return views[i]
		}
		one, other := on(a), on(b)
		if one == nil || other == nil {
			return fmt.Errorf("one of them has no instance that is ready")
		}
		for _, c := range [][2]*gantryv1.InstanceView{{one, other}, {other, one}} {
			for _, address := range []string{c[1].Status.Address, c[1].Status.Address6, "late"} {
				if address == "" {
					continue // a host without IPv6
				}
				if r := a.TryWithin(20*time.Second, "", "exec", c[0].Instance.Meta.Key, "sh", "-c", get(address)); r.Code != 0 {
					return fmt.Errorf("%s does not reach %s of %s: %s%s", lab.Name(c[0]), address, lab.Name(c[1]), r.Stdout, r.Stderr)
				}
			}
		}
		return nil
	})
}
