package atomicfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// setSum notes the sum with an open file. A file system without attributes has none.
func setSum(f *os.File, sum string) error {
	err := unix.Fsetxattr(int(f.Fd()), Attribute, []byte(sum), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// getSum returns the sum that was noted, "" if none was.
func getSum(f *os.File) (string, error) {
	var b [128]byte
	n, err := unix.Fgetxattr(int(f.Fd()), Attribute, b[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	return string(b[:max(n, 0)]), err
}
