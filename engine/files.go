package engine

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/ocispec"
	"github.com/gantryd/gantry/fault"
)

// File is a secret or config shown to a container as a file. Its content is kept in memory, never on disk: after a
// reboot the container must be given it again, with SetFiles.
type File struct {
	Target   string // absolute path in the container
	Content  []byte
	UID, GID int
	Mode     os.FileMode // 0 means 0444
}

func targets(files []File) []string {
	list := make([]string, 0, len(files))
	for _, f := range files {
		list = append(list, f.Target)
	}
	return list
}

// etcMounts are the binds of the files in /etc that the engine keeps for a container.
func (e *Engine) etcMounts(r CreateRequest) []Mount {
	var mounts []Mount
	for name, content := range e.etcFiles(r) {
		if content != nil {
			mounts = append(mounts, Mount{Type: "bind", Source: filepath.Join(e.dir(r.ID), name), Target: path.Join("/etc", name)})
		}
	}
	return mounts
}

func (e *Engine) etcFiles(r CreateRequest) map[string][]byte {
	files := map[string][]byte{"hosts": r.Hosts, "resolv.conf": r.ResolvConf, "hostname": nil}
	if r.Spec.GetUtsMode() != "host" {
		files["hostname"] = []byte(ocispec.Hostname(r.ID, r.Spec) + "\n")
	}
	return files
}

// fileMounts are the read-only binds of secrets and configs.
func (e *Engine) fileMounts(r CreateRequest) []Mount {
	mounts := make([]Mount, 0, len(r.Files))
	for i, f := range r.Files {
		mounts = append(mounts, Mount{
			Type: "bind", Source: filepath.Join(e.filesDir(r.ID), strconv.Itoa(i)), Target: f.Target, ReadOnly: true,
			Owned: true,
		})
	}
	return mounts
}

// writeFiles makes the container's directory with all that is kept there but its configuration.
func (e *Engine) writeFiles(c *container, r CreateRequest) error {
	dir := e.dir(c.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: directory", c.ID)
	}
	for name, content := range e.etcFiles(r) {
		if content == nil {
			continue
		}
		if err := writeOwned(filepath.Join(dir, name), content, 0o644, 0, 0); err != nil {
			return fault.Wrap(diskFault(err), err, "container %s: %s", c.ID, name)
		}
	}
	return e.mountFiles(c, r.Files)
}

// SetHosts replaces a container's /etc/hosts; one that runs sees it at once.
func (e *Engine) SetHosts(id string, content []byte) error {
	if _, err := e.container(id); err != nil {
		return err
	}
	// Written in place: the bind mount holds the file, not its name.
	name := filepath.Join(e.dir(id), "hosts")
	if _, err := os.Stat(name); err != nil {
		return fault.Wrap(fault.NotFound, err, "container %s was made without a hosts file", id)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: hosts", id)
	}
	return nil
}

// SetFiles gives a container that does not run the content of its files again, after a reboot. The targets must be those
// it was created with, in the same order.
func (e *Engine) SetFiles(id string, files []File) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if len(files) != len(c.Files) {
		return fault.New(fault.Invalid, "container %s has %d files, not %d", id, len(c.Files), len(files))
	}
	if c.current() != nil {
		return fault.New(fault.Conflict, "container %s is running", id).WithHint("gantry stop %s", c.Name)
	}
	e.unmountFiles(id)
	return e.mountFiles(c, files)
}

// mountFiles writes the files to a tmpfs of their own. They belong to the container's users: Linux before 6.3 cannot map the
// owners of a tmpfs.
func (e *Engine) mountFiles(c *container, files []File) error {
	if len(files) == 0 {
		return nil
	}
	id, base := c.ID, 0
	if c.FilesOwned {
		base = int(c.IDBase)
	}
	dir := e.filesDir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: directory of secrets", id)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fault.Wrap(fault.Unavailable, err, "container %s: tmpfs for secrets", id)
	}
	for i, f := range files {
		mode := f.Mode.Perm()
		if mode == 0 {
			mode = 0o444
		}
		if err := writeOwned(filepath.Join(dir, strconv.Itoa(i)), f.Content, mode, base+f.UID, base+f.GID); err != nil {
			return fault.Wrap(fault.Unavailable, err, "container %s: file %s", id, f.Target)
		}
	}
	return nil
}

// HasFiles reports whether the content of a container's files, if it has any, still is in memory.
func (e *Engine) HasFiles(id string) (bool, error) {
	c, err := e.container(id)
	if err != nil {
		return false, err
	}
	return e.haveFiles(c), nil
}

// haveFiles says whether the files of a container still are in memory.
func (e *Engine) haveFiles(c *container) bool {
	if len(c.Files) == 0 {
		return true
	}
	_, err := os.Stat(filepath.Join(e.filesDir(c.ID), strconv.Itoa(len(c.Files)-1)))
	return err == nil
}

func (e *Engine) unmountFiles(id string) {
	dir := e.filesDir(id)
	for unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
	_ = os.Remove(dir)
}

func writeOwned(name string, content []byte, mode os.FileMode, uid, gid int) error {
	if err := os.WriteFile(name, content, 0o600); err != nil {
		return err
	}
	if err := os.Chown(name, uid, gid); err != nil {
		return err
	}
	return os.Chmod(name, mode) // after chown, and despite the umask
}

// diskFault is the kind of an error of writing.
func diskFault(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Exhausted
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fault.Unavailable
	}
	return fault.Internal
}
