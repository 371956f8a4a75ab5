// Package ownthread runs code that changes its thread for good: its namespaces, root directory or credentials.
//
// Run is the whole package. It is safe in parallel.
package ownthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run calls do on a thread that nothing else runs on, neither during the call nor after it: the thread ends. It is never the
// first one, which cannot end, and whose namespaces and root /proc/self shows as the whole process's.
func Run(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Another goroutine cannot run on the first thread as long as this one waits here.
			done <- Run(do)
			runtime.UnlockOSThread()
			return
		}
		done <- do()
	}()
	return <-done
}
