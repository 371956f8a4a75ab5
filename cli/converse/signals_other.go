//go:build !unix

package converse

import (
	"os"
	"syscall"
)

// forwarded are the signals that a client passes on to the process it is attached to.
func forwarded() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// resized never comes here: consoles of this system do not tell.
func resized() os.Signal { return syscall.SIGHUP }

func signalName(sig os.Signal) string {
	if sig == syscall.SIGTERM {
		return "SIGTERM"
	}
	return "SIGINT"
}
