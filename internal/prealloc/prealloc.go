// Package prealloc takes room on a disk before it is needed, so that what must be written on a full disk can be.
//
// File makes a file of room alone. Ahead lets a file that exists grow: the bytes belong to it, whoever else fills the disk.
// Functions are safe in parallel for different files. File systems that cannot allocate in advance are left alone, without an
// error.
package prealloc

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// File makes a file of a size that nothing has been written to, or none.
func File(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(allocate(f, 0, size), f.Close())
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Ahead allocates all of a file, holes too, and most bytes beyond its end, or at least least. It returns where the part that is
// allocated ends. The file's size stays.
func Ahead(path string, least, most int64) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	for _, beyond := range []int64{most, least} {
		if err = allocate(f, unix.FALLOC_FL_KEEP_SIZE, info.Size()+beyond); err == nil {
			return info.Size() + beyond, nil
		}
	}
	return 0, err
}

func allocate(f *os.File, mode uint32, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), mode, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		default:
			return err
		}
	}
}
