package daemon

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/seal"
)

// founded is the role of a lone server that has founded its cluster some time ago, and whose state is not there.
func founded(t *testing.T) *serverRole {
	t.Helper()
	run, err := os.MkdirTemp("", "gr") // short: it holds Unix sockets
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	d := &daemon{Config: Config{
		Root: t.TempDir(), Run: run, Logger: slog.New(slog.DiscardHandler), Version: &gantryv1.VersionResponse{Version: "1"},
		VirtualIPs: netip.MustParsePrefix("10.224.0.0/16"),
	}}
	d.space = cluster.NewSpace(d.Root)
	m := newMachine(t, d.Config)
	check(t, m.update(func(r *gantryv1.MachineRecord) { r.Founding = false }))
	check(t, os.Remove(filepath.Join(d.Root, foundingFile)))
	return newServerRole(d, m, newServers(m, d.innerSocket()), localNode(filepath.Join(run, "none"), http.NotFoundHandler()))
}

// TestNoClusterInPlaceOfALostOne has a lone server start without its state.
func TestNoClusterInPlaceOfALostOne(t *testing.T) {
	r := founded(t)
	if err := r.work(t.Context()); !fault.Is(err, fault.Corrupt) || fault.HintOf(err) == "" {
		t.Errorf("it ended with %v", err)
	}
	if _, err := os.Stat(r.stateDir()); err == nil {
		t.Error("it has made a state")
	}
}

// TestAStartFinishesARestore has a daemon start after a crash in which a restore was made and not put in place. The state in it
// holds no cluster, so that the server takes over its key and ends.
func TestAStartFinishesARestore(t *testing.T) {
	r := founded(t)
	_, err := seal.Open(filepath.Join(r.d.Root, sealFile), true)
	check(t, err)
	o := r.memberOptions()
	o.Existing = false
	m, err := cluster.Start(t.Context(), o)
	check(t, err)
	rc, err := m.Snapshot(t.Context())
	check(t, err)
	file := filepath.Join(t.TempDir(), "snapshot")
	f, err := os.Create(file)
	check(t, err)
	_, err = f.ReadFrom(rc)
	check(t, err)
	check(t, f.Close())
	m.Stop()
	key := bytes.Repeat([]byte{7}, 32)
	check(t, cluster.Restore(o, file, key))
	check(t, os.RemoveAll(o.Root)) // the crash came when the state before was aside
	if err := r.work(t.Context()); !fault.Is(err, fault.Corrupt) {
		t.Errorf("it ended with %v", err)
	}
	sealer, err := seal.Open(filepath.Join(r.d.Root, sealFile), false)
	check(t, err)
	if !r.machine.Record().Recovering || !bytes.Equal(sealer.Key(), key) {
		t.Errorf("recovering: %v, key %x", r.machine.Record().Recovering, sealer.Key())
	}
	if begun, err := o.Begun(); err != nil || !begun {
		t.Errorf("the restored state is not in place: %v", err)
	}
}

// TestStateOnAMount gives another member to a server whose state is on a disk of its own.
func TestStateOnAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	r := founded(t)
	old := filepath.Join(r.stateDir(), "member", "wal", "0.wal")
	check(t, os.MkdirAll(filepath.Dir(old), 0o700))
	check(t, syscall.Mount(r.stateDir(), r.stateDir(), "", syscall.MS_BIND, ""))
	t.Cleanup(func() { _ = syscall.Unmount(r.stateDir(), syscall.MNT_DETACH) })
	check(t, os.WriteFile(old, nil, 0o600))
	check(t, r.begin("old", &gantryv1.AddMemberResponse{Member: "new"}))
	if begun, err := r.memberOptions().Begun(); err != nil || begun || r.machine.Record().Member != "new" {
		t.Errorf("it is member %q, of the one before there is something: %v, %v", r.machine.Record().Member, begun, err)
	}
}
