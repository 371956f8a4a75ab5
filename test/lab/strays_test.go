package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// TestStrays puts one of each kind on a machine that has a container too, and wants these named and nothing else.
func TestStrays(t *testing.T) {
	n := Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	n.Gantry(t, "run", "-d", "--name", "box", Busybox, "sleep", "100000")
	Eventually(t, time.Minute, "no strays but these", func() error { return wantStrays(n) })

	group := strings.TrimSpace(n.Exec(t, "bash", "-c", "ls -d /sys/fs/cgroup/{pids/,}gantry/*/containers 2>/dev/null | head -n 1"))
	bundle := filepath.Join(n.run(), "engine/io.containerd.runtime.v2.task/gantry/zzz/rootfs")
	n.Exec(t, "mkdir", group+"/zzz")
	n.Exec(t, "ip", "link", "add", "gvdeadbeef", "type", "bridge")
	n.Exec(t, "mkdir", "-p", bundle)
	n.Exec(t, "mount", "-t", "tmpfs", "tmpfs", bundle)
	must(t, os.WriteFile(filepath.Join(n.root, "agent/instances/yyy.record"), nil, 0o600))
	shim := n.Command("bash", "-c", `exec -a "containerd-shim-runc-v2 -namespace gantry -id AAAAAAAA-AAAAAAAAAAAA -address $0/x" sleep 100000`, n.run())
	must(t, shim.Start())
	t.Cleanup(func() {
		_ = shim.Process.Kill()
		_ = shim.Wait()
	})
	must(t, n.containerd(store))
	Eventually(t, time.Minute, "strays", func() error {
		return wantStrays(n, "containers/zzz", "gvdeadbeef", "mount "+bundle, "task/gantry/zzz", "yyy.record", "AAAAAAAA", "lease left", "extract-1-x", "of vvv")
	})
}

// wantStrays wants one stray at least with each of the words, and none without.
func wantStrays(n *Node, words ...string) error {
	strays, err := n.Strays()
	if err != nil {
		return err
	}
	text := strings.Join(strays, "\n")
	for _, word := range words {
		if !strings.Contains(text, word) {
			return errors.New("no " + word + " in:\n" + text)
		}
	}
	for _, stray := range strays {
		// With a shim of another daemon nobody can tell which idle ones are too many: all are named.
		if !slices.ContainsFunc(append(words, "containerd-shim-runc-v2"), func(word string) bool { return strings.Contains(stray, word) }) || words == nil {
			return errors.New("there is " + stray)
		}
	}
	return nil
}

// store leaves behind what a killed import does, and the snapshot of a container.
func store(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := leasesapi.NewLeasesClient(conn).Create(ctx, &leasesapi.CreateRequest{ID: "left", Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(time.Hour).Format(time.RFC3339)}})
	if err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-lease", "left")
	all := snapshotsapi.NewSnapshotsClient(conn)
	if _, err := all.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: "extract-1-x sha256:0"}); err != nil {
		return err
	}
	_, err = all.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: "vvv", Labels: map[string]string{"gantry.dev/container": "vvv"}})
	return err
}

// The daemon puts its table right whenever somebody else changes it: what is wrong in one is shown with a text.
func TestStrayRules(t *testing.T) {
	const table = `table inet gantry0 {
	map services {
		type ipv4_addr : verdict
		elements = { 10.224.0.1 : goto service.10.224.0.1,
			     10.224.0.9 : goto service.10.224.0.9 }
	}
	map segments {
		type ipv4_addr : verdict
		elements = { 10.210.0.2 : jump segment.1 }
	}
	set containers6 {
		type ipv6_addr
		elements = { fd00::ad2:2,
			     fd00::ad2:3 }
	}
	set nodes {
		type ipv4_addr
		elements = { 192.0.2.1 }
	}
	chain from {
		ip saddr 10.210.0.0/20 accept
	}
	chain segment.1 {
	}
	chain segment.2 {
	}
	chain service.10.224.0.1 {
	}
	chain service.10.224.0.9 {
	}
	chain port.6.8090 {
	}
}
`
	known := owners{addresses: map[netip.Addr]bool{}}
	for _, text := range []string{"10.224.0.1", "10.210.0.2", "fd00::ad2:2"} {
		known.addresses[netip.MustParseAddr(text)] = true
	}
	got := strings.Join(strayRules(table, known), "; ")
	want := "nftables: 10.224.0.9 in services; nftables: fd00::ad2:3 in containers6; nftables: chain segment.2; nftables: chain port.6.8090"
	if got != want {
		t.Errorf("found %s\nwant  %s", got, want)
	}
}
