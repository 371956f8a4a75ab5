package engine

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/archive"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/ownthread"
)

// CopyTo unpacks a tar stream into an existing directory of a container. In one that runs it sees the container's
// mounts; in one that does not, its writable layer only.
func (e *Engine) CopyTo(ctx context.Context, id, path string, r io.Reader) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	return e.withRoot(ctx, c, func(root *os.File, ids archive.IDs) error {
		return asRoot(ids, func() error { return archive.Extract(ctx, root, path, r, ids) })
	})
}

// CopyFrom packs a file or directory of a container as a tar stream, entries named from the last element of path on. The
// caller closes the reader.
func (e *Engine) CopyFrom(ctx context.Context, id, path string) (io.ReadCloser, error) {
	c, err := e.container(id)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	e.group.Go(func() error {
		err := e.withRoot(ctx, c, func(root *os.File, ids archive.IDs) error { return archive.Pack(ctx, root, path, w, ids) })
		w.CloseWithError(err) // nil means EOF
		return nil
	})
	// Wait for the first bytes, so that a wrong path is an error of this call.
	first := make([]byte, 1)
	if _, err := io.ReadFull(r, first); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &prefixed{first: first, PipeReader: r}, nil
}

// prefixed is a pipe whose first byte has been read already.
type prefixed struct {
	first []byte
	*io.PipeReader
}

// Read implements io.Reader.
func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.PipeReader.Read(b)
}

// withRoot calls fn with the container's root directory and how the owners of its files are to be read.
func (e *Engine) withRoot(ctx context.Context, c *container, fn func(*os.File, archive.IDs) error) error {
	inside := archive.IDs{Base: c.IDBase}
	if r := c.current(); r != nil {
		return openedRoot(procRoot(r), inside, fn)
	}
	if c.Rootfs != "" {
		return openedRoot(c.Rootfs, archive.IDs{}, fn)
	}
	c.op.Lock() // the layer must not be mounted twice: a start waits
	defer c.op.Unlock()
	if r := c.current(); r != nil {
		return openedRoot(procRoot(r), inside, fn)
	}
	if err := e.awaitGone(ctx, c); err != nil {
		return err
	}
	mounts, err := e.root(e.Context(ctx), c)
	if err != nil {
		return err
	}
	dir := filepath.Join(e.o.Run, "root", c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: mount point", c.ID)
	}
	defer os.Remove(dir)
	if err := mount.All(mounts, dir); err != nil {
		return fault.Wrap(fault.Internal, err, "container %s: mount", c.ID)
	}
	return errors.Join(openedRoot(dir, inside, fn), mount.UnmountAll(dir, unix.MNT_DETACH))
}

func openedRoot(dir string, ids archive.IDs, fn func(*os.File, archive.IDs) error) error {
	root, err := os.Open(dir)
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "the container has ended meanwhile")
	}
	defer root.Close()
	return fn(root, ids)
}

// asRoot calls fn on a thread that makes files as root inside. The machine's root cannot own a file where it has no number.
func asRoot(ids archive.IDs, fn func() error) error {
	if ids.Base == 0 {
		return fn()
	}
	return ownthread.Run(func() error {
		if err := beRoot(int(ids.Base)); err != nil {
			return err
		}
		return fn()
	})
}

// keepCapabilities is SECBIT_NO_SETUID_FIXUP of capabilities(7).
const keepCapabilities = 1 << 2

// beRoot gives the thread the owner of new files, and lets it keep its capabilities.
func beRoot(id int) error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, keepCapabilities, 0, 0, 0); err != nil {
		return fault.Wrap(fault.Internal, err, "files of a user namespace")
	}
	// These two report no errors: they return the value before.
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(id), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(id), 0, 0)
	return nil
}
