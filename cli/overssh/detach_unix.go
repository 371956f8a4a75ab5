//go:build unix

package overssh

import (
	"os/exec"
	"syscall"
)

// detach keeps the terminal's signals from ssh: Ctrl-C is for the command that uses the way, and would cut it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
