package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Diff lists what a container has changed in its image: "A" added, "C" changed, "D" deleted.
func (e *Engine) Diff(ctx context.Context, id string) (*gantryv1.DiffResponse, error) {
	c, err := e.container(id)
	if err != nil {
		return nil, err
	}
	if c.Rootfs != "" {
		return nil, fault.New(fault.Unsupported, "container %s runs on the directory %s itself, there is nothing to compare with", id, c.Rootfs)
	}
	mounts, err := e.client.SnapshotService(snapshotter).Mounts(e.Context(ctx), id)
	if err != nil || len(mounts) != 1 {
		return nil, fault.Wrap(fault.Corrupt, err, "container %s: writable layer", id)
	}
	var upper string
	var lower []string
	for _, o := range mounts[0].Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = v
		}
		if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(v, ":")
		}
	}
	out := &gantryv1.DiffResponse{}
	err = filepath.WalkDir(upper, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		if name := strings.TrimPrefix(p, upper); name != "" {
			if kind := changeKind(p, name, d, lower); kind != "" {
				out.Entries = append(out.Entries, &gantryv1.DiffResponse_Entry{Kind: kind, Path: name})
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "container %s: writable layer", id)
	}
	return out, nil
}

// changeKind says what an entry of the upper directory means, "" for what the engine itself has put there.
func changeKind(p, name string, d fs.DirEntry, lower []string) string {
	existed := inLayers(lower, name)
	switch {
	case isWhiteout(p, d):
		return "D"
	case existed:
		return "C"
	case isMountPoint(name):
		return ""
	}
	return "A"
}

func isWhiteout(p string, d fs.DirEntry) bool {
	if d.Type()&fs.ModeCharDevice == 0 {
		return false
	}
	var st unix.Stat_t
	return unix.Lstat(p, &st) == nil && st.Rdev == 0
}

// inLayers says whether the image's layers, the uppermost first, have a name.
func inLayers(layers []string, name string) bool {
	for _, dir := range layers {
		st, err := lstatIn(dir, name)
		if err == nil {
			return st.Mode()&os.ModeCharDevice == 0 || st.Sys().(*syscall.Stat_t).Rdev != 0 // else deleted by this layer
		}
	}
	return false
}

// lstatIn looks a name up in one layer without leaving it by a link.
func lstatIn(dir, name string) (os.FileInfo, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Lstat(strings.TrimPrefix(name, "/"))
}

// isMountPoint says whether runc made the file to mount something of the engine's on.
func isMountPoint(name string) bool {
	switch name {
	case "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/proc", "/sys", "/dev", "/etc":
		return true
	}
	return strings.HasPrefix(name, "/dev/") || strings.HasPrefix(name, "/sys/") || strings.HasPrefix(name, "/proc/")
}
