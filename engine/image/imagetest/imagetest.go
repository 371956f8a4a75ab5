// Package imagetest is containerd's real storage without a daemon: content store, metadata database, image store, leases and
// overlay snapshots in a test's directory, and images made on the spot.
//
// Start with New. Deletes that ask to be synchronous collect garbage before they return, as containerd's own services do. A
// Rig is safe in parallel. It is for tests only and runs no container.
package imagetest

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/log"
	bolt "go.etcd.io/bbolt"
)

// Namespace is the containerd namespace of Rig.Context.
const Namespace = "gantry"

// Rig is containerd's storage in a directory.
type Rig struct {
	Root        string
	DB          *metadata.DB
	Content     content.Store
	Images      images.Store
	Leases      leases.Manager
	Snapshotter snapshots.Snapshotter
	Applier     diff.Applier
}

// New makes a Rig that is closed when the test ends. Unpacking with it needs root.
func New(t testing.TB) *Rig {
	t.Helper()
	return Open(t, t.TempDir())
}

// Open is New in a directory that may hold an earlier Rig, whose process is gone.
func Open(t testing.TB, root string) *Rig {
	t.Helper()
	_ = log.SetLevel("fatal") // containerd logs what the callers are told anyway
	// containerd's collector takes a store without a blob yet for broken and leaves unfinished writes in it.
	must(t, os.MkdirAll(filepath.Join(root, "content", "blobs"), 0o755))
	store, err := local.NewStore(filepath.Join(root, "content"))
	must(t, err)
	over, err := overlay.NewSnapshotter(filepath.Join(root, "snapshots"))
	must(t, err)
	bdb, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
	must(t, err)
	db := metadata.NewDB(bdb, store, map[string]snapshots.Snapshotter{"overlayfs": over})
	must(t, db.Init(t.Context()))
	t.Cleanup(func() { _ = over.Close(); _ = bdb.Close() })
	r := &Rig{Root: root, DB: db, Content: db.ContentStore(), Snapshotter: db.Snapshotter("overlayfs")}
	r.Images = syncImages{metadata.NewImageStore(db), r}
	r.Leases = syncLeases{metadata.NewLeaseManager(db), r}
	r.Applier = apply.NewFileSystemApplier(r.Content)
	return r
}

// Copy opens a copy of the rig's directory as it is now, which is what a process that is killed now leaves.
func (r *Rig) Copy(t testing.TB) *Rig {
	t.Helper()
	root := t.TempDir()
	must(t, os.CopyFS(root, os.DirFS(r.Root)))
	return Open(t, root)
}

// Context returns a context in the rig's namespace.
func (r *Rig) Context(t testing.TB) context.Context {
	return namespaces.WithNamespace(t.Context(), Namespace)
}

// Collect runs containerd's garbage collector now.
func (r *Rig) Collect(t testing.TB) {
	t.Helper()
	_, err := r.DB.GarbageCollect(r.Context(t))
	must(t, err)
}

// Blobs returns the number of blobs in the content store's directory, and the number of unfinished writes.
func (r *Rig) Blobs(t testing.TB) (blobs, writes int) {
	t.Helper()
	count := func(dir string, file bool) (n int) {
		must(t, filepath.WalkDir(filepath.Join(r.Root, "content", dir), func(p string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err == nil && (d.Type().IsRegular() == file) && (file || filepath.Base(filepath.Dir(p)) == "ingest") {
				n++
			}
			return err
		}))
		return n
	}
	return count("blobs", true), count("ingest", false)
}

// Snapshots returns the number of snapshots the snapshotter knows.
func (r *Rig) Snapshots(t testing.TB) (n int) {
	t.Helper()
	must(t, r.Snapshotter.Walk(r.Context(t), func(context.Context, snapshots.Info) error { n++; return nil }))
	return n
}

type syncImages struct {
	images.Store
	rig *Rig
}

func (s syncImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	var o images.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if err := s.Store.Delete(ctx, name, opts...); err != nil || !o.Synchronous {
		return err
	}
	_, err := s.rig.DB.GarbageCollect(ctx)
	return err
}

type syncLeases struct {
	leases.Manager
	rig *Rig
}

func (s syncLeases) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if err := s.Manager.Delete(ctx, l, opts...); err != nil || !o.Synchronous {
		return err
	}
	_, err := s.rig.DB.GarbageCollect(ctx)
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
