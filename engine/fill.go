package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/inroot"
	"github.com/gantryd/gantry/fault"
)

// fillingMark is on a volume's directory while the image's content is being copied into it. It lies with the volume, so that
// it goes where the volume goes. Who finds it on a volume clears what is there: no container has had it yet.
const fillingMark = "trusted.gantry.filling"

// fillVolumes fills empty volumes with what the image has at their targets.
func (e *Engine) fillVolumes(ctx context.Context, rootfs []mount.Mount, mounts []Mount) error {
	for _, m := range mounts {
		if m.Type != MountVolume || !mustFill(m) {
			continue
		}
		if err := e.fillVolume(ctx, rootfs, m); err != nil {
			return fault.Wrap(diskFault(err), err, "volume at %s: copy of the image's content", m.Target)
		}
	}
	return nil
}

func mustFill(m Mount) bool { return wantsContent(m) && isEmpty(m.Source) || isMarked(m.Source) }

func wantsContent(m Mount) bool { return m.CopyUp && m.Subpath == "" }

func (e *Engine) fillVolume(ctx context.Context, rootfs []mount.Mount, m Mount) error {
	e.filling.Lock() // another container of the same volume waits until it is filled
	defer e.filling.Unlock()
	if !mustFill(m) {
		return nil
	}
	dir, err := os.Open(m.Source)
	if err != nil {
		return err
	}
	defer dir.Close()
	if isMarked(m.Source) {
		if err := clearDir(m.Source); err != nil {
			return err
		}
	}
	if !wantsContent(m) {
		return unmark(dir)
	}
	if err := mark(dir); err != nil {
		return err
	}
	err = mount.WithTempMount(ctx, rootfs, func(root string) error { return copyDir(root, m) })
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	return unmark(dir)
}

func isMarked(dir string) bool {
	_, err := unix.Lgetxattr(dir, fillingMark, nil)
	return err == nil
}

// mark is durable when it returns. A file system without such attributes has volumes without marks.
func mark(dir *os.File) error {
	err := unix.Fsetxattr(int(dir.Fd()), fillingMark, []byte("1"), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return errors.Join(err, dir.Sync())
}

func unmark(dir *os.File) error {
	err := unix.Fremovexattr(int(dir.Fd()), fillingMark)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return errors.Join(err, dir.Sync())
}

// filesystemsOwn is what a new file system has in its root directory.
const filesystemsOwn = "lost+found"

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(d os.DirEntry) bool { return d.Name() != filesystemsOwn })
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if d.Name() == filesystemsOwn {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyDir(rootDir string, m Mount) error {
	root, err := os.Open(rootDir)
	if err != nil {
		return err
	}
	defer root.Close()
	from, err := inroot.Open(root, m.Target, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the image has nothing there
	}
	if err != nil {
		return err
	}
	defer from.Close()
	if st, err := from.Stat(); err != nil || !st.IsDir() {
		return err
	}
	// Nothing runs on this file system yet, so the path cannot change under us.
	resolved, err := os.Readlink(filepath.Join("/proc/self/fd", fdName(from)))
	if err != nil {
		return err
	}
	return fs.CopyDir(m.Source, resolved)
}
