package kernelcheck

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// scratchFolder is on the file system of root. Those that killed daemons have left there go: what they had mounted is gone.
func scratchFolder(root string) (dir string, remove func(), err error) {
	left, _ := filepath.Glob(filepath.Join(root, ".kernelcheck-*"))
	for _, dir := range left {
		_ = os.RemoveAll(dir)
	}
	dir, err = os.MkdirTemp(root, ".kernelcheck-")
	if err != nil {
		return "", nil, fault.Wrap(fault.Unavailable, err, "nothing can be written below %s", root).
			WithHint("choose a folder on a disk that is writable and not full: gantryd --root")
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

func folders(dir string, names ...string) error {
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// overlayOn mounts an overlay in dir over the folder lower, with what it writes on the daemon's own file system.
func overlayOn(dir, lower string) (unmount func(), err error) {
	if err := folders(dir, "upper", "work", "merged"); err != nil {
		return nil, err
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", filesystemOf(dir), err)
	}
	return func() { _ = unix.Unmount(merged, unix.MNT_DETACH) }, nil
}

// overlay deletes a file of the lower folder through the mount, which needs whiteouts.
func overlay(scratch string) (string, error) {
	dir := filepath.Join(scratch, "overlay")
	if err := folders(dir, "lower/gone"); err != nil {
		return "", err
	}
	unmount, err := overlayOn(dir, filepath.Join(dir, "lower"))
	if err != nil {
		return "", err
	}
	defer unmount()
	if err := os.Remove(filepath.Join(dir, "merged/gone")); err != nil {
		return "", fmt.Errorf("whiteouts: %w", err)
	}
	return "on " + filesystemOf(dir), nil
}

// idmapped puts an overlay over a folder of root's whose owner is mapped, and looks whose it is.
func idmapped(scratch string) (string, error) {
	dir := filepath.Join(scratch, "idmapped")
	if err := folders(dir, "lower/owned", "mapped"); err != nil {
		return "", err
	}
	mapped := filepath.Join(dir, "mapped")
	err := withUserNamespace(func(ns *os.File) error { return mountMapped(filepath.Join(dir, "lower"), mapped, ns) })
	if err != nil {
		return "", fmt.Errorf("on %s: %w", filesystemOf(dir), err)
	}
	defer func() { _ = unix.Unmount(mapped, unix.MNT_DETACH) }()
	unmount, err := overlayOn(dir, mapped)
	if err != nil {
		return "", err
	}
	defer unmount()
	st, err := os.Stat(filepath.Join(dir, "merged/owned"))
	if err != nil {
		return "", err
	}
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != mappedID {
		return "", fmt.Errorf("the owner is %d in place of %d", uid, mappedID)
	}
	return "on " + filesystemOf(dir), nil
}

func mountMapped(from, to string, ns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func filesystemOf(path string) string {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return "?"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.NFS_SUPER_MAGIC: "NFS", zfsMagic: "ZFS",
	}
	if n := names[int64(st.Type)]; n != "" {
		return n
	}
	return fmt.Sprintf("file system %#x", st.Type)
}

const zfsMagic = 0x2fc12fc1

// btrfs asks for a mount of nothing: a kernel that knows btrfs says something other than that it does not.
func btrfs(scratch string) (string, error) {
	err := unix.Mount("none", scratch, "btrfs", 0, "")
	if errors.Is(err, unix.ENODEV) {
		return "", errors.New("the kernel does not know it (modprobe btrfs)")
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		return "mkfs.btrfs is not installed (apt-get install btrfs-progs)", nil
	}
	return "", nil
}

func apparmor(string) (string, error) {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || strings.TrimSpace(string(b)) != "Y" {
		return "", errors.New("off or not in the kernel")
	}
	return "", nil
}

const (
	kvmGetAPIVersion = 0xae00
	kvmAPIVersion    = 12
)

func kvm(string) (string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err == nil && v != kvmAPIVersion {
		err = fmt.Errorf("interface version %d, not %d", v, kvmAPIVersion)
	}
	return "", err
}
