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

// Tar unpacks a tar stream, plain or compressed with gzip or zstd, into dir, which must exist. Nothing is
// written outside of dir whatever the stream says: names that leave it, entries through links that leave it, devices and
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
	u := &unpacker{root: root, tar: tar.NewReader(plain), bytes: maxContextBytes, entries: maxContextEntries, made: map[string]bool{".": true}}
	if err := u.all(ctx); err != nil {
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
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(name, h)
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

func (u *unpacker) parents(name string) error {
	dir := path.Dir(name)
	if u.made[dir] {
		return nil
	}
	if err := u.root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	u.made[dir] = true
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
	u.made[name] = true
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
	if _, err := io.Copy(f, u.tar); err != nil {
		return err
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
