package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/inroot"
	"github.com/gantryd/gantry/fault"
)

// pin is a mount whose source somebody else could swap for a link while it is being mounted: runc, which follows links, is
// given a mount of what was opened without following any, at a place of the engine's own.
type pin struct {
	Source string
	// Subpath is a directory or file inside of Source, a volume. Links in it stay inside.
	Subpath string
	// Place is empty for a source that is only looked at: mounts that go on propagating must be of the source itself.
	Place string
}

// pins lists the mounts of r that are pinned, and returns r's mounts with their sources replaced.
func (e *Engine) pins(r CreateRequest) ([]Mount, []pin) {
	mounts := slices.Clone(r.Mounts)
	var list []pin
	for i, m := range mounts {
		if m.Subpath == "" && m.Type != MountBind {
			continue
		}
		p := pin{Source: m.Source, Subpath: m.Subpath}
		if m.Subpath != "" || !propagates(m) {
			p.Place = filepath.Join(e.pinDir(r.ID), strconv.Itoa(i))
			mounts[i].Source = p.Place
		}
		list = append(list, p)
	}
	return mounts, list
}

// propagates says whether mounts go from the machine to the container later on.
func propagates(m Mount) bool {
	p := strings.TrimPrefix(m.Propagation, "r")
	return p == "shared" || p == "slave"
}

func (e *Engine) pinDir(id string) string { return filepath.Join(e.o.Run, "mounts", id) }

// pinMounts makes the mounts that runc takes a container's from. Release removes them again: the container has its own by
// then.
func (e *Engine) pinMounts(c *container) (release func(), err error) {
	if len(c.Pins) == 0 {
		return func() {}, nil
	}
	e.unpin(c.ID)
	if err := os.MkdirAll(e.pinDir(c.ID), 0o700); err != nil {
		return nil, fault.Wrap(diskFault(err), err, "container %s: directory of mounts", c.ID)
	}
	for _, p := range c.Pins {
		if err := p.mount(); err != nil {
			e.unpin(c.ID)
			return nil, pinFault(err, p)
		}
	}
	return func() { e.unpin(c.ID) }, nil
}

func pinFault(err error, p pin) error {
	what := filepath.Join(p.Source, p.Subpath)
	switch {
	case errors.Is(err, unix.ELOOP):
		return fault.Wrap(fault.Denied, err, "the path %s, which is to be mounted, has become a link", what).
			WithHint("make the container again: gantry up")
	case errors.Is(err, os.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "the path %s, which is to be mounted, is not on this machine", what).
			WithHint("make it, then start the container again")
	}
	return fault.Wrap(diskFault(err), err, "mount of %s", what)
}

func (p pin) mount() error {
	source, err := p.open()
	if err != nil {
		return err
	}
	defer source.Close()
	if p.Place == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(source.Fd()), &st); err != nil {
		return err
	}
	if err := makePlace(p.Place, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	tree, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	// Private: what is mounted inside of the source must not go with this mount.
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, p.Place, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// open opens the source: a bind's without following any link, a subpath without leaving its volume.
func (p pin) open() (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	if p.Subpath != "" {
		how.Resolve = unix.RESOLVE_NO_MAGICLINKS // the volume's own path is the daemon's, and may lead through links
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, p.Source, how)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		fd, err = unix.Openat2(unix.AT_FDCWD, p.Source, how)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.Source, Err: err}
	}
	f := os.NewFile(uintptr(fd), p.Source)
	if p.Subpath == "" {
		return f, nil
	}
	defer f.Close()
	return inroot.Open(f, p.Subpath, unix.O_PATH, 0)
}

func makePlace(path string, dir bool) error {
	if dir {
		return os.Mkdir(path, 0o700)
	}
	return os.WriteFile(path, nil, 0o600)
}

// unpin removes the mounts of a container. What is left of them when it fails goes with the next attempt.
func (e *Engine) unpin(id string) {
	dir := e.pinDir(id)
	entries, _ := os.ReadDir(dir)
	for _, d := range entries {
		place := filepath.Join(dir, d.Name())
		unmountAll(place)
		_ = os.Remove(place) // never what is below: it might still be mounted
	}
	_ = os.Remove(dir)
}

// unmountLeftovers clears away what a killed daemon left mounted for a moment.
func (e *Engine) unmountLeftovers() {
	entries, _ := os.ReadDir(e.pinDir(""))
	for _, d := range entries {
		e.unpin(d.Name())
	}
	entries, _ = os.ReadDir(e.momentDir(""))
	for _, d := range entries {
		unmountAll(e.momentDir(d.Name()))
	}
}

// momentDir is where file systems are mounted as long as the engine itself looks into them.
func (e *Engine) momentDir(name string) string { return filepath.Join(e.o.Run, "moment", name) }

// withMounts calls fn with a directory that a snapshot is mounted on. One at a time may use a name.
func (e *Engine) withMounts(name string, mounts []mount.Mount, fn func(dir string) error) error {
	dir := e.momentDir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer unmountAll(dir)
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	return fn(dir)
}

func unmountAll(place string) {
	for unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
}
