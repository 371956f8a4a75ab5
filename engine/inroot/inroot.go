// Package inroot opens paths inside a directory as a process with that directory as its root would: absolute links and
// ".." stay inside. It is how the daemon reads and writes a container's files without running anything of it.
//
// The kernel does the resolution (openat2 with RESOLVE_IN_ROOT), so that a container that swaps links meanwhile gains
// nothing. Functions are safe in parallel.
package inroot

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// Open opens path inside root with open(2) flags. Links of /proc are not followed, special files never block.
func Open(root *os.File, path string, flags int, mode os.FileMode) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH != 0 {
		how.Flags = uint64(flags | unix.O_CLOEXEC)
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode.Perm())
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		// EAGAIN: something was renamed during the walk and the kernel could not tell whether it stayed inside.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// ReadFile reads a regular file of at most limit bytes.
func ReadFile(root *os.File, path string, limit int64) ([]byte, error) {
	f, err := Open(root, path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, fault.New(fault.Invalid, "%s is larger than %d bytes", path, limit)
	}
	return b, err
}
