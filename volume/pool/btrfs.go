package pool

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of <linux/btrfs.h>. The known Go library for them needs cgo, which Gantry does without.
const (
	iocSubvolCreate = 0x5000940e // _IOW(0x94, 14, btrfs_ioctl_vol_args)
	iocSnapDestroy  = 0x5000940f // _IOW(0x94, 15, btrfs_ioctl_vol_args)
	iocInoLookup    = 0xd0009412 // _IOWR(0x94, 18, btrfs_ioctl_ino_lookup_args)
	iocSnapCreateV2 = 0x50009417 // _IOW(0x94, 23, btrfs_ioctl_vol_args_v2)
	iocQuotaCtl     = 0xc0109428 // _IOWR(0x94, 40, btrfs_ioctl_quota_ctl_args)
	iocQgroupLimit  = 0x8030942b // _IOR(0x94, 43, btrfs_ioctl_qgroup_limit_args)

	snapReadOnly      = 1 << 1
	quotaEnable       = 1
	quotaEnableSimple = 4 // since Linux 6.7; counts without the cost of back references
	limitReferenced   = 1 << 0

	firstFreeObject = 256 // inode of a subvolume's root
	argsSize        = 4096
)

// volArgs is btrfs_ioctl_vol_args: s64 fd, char name[4088].
func volArgs(fd int64, name string) ([]byte, error) {
	return nameAt(8, fd, name)
}

// volArgsV2 is btrfs_ioctl_vol_args_v2: s64 fd, u64 transid, u64 flags, u64 unused[4], char name[4040].
func volArgsV2(fd int64, flags uint64, name string) ([]byte, error) {
	b, err := nameAt(8+8+8+32, fd, name)
	if err == nil {
		binary.NativeEndian.PutUint64(b[16:], flags)
	}
	return b, err
}

func nameAt(offset int, fd int64, name string) ([]byte, error) {
	if len(name) > 255 || name == "" || filepath.Base(name) != name {
		return nil, unix.EINVAL
	}
	b := make([]byte, argsSize)
	binary.NativeEndian.PutUint64(b, uint64(fd))
	copy(b[offset:], name)
	return b, nil
}

// ioctl opens dir and runs one request on it.
func ioctl(dir string, request uint, arg []byte) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&arg[0])))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return &os.PathError{Op: "btrfs ioctl", Path: dir, Err: errno}
	}
	return nil
}

func isBtrfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BTRFS_SUPER_MAGIC
}

func isSubvolume(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Ino == firstFreeObject && isBtrfs(path)
}

func createSubvolume(dir, name string) error {
	arg, err := volArgs(0, name)
	if err != nil {
		return err
	}
	return ioctl(dir, iocSubvolCreate, arg)
}

func destroySubvolume(dir, name string) error {
	arg, err := volArgs(0, name)
	if err != nil {
		return err
	}
	return ioctl(dir, iocSnapDestroy, arg)
}

func snapshotSubvolume(from, dir, name string, readOnly bool) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	var flags uint64
	if readOnly {
		flags = snapReadOnly
	}
	arg, err := volArgsV2(int64(src.Fd()), flags, name)
	if err != nil {
		return err
	}
	return ioctl(dir, iocSnapCreateV2, arg)
}

// limitSubvolume switches quotas on, in the cheapest form that the kernel has, and limits one subvolume.
func limitSubvolume(path string, limit int64) error {
	quota := make([]byte, 16)
	binary.NativeEndian.PutUint64(quota, quotaEnableSimple)
	if err := ioctl(path, iocQuotaCtl, quota); err != nil && !errors.Is(err, unix.EEXIST) {
		binary.NativeEndian.PutUint64(quota, quotaEnable)
		if err := ioctl(path, iocQuotaCtl, quota); err != nil {
			return err
		}
	}
	lookup := make([]byte, argsSize)
	binary.NativeEndian.PutUint64(lookup[8:], firstFreeObject)
	if err := ioctl(path, iocInoLookup, lookup); err != nil {
		return err
	}
	arg := make([]byte, 48) // u64 qgroupid, u64 flags, u64 max_rfer, max_excl, rsv_rfer, rsv_excl
	copy(arg, lookup[:8])   // the subvolume's tree is its group
	binary.NativeEndian.PutUint64(arg[8:], limitReferenced)
	binary.NativeEndian.PutUint64(arg[16:], uint64(limit))
	return ioctl(path, iocQgroupLimit, arg)
}
