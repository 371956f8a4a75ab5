// Package archive packs files of this machine into tar streams and unpacks tar streams into them, for `gantry cp`.
//
// Pack and Unpack are the whole interface. Unpack takes archives from containers, which nobody trusts: whatever names
// and links an archive holds, nothing outside of the target directory is made, changed or removed.
package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Pack writes the file or directory at source to w. Its own name becomes name; what is below keeps its path. With name
// "." only a directory's content is packed. Owners are kept if owners is set, else they are root.
func Pack(w io.Writer, source, name string, follow, owners bool) error {
	if follow {
		real, err := filepath.EvalSymlinks(source)
		if err != nil {
			return fault.Wrap(fault.NotFound, err, "the source cannot be read")
		}
		source = real
	}
	out := tar.NewWriter(w)
	err := filepath.WalkDir(source, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, at)
		if err != nil {
			return err
		}
		return packOne(out, at, path.Join(name, filepath.ToSlash(rel)), owners)
	})
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the source cannot be read")
	}
	return out.Close()
}

func packOne(out *tar.Writer, at, name string, owners bool) error {
	info, err := os.Lstat(at)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // A socket has no content that could be copied.
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(at); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	if !owners {
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	}
	if err := out.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	// A file that grows while it is read must not break the archive.
	_, err = io.CopyN(out, f, h.Size)
	return err
}

// Unpack writes the archive r into the directory dir. rename gives each name's place, relative to dir, "" to leave it
// out. Owners are kept if owners is set.
func Unpack(r io.Reader, dir string, rename func(string) string, owners bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the target directory cannot be opened")
	}
	defer root.Close()
	in := tar.NewReader(r)
	u := &unpacker{root: root, rename: rename, owners: owners}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if fault.KindOf(err) != fault.Unknown {
			return err // The stream that the archive comes from has failed, and says why.
		}
		if err != nil {
			return fault.Wrap(fault.Corrupt, err, "the archive from the container is damaged")
		}
		name, err := clean(h.Name, rename)
		if err == nil && name != "" {
			err = u.entry(in, h, name)
		}
		if err != nil {
			return fault.Wrap(fault.KindOf(err), err, "unpack %q", h.Name)
		}
	}
}

// clean refuses names that leave the archive before they are looked at any further.
func clean(name string, rename func(string) string) (string, error) {
	name = path.Clean(strings.TrimPrefix(name, "/"))
	if !filepath.IsLocal(name) {
		return "", fault.New(fault.Denied, "the name leaves the target directory")
	}
	if name = rename(name); name == "" {
		return "", nil
	}
	if !filepath.IsLocal(name) {
		return "", fault.New(fault.Denied, "the name leaves the target directory")
	}
	return name, nil
}

type unpacker struct {
	root   *os.Root
	rename func(string) string
	owners bool
	// Modes of directories, set last so that a read-only one can be filled.
	dirs []*tar.Header
}

func (u *unpacker) entry(in io.Reader, h *tar.Header, name string) error {
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o700|mode); err != nil {
			if info, serr := u.root.Stat(name); serr != nil || !info.IsDir() {
				return err
			}
		}
		d := *h
		d.Name = name
		u.dirs = append(u.dirs, &d)
		return nil
	case tar.TypeReg:
		if err := u.file(in, name, mode); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := u.clear(name); err != nil {
			return err
		}
		// Where it points is not followed by anything here; os.Root sees to that.
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
	case tar.TypeLink:
		from, err := clean(h.Linkname, u.rename)
		if err != nil || from == "" {
			return fault.New(fault.Denied, "the hard link to %q leaves the target directory", h.Linkname)
		}
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Link(from, name)
	default:
		return fault.New(fault.Unsupported, "a device or pipe is not copied out of a container")
	}
	return u.attributes(h, name)
}

func (u *unpacker) clear(name string) error {
	err := u.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (u *unpacker) file(in io.Reader, name string, mode fs.FileMode) error {
	// A new file in place of what is there: never through a link, never into a file that something else uses.
	if err := u.clear(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, in); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func (u *unpacker) attributes(h *tar.Header, name string) error {
	if u.owners {
		if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if d.Name == "." {
			continue // The target's own mode belongs to who made it.
		}
		if err := u.attributes(d, d.Name); err != nil {
			return err
		}
		if err := u.root.Chmod(d.Name, fs.FileMode(d.Mode).Perm()); err != nil {
			return err
		}
	}
	return nil
}
