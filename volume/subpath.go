package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// OpenSubpath opens sub inside the volume as a handle (O_PATH) that can be mounted as /proc/self/fd/N.
func (s *Store) OpenSubpath(ctx context.Context, key, sub string) (*os.File, error) {
	path, err := s.Path(ctx, key)
	if err != nil {
		return nil, err
	}
	if filepath.IsAbs(sub) || !filepath.IsLocal(filepath.Clean("./"+sub)) || strings.ContainsRune(sub, 0) {
		return nil, fault.New(fault.Invalid, "the subpath %q leaves the volume %q", sub, key).
			WithHint("write it relative to the volume's root, without \"..\"")
	}
	f, err := openBeneath(path, sub)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, os.ErrNotExist):
		return nil, fault.New(fault.NotFound, "the volume %q has no %q", key, sub).
			WithHint("make the folder in the volume first; a subpath is not made by itself")
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return nil, fault.New(fault.Denied, "a link in %q leaves the volume %q", sub, key)
	}
	return nil, storageFault(err, "cannot open %q in the volume %q", sub, key)
}

// openBeneath lets the kernel refuse every step out of root: "..", absolute links, magic links and other mounts.
func openBeneath(root, sub string) (*os.File, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), filepath.Clean("./"+sub), how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // a rename raced with the walk; the kernel asks to try again
		}
		if err != nil {
			return nil, &os.PathError{Op: "openat2", Path: filepath.Join(root, sub), Err: err}
		}
		return os.NewFile(uintptr(fd), filepath.Join(root, sub)), nil
	}
}
