// Package pool keeps each volume in a btrfs subvolume, which gives snapshots, clones and size limits in constant time.
//
// Call New first; nothing touches the disk before the first volume. The subvolumes live in Options.Path if that is on
// btrfs, else in a sparse image file below the root that is formatted once and mounted through a loop device. All
// methods are safe in parallel for different names. Formatting needs mkfs.btrfs from btrfs-progs; nothing else does.
package pool

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/internal/diskusage"
)

// Options configures the pool. The zero value is a sparse image file of DefaultSize.
type Options struct {
	// Path of a directory on an existing btrfs file system to use instead of an image file.
	Path string
	// Size of the image file in bytes; it takes disk only as it fills.
	Size int64
}

// DefaultSize is the size of a new image file.
const DefaultSize = 64 << 30

// Driver keeps volumes as subvolumes.
type Driver struct {
	root    string
	options Options

	mu      sync.Mutex
	ready   bool
	mounted bool
}

// New returns the driver. Image and mount point are below root.
func New(root string, o Options) *Driver {
	if o.Size == 0 {
		o.Size = DefaultSize
	}
	return &Driver{root: root, options: o}
}

func (d *Driver) image() string { return filepath.Join(d.root, "pool.img") }

// dir is where the subvolumes are.
func (d *Driver) dir() string {
	if d.options.Path != "" {
		return d.options.Path
	}
	return filepath.Join(d.root, "mount")
}

// Path returns where the volume's data is.
func (d *Driver) Path(name string) string { return filepath.Join(d.dir(), name) }

// Create makes the subvolume unless it is there. The option "size" ("10g") limits it.
func (d *Driver) Create(ctx context.Context, name string, options map[string]string) error {
	limit, err := sizeOption(options)
	if err != nil {
		return err
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	if isSubvolume(d.Path(name)) {
		return nil
	}
	if err := createSubvolume(d.dir(), name); err != nil {
		return err
	}
	if limit == 0 {
		return nil
	}
	if err := limitSubvolume(d.Path(name), limit); err != nil {
		_ = destroySubvolume(d.dir(), name)
		return fault.Wrap(fault.Unsupported, err, "this kernel cannot limit a volume to %d bytes", limit).
			WithHint("leave the driver option size out")
	}
	return nil
}

func sizeOption(options map[string]string) (int64, error) {
	var limit int64
	for k, v := range options {
		if k != "size" {
			return 0, fault.New(fault.Unsupported, "the volume driver \"pool\" has no option %q", k).
				WithHint("its one option is size, such as size: 10g")
		}
		n, err := units.RAMInBytes(v)
		if err != nil || n <= 0 {
			return 0, fault.New(fault.Invalid, "the volume size %q is not a number of bytes", v).WithHint("write it like 512m or 10g")
		}
		limit = n
	}
	return limit, nil
}

// Remove deletes the subvolume and all in it.
func (d *Driver) Remove(ctx context.Context, name string) error {
	if !d.exists() {
		return nil
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	err := destroySubvolume(d.dir(), name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY): // subvolumes made inside of it by its user
		return os.RemoveAll(d.Path(name))
	}
	return err
}

// Snapshot makes to, a read-only copy of from.
func (d *Driver) Snapshot(ctx context.Context, from, to string) error {
	return d.copy(ctx, from, to, true)
}

// Clone makes to, a writable copy of from.
func (d *Driver) Clone(ctx context.Context, from, to string) error {
	return d.copy(ctx, from, to, false)
}

func (d *Driver) copy(ctx context.Context, from, to string, readOnly bool) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	return snapshotSubvolume(d.Path(from), d.dir(), to, readOnly)
}

// Usage returns the bytes of the volume's files. What it shares with snapshots counts in each.
func (d *Driver) Usage(ctx context.Context, name string) (int64, error) {
	if err := d.open(ctx); err != nil {
		return 0, err
	}
	return diskusage.Of(ctx, d.Path(name))
}

func (d *Driver) exists() bool {
	if d.options.Path != "" {
		return true
	}
	_, err := os.Stat(d.image())
	return err == nil
}

// open mounts the pool, and makes it the first time.
func (d *Driver) open(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready {
		return nil
	}
	if d.options.Path != "" {
		return d.adopt()
	}
	if err := os.MkdirAll(d.dir(), 0o700); err != nil {
		return err
	}
	if !isBtrfs(d.dir()) {
		if err := d.format(ctx); err != nil {
			return err
		}
		if err := mountLoop(d.image(), d.dir()); err != nil {
			return fault.Wrap(fault.Unsupported, err, "cannot mount the volume pool %s", d.image()).
				WithHint("the kernel needs btrfs and loop devices: modprobe btrfs loop")
		}
		d.mounted = true
	}
	// Nobody but root comes near: containers' files may be set-user-ID root's.
	if err := os.Chmod(d.dir(), 0o700); err != nil {
		return err
	}
	d.ready = true
	return nil
}

// adopt takes a directory that somebody else mounted.
func (d *Driver) adopt() error {
	if err := os.MkdirAll(d.options.Path, 0o711); err != nil {
		return err
	}
	if !isBtrfs(d.options.Path) {
		return fault.New(fault.Unsupported, "the volume pool %s is not on btrfs", d.options.Path).
			WithHint("mount a btrfs file system there, or let Gantry keep the pool in an image file")
	}
	d.ready = true
	return nil
}

// format makes the image file under another name first, so that a crash cannot leave an unformatted one.
func (d *Driver) format(ctx context.Context) error {
	if d.exists() {
		return nil
	}
	mkfs, err := exec.LookPath("mkfs.btrfs")
	if err != nil {
		return fault.New(fault.Unsupported, "the volume pool needs mkfs.btrfs, which is not installed").
			WithHint("apt-get install btrfs-progs")
	}
	tmp := d.image() + ".new"
	defer os.Remove(tmp)
	if err := sparseFile(tmp, d.options.Size); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, mkfs, "-q", "-f", "-m", "single", tmp).CombinedOutput(); err != nil {
		return fault.Wrap(fault.Internal, err, "mkfs.btrfs failed: %s", out)
	}
	if err := syncFile(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, d.image()); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(d.image()))
}

// syncFile waits until what another program has written is on disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func sparseFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// Close unmounts a pool that this driver mounted. One in use stays mounted until its last user goes.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mounted {
		return nil
	}
	d.mounted, d.ready = false, false
	return unix.Unmount(d.dir(), unix.MNT_DETACH)
}
