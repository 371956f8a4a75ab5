package image_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/image"
)

// daemon is containerd as gantryd runs it, in this process.
func daemon(t *testing.T) (*image.Service, *embedded.Server) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containerd needs root")
	}
	dir, err := os.MkdirTemp("", "gi") // socket addresses are short
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	server, err := embedded.Start(t.Context(), embedded.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Logger: slog.New(slog.DiscardHandler),
	})
	check(t, err)
	t.Cleanup(func() { _ = server.Close() })
	s, err := image.FromClient(server.Client(), image.Options{Root: filepath.Join(dir, "images"), ResumeWindow: -1})
	check(t, err)
	return s, server
}

// TestInContainerd does with containerd's own services what the other tests do with its storage: what fails leaves nothing, what
// works is unpacked and stays.
func TestInContainerd(t *testing.T) {
	s, server := daemon(t)
	ctx := namespaces.WithNamespace(t.Context(), "gantry")
	r := serve(t, big(t))
	r.cut(1 << 20)
	if _, err := pull(t, s, r.host()+"/big"); err == nil {
		t.Fatal("a cut download passed")
	}
	leases, err := server.Client().LeasesService().List(ctx)
	check(t, err)
	statuses, err := server.Client().ContentStore().ListStatuses(ctx)
	check(t, err)
	if len(leases)+len(statuses) != 0 {
		t.Fatalf("left after a failed pull: leases %v, unfinished writes %v", leases, statuses)
	}
	r.heal()
	_, err = pull(t, s, r.host()+"/big")
	check(t, err)
	good := hello(t).Layout(t, "hello:1")
	if _, err := s.Import(t.Context(), bytes.NewReader(good[:len(good)-3000]), ""); err == nil {
		t.Fatal("a cut archive passed")
	}
	_, err = s.Import(t.Context(), bytes.NewReader(good), "")
	check(t, err)
	chain, err := s.Unpack(t.Context(), "hello:1", "")
	check(t, err)
	if _, err := server.Client().SnapshotService("overlayfs").Stat(ctx, chain.String()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	list, err := s.List(t.Context(), "")
	check(t, err)
	if len(list) != 2 {
		t.Fatalf("list %v", list)
	}
	t.Logf("listed 2 images in %s", time.Since(began))
	pruned, err := s.Prune(t.Context(), true, nil)
	check(t, err)
	if len(pruned.Removed) != 2 || pruned.Reclaimed < 3<<20 {
		t.Fatalf("pruned %v", pruned)
	}
}
