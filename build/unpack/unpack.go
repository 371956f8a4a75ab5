// Package unpack turns a client's tar stream into a directory without trusting the stream.
//
// Tar is the whole interface. It is safe in parallel for different directories.
package unpack

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// What one context may hold. The limits are far above real contexts and stop bombs before they fill a disk.
const (
	maxContextBytes   = 32 << 30
	maxContextEntries = 2_000_000
	maxPathLength     = 4096
	maxZstdWindow     = 128 << 20
)

// Tar makes dir, which must exist, hold what a tar stream, plain or compressed with gzip or zstd, holds. What is in dir
// already and in the stream too is left as it is, what the stream lacks is removed: a directory that is kept between two
// streams of the same place costs the second one little. Nothing is written outside of dir whatever the stream says: names that leave it, entries through links that leave it, devices and
// pipes are refused with fault.Invalid. Owners are not kept; modes and times are. What was unpacked before an error
// stays in dir.
func Tar(ctx context.Context, r io.Reader, dir string) error {
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "open the directory for a build context")
	}
	defer root.Close()
	u := &unpacker{root: root, tar: tar.NewReader(plain), bytes: maxContextBytes, entries: maxContextEntries, made: map[string]bool{".": true}, seen: map[string]bool{".": true}}
	if err := u.all(ctx); err != nil {
		return err
	}
	if err := u.sweep(); err != nil {
		return err
	}
	return u.datesOfDirectories()
}

func decompress(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	magic, _ := in.Peek(4)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "the build context is not readable gzip")
		}
		return z, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "the build context is not readable zstd")
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

type unpacker struct {
	root    *os.Root
	tar     *tar.Reader
	bytes   int64
	entries int
	made    map[string]bool // directories known to exist
	seen    map[string]bool // names of the stream, and directories above them
	dirs    []*tar.Header
}

func (u *unpacker) all(ctx context.Context) error {
	for {
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.Wrap(fault.Corrupt, err, "read the build context")
		}
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "unpack the build context")
		}
		if err := u.one(h); err != nil {
			return explain(err, h.Name)
		}
	}
}

// explain gives an error of the file system a kind.
func explain(err error, name string) error {
	switch {
	case fault.KindOf(err) != fault.Unknown:
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.Exhausted, err, "unpack %q of the build context", name).WithHint("free space: gantry system prune")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.Wrap(fault.Corrupt, err, "the build context ends within %q", name)
	}
	return fault.Wrap(fault.Invalid, err, "entry %q of the build context", name)
}

func (u *unpacker) one(h *tar.Header) error {
	if u.entries--; u.entries < 0 {
		return fault.New(fault.Invalid, "the build context has more than %d entries", maxContextEntries).WithHint("list what the build does not need in .dockerignore")
	}
	if u.bytes -= h.Size; u.bytes < 0 {
		return fault.New(fault.Invalid, "the build context is larger than %d GiB", maxContextBytes>>30).WithHint("list what the build does not need in .dockerignore")
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := localName(h.Name)
	if err != nil {
		return err
	}
	if err := u.parents(name); err != nil {
		return err
	}
	return u.make(name, h)
}

func (u *unpacker) make(name string, h *tar.Header) error {
	if h.Typeflag == tar.TypeDir {
		return u.directory(name, h)
	}
	u.seen[name] = true
	switch h.Typeflag {
	case tar.TypeReg:
		if sparse(h) {
			return fault.New(fault.Invalid, "entry %q of the build context is a sparse file", h.Name).WithHint("send the context without tar's --sparse")
		}
		return u.file(name, h)
	case tar.TypeSymlink:
		return u.symlink(name, h)
	case tar.TypeLink:
		return u.link(name, h)
	}
	return fault.New(fault.Invalid, "entry %q of the build context is a device, a pipe or something stranger", h.Name).WithHint("list it in .dockerignore")
}

// sparse reports files with holes: a kilobyte of stream can claim gigabytes of them.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// localName cleans a name and refuses one that leaves the directory.
func localName(name string) (string, error) {
	clean := path.Clean(strings.TrimPrefix(name, "./"))
	if name == "" || len(name) > maxPathLength || strings.ContainsRune(name, 0) || path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fault.New(fault.Invalid, "entry %.200q of the build context is not a path inside of it", name)
	}
	return clean, nil
}

// parents makes the directories above a name. Something else in a directory's place is removed if it is of an earlier
// stream, and refused if it is of this one: no tree has files below a link.
func (u *unpacker) parents(name string) error {
	dir := path.Dir(name)
	if u.made[dir] {
		return nil
	}
	if err := u.parents(dir); err != nil {
		return err
	}
	if fi, err := u.root.Lstat(dir); err == nil && !fi.IsDir() {
		if u.seen[dir] {
			return fault.New(fault.Invalid, "entry %q of the build context lies below %q, which is not a directory", name, dir)
		}
		if err := u.root.Remove(dir); err != nil {
			return err
		}
	}
	if err := u.root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	u.made[dir], u.seen[dir] = true, true
	return nil
}

