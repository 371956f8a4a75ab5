//go:build unix

package hostinit

import (
	"os/exec"
	"syscall"
)

// detach puts the program into a session of its own, so that closing the terminal does not end it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
