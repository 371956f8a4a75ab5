// Command gantry-init is the first process of a container that asks for init: it starts the container's command, hands
// signals on to it, and reaps what else ends, so that no zombies gather. runc calls it: gantry-init -- COMMAND…
// For gantryd it also makes user namespaces; see namespaces.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

const usage = 125 // exit code for a wrong call, as Docker's for its own faults

func main() {
	if len(os.Args) > 1 && (os.Args[1] == namespacesVerb || os.Args[1] == probeVerb) {
		helper()
	}
	if len(os.Args) < 3 || os.Args[1] != "--" {
		fmt.Fprintln(os.Stderr, "usage: gantry-init -- COMMAND [ARG…]")
		os.Exit(usage)
	}
	signals := make(chan os.Signal, 128)
	signal.Notify(signals)
	pid, err := start(os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "gantry-init:", err)
		os.Exit(exitCode(err))
	}
	for s := range signals {
		sig, ok := s.(syscall.Signal)
		switch {
		case !ok || sig == syscall.SIGURG: // SIGURG is the Go scheduler's own
		case sig == syscall.SIGCHLD:
			reap(pid)
		default:
			_ = syscall.Kill(pid, sig) // it may have ended: SIGCHLD is on its way
		}
	}
}

// helper is the program as gantryd calls it.
func helper() {
	err := error(nil)
	if os.Args[1] == probeVerb {
		err = probeInside()
	} else {
		err = namespaces(os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// start runs the command in a process group of its own that owns the terminal, if there is one.
func start(argv []string) (int, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, err
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if isTerminal() {
		attr.Sys.Foreground, attr.Sys.Ctty = true, 0
	}
	return syscall.ForkExec(path, argv, attr)
}

func isTerminal() bool {
	st, err := os.Stdin.Stat()
	return err == nil && st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice|os.ModeCharDevice && hasForeground()
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return 127
	case errors.Is(err, os.ErrPermission):
		return 126
	}
	return usage
}
