package build

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/util/leaseutil"
	"go.etcd.io/bbolt"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/boltcheck"
)

// BuildKit writes a hundred small transactions per build to its records of the cache. Waiting for the disk after each
// would take longer than the rest of a cached build, so they are written without. That is safe against the death of the
// process. After the death of the machine the records cannot be trusted: a marker tells that they were open then, and
// they are dropped, which costs the cache and no image.

const (
	cacheFile   = "cache.db"
	recordsFile = "records.db"
	historyFile = "history.db"
	markerFile  = "open-since-boot"
)

// flatLabel is on the leases with which BuildKit holds what is in the cache; flatLease finds them.
const (
	flatLabel = "containerd.io/gc.flat"
	flatLease = `labels."` + flatLabel + `"`
)

func (b *Builder) path(name string) string { return filepath.Join(b.opts.Root, name) }

// trustRecords drops the cache's records if the machine died while they were open, and marks them as open.
func (b *Builder) trustRecords(ctx context.Context, manager *leaseutil.Manager) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "read the identity of this boot")
	}
	marked, err := os.ReadFile(b.path(markerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Corrupt, err, "read the build cache's marker")
	}
	died := err == nil && !bytes.Equal(marked, boot)
	if died {
		b.log.Warn("the machine stopped while the build cache was open; the cache starts empty", "root", b.opts.Root)
	}
	if died || b.damaged() {
		if err := b.dropRecords(ctx, manager); err != nil {
			return err
		}
	}
	return b.mark(boot)
}

// damaged reports whether a record cannot be read: then none of them is of use.
func (b *Builder) damaged() bool {
	for _, name := range []string{cacheFile, recordsFile, historyFile} {
		if err := boltcheck.File(b.path(name), nil); err != nil {
			b.log.Warn("the build cache is damaged and starts empty", "error", err)
			return true
		}
	}
	return false
}

// mark is durable before the first record is written.
func (b *Builder) mark(boot []byte) error {
	f, err := os.OpenFile(b.path(markerFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(boot)
		err = errors.Join(err, f.Sync(), f.Close(), syncPath(b.opts.Root))
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "mark the build cache as open")
	}
	return nil
}

// dropRecords removes the records and the leases that they would know of, so that containerd collects the rest.
func (b *Builder) dropRecords(ctx context.Context, manager *leaseutil.Manager) error {
	all, err := manager.List(ctx, flatLease)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "list the build cache's leases")
	}
	for _, l := range all {
		if err := manager.Delete(ctx, l); err != nil {
			return fault.Wrap(fault.Unavailable, err, "drop the build cache")
		}
	}
	for _, name := range []string{cacheFile, recordsFile, historyFile} {
		if err := os.Remove(b.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(fault.Unavailable, err, "drop the build cache")
		}
	}
	return nil
}

func (b *Builder) openRecords() (*metadata.Store, error) {
	store, err := metadata.NewStore(b.path(recordsFile))
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "open the build cache's records").
			WithHint("with the daemon stopped, remove %s; only the cache is lost", b.opts.Root)
	}
	if db, ok := store.DB().(*bbolt.DB); ok {
		db.NoSync = true
	}
	return store, nil
}

// settle makes closed records durable and says so.
func (b *Builder) settle() error {
	err := errors.Join(syncPath(b.path(cacheFile)), syncPath(b.path(recordsFile)))
	if err == nil {
		err = os.Remove(b.path(markerFile))
	}
	return err
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
