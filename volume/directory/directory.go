// Package directory keeps each volume in a plain directory of its own. It is the default driver.
//
// Call Open first. All methods are safe in parallel for different names. It has no snapshots, clones or size limits.
package directory

import (
	"context"
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/internal/diskusage"
)

// Driver keeps volumes as directories.
type Driver struct{ root string }

// Open makes the root directory if it is missing. Only the owner may enter it: volumes hold other people's data.
func Open(root string) (*Driver, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(root, 0o700); err != nil { // one that is there may be open to all
		return nil, err
	}
	return &Driver{root: root}, nil
}

// Path returns where the volume's data is.
func (d *Driver) Path(name string) string { return filepath.Join(d.root, name) }

// Create makes the directory unless it is there. The mode is what Docker gives; copy-up from an image changes it.
func (d *Driver) Create(_ context.Context, name string, options map[string]string) error {
	for o := range options {
		return fault.New(fault.Unsupported, "the volume driver \"directory\" has no option %q", o).
			WithHint("leave driver_opts out; a size limit needs driver: pool")
	}
	err := os.Mkdir(d.Path(name), 0o755)
	if os.IsExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(d.root)
}

// Remove deletes the directory and all below it; links are not followed.
func (d *Driver) Remove(_ context.Context, name string) error {
	if err := os.RemoveAll(d.Path(name)); err != nil {
		return err
	}
	return atomicfile.SyncDir(d.root)
}

// Usage returns the bytes that the volume takes on disk.
func (d *Driver) Usage(ctx context.Context, name string) (int64, error) {
	return diskusage.Of(ctx, d.Path(name))
}