// sweep removes what the stream did not name.
func (u *unpacker) sweep() error {
	var stale []string
	err := fs.WalkDir(u.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || u.seen[name] {
			return err
		}
		stale = append(stale, name)
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	for _, name := range stale {
		err = errors.Join(err, u.root.RemoveAll(name))
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "remove what is no longer in the build context")
	}
	return nil
}

func (u *unpacker) directory(name string, h *tar.Header) error {
	if fi, err := u.root.Lstat(name); err == nil && !fi.IsDir() {
		if err := u.root.Remove(name); err != nil {
			return err
		}
	}
	if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	u.made[name], u.seen[name] = true, true
	c := *h
	c.Name = name
	u.dirs = append(u.dirs, &c)
	return nil
}

// replace makes room for an entry: a stream may name a path twice, and the last one counts.
func (u *unpacker) replace(name string) error {
	if name == "." {
		return fault.New(fault.Invalid, "an entry of the build context would replace its root")
	}
	fi, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() {
		u.made = map[string]bool{".": true}
		return u.root.RemoveAll(name)
	}
	return u.root.Remove(name)
}

func (u *unpacker) file(name string, h *tar.Header) error {
	fi, err := u.root.Lstat(name)
	if err == nil && fi.Mode() == mode(h) && fi.Size() == h.Size {
		return u.update(name, h, fi)
	}
	return u.create(name, h, u.tar)
}

// update leaves a file that holds what the stream holds. One that does not is made anew, not written to: it may have
// other names.
func (u *unpacker) update(name string, h *tar.Header, fi fs.FileInfo) error {
	old, err := u.root.Open(name)
	if err != nil {
		return err
	}
	defer old.Close()
	same, rest, err := compare(old, u.tar, h.Size)
	if err != nil {
		return err
	}
	if rest != nil {
		return u.create(name, h, io.MultiReader(io.NewSectionReader(old, 0, same), bytes.NewReader(rest), u.tar))
	}
	if fi.ModTime().Equal(h.ModTime) {
		return nil
	}
	return u.root.Chtimes(name, time.Time{}, h.ModTime)
}

// compare reads b, of size bytes, until it differs from a. It returns how many bytes are the same, and what was read of b
// beyond them, nil when there is no difference.
func compare(a, b io.Reader, size int64) (same int64, rest []byte, err error) {
	var bufA, bufB [32 << 10]byte
	for same < size {
		n := min(size-same, int64(len(bufB)))
		if _, err := io.ReadFull(b, bufB[:n]); err != nil {
			return same, nil, err
		}
		if _, err := io.ReadFull(a, bufA[:n]); err != nil || !bytes.Equal(bufA[:n], bufB[:n]) {
			return same, bytes.Clone(bufB[:n]), nil
		}
		same += n
	}
	return same, nil, nil
}

func (u *unpacker) create(name string, h *tar.Header, content io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err = u.replace(name); err == nil {
			f, err = u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(f, content); err != nil {
		return err
	} else if n != h.Size {
		return io.ErrUnexpectedEOF
	}
	if err := f.Chmod(mode(h)); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return u.root.Chtimes(name, time.Time{}, h.ModTime)
}

func mode(h *tar.Header) fs.FileMode {
	m := fs.FileMode(h.Mode) & 0o777
	for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

// symlink makes the link as it says. It may point anywhere: nothing here follows it outwards, and in the image it is
// resolved within the image.
func (u *unpacker) symlink(name string, h *tar.Header) error {
	if target, err := u.root.Readlink(name); err == nil && target == h.Linkname {
		return nil
	}
	if err := u.replace(name); err != nil {
		return err
	}
	return u.root.Symlink(h.Linkname, name)
}

func (u *unpacker) link(name string, h *tar.Header) error {
	target, err := localName(h.Linkname)
	if err != nil {
		return err
	}
	fi, err := u.root.Lstat(target)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fault.New(fault.Invalid, "entry %q of the build context is a hard link to something that is not a file", h.Name)
	}
	if target == name {
		return nil
	}
	if !u.seen[target] {
		return fault.New(fault.Invalid, "entry %q of the build context is a hard link to %q, which did not come before", h.Name, h.Linkname)
	}
	if other, err := u.root.Lstat(name); err == nil && os.SameFile(fi, other) {
		return nil
	}
	if err := u.replace(name); err != nil {
		return err
	}
	return u.root.Link(target, name)
}

// datesOfDirectories comes last: unpacking into a directory changes its time, and a mode could forbid it.
func (u *unpacker) datesOfDirectories() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if fi, err := u.root.Lstat(h.Name); err != nil || !fi.IsDir() {
			continue // replaced later in the stream
		}
		if err := u.root.Chmod(h.Name, mode(h)); err != nil {
			return explain(err, h.Name)
		}
		if err := u.root.Chtimes(h.Name, time.Time{}, h.ModTime); err != nil {
			return explain(err, h.Name)
		}
	}
	return nil
}
