// Package buildcontext is the client's half of a build: it packs a directory into the tar stream that a build reads.
//
// Pack is the whole interface. It imports nothing of the builder, so that the command line stays small, and it is safe
// in parallel.
package buildcontext

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/gantryd/gantry/fault"
)

// Pack writes the directory dir to w as an uncompressed tar stream, without what .dockerignore excludes. dockerfile is
// the Dockerfile's path, relative to dir unless absolute, "Dockerfile" when empty; if a file of that name with
// ".dockerignore" added is there, it takes .dockerignore's place. The Dockerfile and the ignore file are always sent
// when they are in dir, as the builder needs them; it excludes them again itself. The same tree gives the same bytes:
// names are sorted, owners left out, modes and modification times kept. Sockets are left out.
func Pack(ctx context.Context, dir, dockerfile string, w io.Writer) error {
	rules, err := readRules(dir, dockerfile)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "open the build context")
	}
	defer root.Close()
	out := bufio.NewWriterSize(w, 256<<10)
	p := &packer{root: root, rules: rules, tar: tar.NewWriter(out)}
	if err := p.directory(ctx, ".", verdict{}); err != nil {
		return err
	}
	if err := p.tar.Close(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "send the build context")
	}
	if err := out.Flush(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "send the build context")
	}
	return nil
}

type packer struct {
	root  *os.Root
	rules *rules
	tar   *tar.Writer
}

// directory packs what is in a directory, in the order of names.
func (p *packer) directory(ctx context.Context, dir string, above verdict) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.Canceled, context.Cause(ctx), "send the build context")
	}
	entries, err := fs.ReadDir(p.root.FS(), dir)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "read the build context").WithHint("make it readable, or list it in .dockerignore")
	}
	for _, e := range entries {
		if err := p.entry(ctx, path.Join(dir, e.Name()), e, above); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) entry(ctx context.Context, name string, e fs.DirEntry, above verdict) error {
	v, err := p.rules.judge(name, above)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "apply the ignore file to %s", name)
	}
	if e.IsDir() && (!v.excluded || p.rules.mayInclude(name)) {
		if !v.excluded {
			if err := p.write(name, e); err != nil {
				return err
			}
		}
		return p.directory(ctx, name, v)
	}
	if v.excluded || e.Type()&fs.ModeSocket != 0 {
		return nil
	}
	return p.write(name, e)
}

func (p *packer) write(name string, e fs.DirEntry) error {
	fi, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return changed(name)
	}
	if err != nil {
		return fault.Wrap(fault.Denied, err, "read %s of the build context", name)
	}
	h, err := p.header(name, fi)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		return p.file(name, h)
	}
	return p.send(h)
}

func (p *packer) send(h *tar.Header) error {
	if err := p.tar.WriteHeader(h); err != nil {
		return fault.Wrap(fault.Unavailable, err, "send the build context")
	}
	return nil
}

func (p *packer) header(name string, fi fs.FileInfo) (*tar.Header, error) {
	h := &tar.Header{Name: name, ModTime: fi.ModTime(), Format: tar.FormatPAX, Mode: int64(fi.Mode().Perm())}
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if fi.Mode()&flag != 0 {
			h.Mode |= bit
		}
	}
	switch {
	case fi.Mode().IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	case fi.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case fi.Mode()&fs.ModeSymlink != 0:
		target, err := p.root.Readlink(filepath.FromSlash(name))
		if err != nil {
			return nil, changed(name)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, filepath.ToSlash(target)
	default:
		return nil, fault.New(fault.Invalid, "%s of the build context is a device or a pipe", name).WithHint("list it in .dockerignore")
	}
	return h, nil
}

func (p *packer) file(name string, h *tar.Header) error {
	f, err := p.root.Open(filepath.FromSlash(name))
	if err != nil {
		return fault.Wrap(fault.Denied, err, "read %s of the build context", name).WithHint("make it readable, or list it in .dockerignore")
	}
	defer f.Close()
	if err := p.send(h); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(f, h.Size))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "send %s of the build context", name)
	}
	if n != h.Size {
		return changed(name)
	}
	return nil
}

func changed(name string) error {
	return fault.New(fault.Conflict, "%s changed while the build context was being read", name).WithHint("build again, or list it in .dockerignore")
}
