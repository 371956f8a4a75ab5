package ocispec

import "golang.org/x/sys/unix"

// x32Bit marks the number of a system call of the x32 interface.
const x32Bit = 0x40000000

// hasX32 asks the kernel for the process's number through the x32 interface. A process that is filtered itself may be
// killed for that, and does not ask.
func hasX32() bool {
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || mode != 0 {
		return true
	}
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return errno == 0
}
