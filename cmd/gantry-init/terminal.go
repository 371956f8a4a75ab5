package main

import (
	"syscall"
	"unsafe"
)

// hasForeground says whether standard input is a terminal, by asking for its foreground process group.
func hasForeground() bool {
	var group int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&group)))
	return errno == 0
}
