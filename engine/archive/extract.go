// Package archive packs and unpacks tar streams inside a root directory that somebody hostile may have filled, a
// container's for example, and may be changing meanwhile.
//
// Every path is resolved by the kernel inside the root (see inroot) and every file is reached by descriptor, so "..",
// absolute names, symbolic and hard links, in the archive or already in the root, stay inside. Device nodes are refused.
// Nothing of the root is executed. Functions are safe in parallel on different roots.
package archive

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/inroot"
	"github.com/gantryd/gantry/engine/userns"
	"github.com/gantryd/gantry/fault"
)

// Extract unpacks a tar stream into the directory dir of root, which must exist. The owners in the stream are IDs of ids.
func Extract(ctx context.Context, root *os.File, dir string, r io.Reader, ids IDs) error {
	target, err := inroot.Open(root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fault.Wrap(pathFault(err), err, "directory %s", dir).WithHint("the target of a copy is a directory that exists")
	}
	defer target.Close()
	x := extractor{root: root, dir: dir, ids: ids}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return x.finish()
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "the archive cannot be read")
		}
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, err, "unpacking")
		}
		if err := ids.enter(h); err != nil {
			return err
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
}

// IDs says which IDs owners in an archive are. The zero value takes them as they are.
type IDs struct {
	// Base is what root of the archive is on the machine: the first of a range of userns.Size IDs.
	Base uint32
}

// nobody is who owns what has an owner that an archive cannot name.
const nobody = 65534

// enter gives an entry of an archive the owner it has on the machine.
func (i IDs) enter(h *tar.Header) error {
	if i.Base == 0 {
		return nil
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= userns.Size || h.Gid >= userns.Size {
		return fault.New(fault.Invalid, "%q belongs to %d:%d; the container has the IDs 0 to %d only", h.Name, h.Uid, h.Gid, userns.Size-1)
	}
	h.Uid, h.Gid = h.Uid+int(i.Base), h.Gid+int(i.Base)
	return nil
}

// leave returns an ID as the container has it.
func (i IDs) leave(id uint32) int {
	if i.Base == 0 {
		return int(id)
	}
	if id < i.Base || id-i.Base >= userns.Size {
		return nobody
	}
	return int(id - i.Base)
}

type extractor struct {
	root *os.File
	dir  string
	ids  IDs
	// dirs get their times last: filling a directory changes them.
	dirs []*tar.Header
}

// inside returns a name of the archive as a path in the root, below the target however many ".." it has.
func (x *extractor) inside(name string) string { return path.Join("/", x.dir, path.Join("/", name)) }

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	name := path.Join("/", h.Name)
	if name == "/" {
		return nil // the target itself keeps its owner and mode
	}
	parent, err := x.parent(name)
	if err != nil {
		return fault.Wrap(pathFault(err), err, "unpack %q", h.Name)
	}
	defer parent.Close()
	if err := x.make(parent, path.Base(name), h, r); err != nil {
		if fault.KindOf(err) != fault.Unknown {
			return err
		}
		return fault.Wrap(pathFault(err), err, "unpack %q", h.Name)
	}
	return nil
}

// parent opens the directory that an entry goes into, making what is missing of it.
func (x *extractor) parent(name string) (*os.File, error) {
	dir := x.inside(path.Dir(name))
	f, err := inroot.Open(x.root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if !errors.Is(err, os.ErrNotExist) || path.Dir(name) == "/" {
		return f, err
	}
	above, err := x.parent(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if err := unix.Mkdirat(int(above.Fd()), path.Base(path.Dir(name)), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return inroot.Open(x.root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func (x *extractor) make(parent *os.File, base string, h *tar.Header, r io.Reader) error {
	fd := int(parent.Fd())
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		x.dirs = append(x.dirs, h)
		return x.mkdir(parent, base, h)
	case tar.TypeChar, tar.TypeBlock:
		return fault.New(fault.Denied, "%q is a device node; those cannot be copied into a container", h.Name).
			WithHint("give the service the device with devices:")
	}
	if err := clear(fd, base); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return regular(parent, base, h, r)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return err
		}
		return unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
	case tar.TypeLink:
		return x.hardLink(fd, base, h)
	case tar.TypeFifo:
		if err := unix.Mkfifoat(fd, base, uint32(h.Mode&0o777)); err != nil {
			return err
		}
		return unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	return fault.New(fault.Unsupported, "%q has the unknown type %q in the archive", h.Name, h.Typeflag)
}

// clear removes what is in an entry's place. A directory that is not empty stays, and the entry fails.
func clear(fd int, base string) error {
	err := unix.Unlinkat(fd, base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(fd, base, unix.AT_REMOVEDIR)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (x *extractor) mkdir(parent *os.File, base string, h *tar.Header) error {
	fd := int(parent.Fd())
	err := unix.Mkdirat(fd, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		if err = isDirectory(fd, base); err == nil {
			return nil // an existing directory, or a link to one, is used as it is
		}
	}
	if err != nil {
		return err
	}
	return own(parent, base, h, unix.O_DIRECTORY)
}

// isDirectory follows a link inside the root only as far as stat says; what is unpacked below resolves it again.
func isDirectory(fd int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFDIR && t != unix.S_IFLNK {
		return unix.ENOTDIR
	}
	return nil
}

func regular(parent *os.File, base string, h *tar.Header, r io.Reader) error {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	_, err = io.Copy(f, r)
	return errors.Join(err, setOwner(f, h), f.Close())
}

// own opens what was just made, without following links, and gives it its owner and mode.
func own(parent *os.File, base string, h *tar.Header, flags int) error {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	return errors.Join(setOwner(f, h), f.Close())
}

func setOwner(f *os.File, h *tar.Header) error {
	if err := f.Chown(h.Uid, h.Gid); err != nil {
		return err
	}
	// By number: os.File.Chmod does not take the set-user-ID bits as tar has them.
	if err := unix.Fchmod(int(f.Fd()), uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	return setTimes(f, h.ModTime)
}

func setTimes(f *os.File, at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
}

// hardLink links to a file that lies in the target directory too.
func (x *extractor) hardLink(fd int, base string, h *tar.Header) error {
	name := path.Join("/", h.Linkname)
	from, err := inroot.Open(x.root, x.inside(path.Dir(name)), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	return unix.Linkat(int(from.Fd()), path.Base(name), fd, base, 0) // flag 0: a link itself, not what it points to
}

// finish sets the times of directories, deepest first.
func (x *extractor) finish() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		f, err := inroot.Open(x.root, x.inside(x.dirs[i].Name), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			continue // replaced by a later entry of the archive
		}
		_ = setTimes(f, x.dirs[i].ModTime) // on a foreign file system that has no times
		_ = f.Close()
	}
	return nil
}

func pathFault(err error) fault.Kind {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fault.NotFound
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EEXIST):
		return fault.Conflict
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Exhausted
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EROFS):
		return fault.Denied
	case strings.Contains(err.Error(), "unexpected EOF"):
		return fault.Invalid
	}
	return fault.Internal
}
