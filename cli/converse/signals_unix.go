//go:build unix

package converse

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that a client passes on to the process it is attached to.
func forwarded() []os.Signal {
	return []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT}
}

// resized tells that the terminal has another size.
func resized() os.Signal { return syscall.SIGWINCH }

func signalName(sig os.Signal) string {
	if n, ok := sig.(syscall.Signal); ok {
		return unix.SignalName(n)
	}
	return ""
}
