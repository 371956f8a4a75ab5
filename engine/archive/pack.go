package archive

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/inroot"
	"github.com/gantryd/gantry/fault"
)

// Pack writes the file or directory at name in root as a tar stream. Its entries are named from name's last element on;
// a symbolic link at name itself is packed as a link. Sockets are left out. The owners in the stream are IDs of ids.
func Pack(ctx context.Context, root *os.File, name string, w io.Writer, ids IDs) error {
	clean := path.Join("/", name)
	parent, err := inroot.Open(root, path.Dir(clean), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fault.Wrap(pathFault(err), err, "path %s", name)
	}
	defer parent.Close()
	p := packer{ctx: ctx, w: tar.NewWriter(w), ids: ids}
	base, as := path.Base(clean), path.Base(clean)
	if clean == "/" {
		base, as = ".", "."
	}
	if err := p.pack(parent, base, as); err != nil {
		return fault.Wrap(pathFault(err), err, "path %s", name)
	}
	return p.w.Close()
}

type packer struct {
	ctx context.Context
	w   *tar.Writer
	ids IDs
}

// pack packs one entry of an open directory. It never follows a link, so the tree cannot lead elsewhere.
func (p *packer) pack(dir *os.File, base, as string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: as, Err: err}
	}
	h := header(as, &st)
	h.Uid, h.Gid = p.ids.leave(st.Uid), p.ids.leave(st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.directory(dir, base, as, h)
	case unix.S_IFREG:
		return p.file(dir, base, h)
	case unix.S_IFLNK:
		target, err := readLink(dir, base)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return nil
	}
	return p.w.WriteHeader(h)
}

func header(as string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Name: as, Mode: int64(st.Mode & 0o7777), Format: tar.FormatPAX,
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

func (p *packer) directory(parent *os.File, base, as string, h *tar.Header) error {
	dir, err := openAt(parent, base, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	h.Typeflag, h.Name = tar.TypeDir, as+"/"
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := p.pack(dir, name, path.Join(as, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // what was removed meanwhile is left out
		}
	}
	return nil
}

// file packs a regular file. One that shrinks meanwhile is filled with zeros, one that grows is cut.
func (p *packer) file(parent *os.File, base string, h *tar.Header) error {
	f, err := openAt(parent, base, unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() { // swapped for something else meanwhile
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.w, io.LimitReader(f, h.Size))
	if err != nil {
		return err
	}
	_, err = io.CopyN(p.w, zeros{}, h.Size-n)
	return err
}

func openAt(dir *os.File, base string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: base, Err: err}
	}
	return os.NewFile(uintptr(fd), base), nil
}

func readLink(dir *os.File, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: base, Err: err}
	}
	return string(buf[:n]), nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clearBytes(p)
	return len(p), nil
}

func clearBytes(p []byte) {
	for i := range p {
		p[i] = 0
	}
}
