package pool

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const loopAttempts = 16 // another process can take the free device first

// mountLoop mounts an image file. The device goes with the mount (autoclear).
func mountLoop(image, dir string) error {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer backing.Close()
	loop, err := attach(backing)
	if err != nil {
		return err
	}
	defer loop.Close() // the mount holds the device from then on
	err = unix.Mount(loop.Name(), dir, "btrfs", unix.MS_NOATIME, "discard=async")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount(loop.Name(), dir, "btrfs", unix.MS_NOATIME, "") // kernels before 5.6
	}
	return err
}

func attach(backing *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range loopAttempts {
		var loop *os.File
		if loop, err = attachFree(control, backing); err == nil || !errors.Is(err, unix.EBUSY) {
			return loop, err
		}
	}
	return nil, err
}

func attachFree(control, backing *os.File) (*os.File, error) {
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, err
	}
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
		Fd:   uint32(backing.Fd()),
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
	})
	if err != nil {
		_ = loop.Close()
		return nil, err
	}
	return loop, nil
}
