// Command gantryd is Gantry's daemon: the node role of a machine and, on some, the server role of its cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/gantryd/gantry/daemon"
	"github.com/gantryd/gantry/fault"
)

var version, commit = "dev", "" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "gantryd: %v\n", err)
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", hint)
	}
	if errors.Is(err, daemon.ErrAnew) && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "gantryd: %v\n", again())
	}
	os.Exit(exitCode(err))
}

// again starts gantryd anew as the same process, for those who watch it or gave it what it has. It returns only if it cannot;
// then it is for a supervisor to do.
func again() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, os.Environ())
}

// exitCode tells a supervisor whether another start can help: not where something on the disk is damaged, nor where a cluster
// does not admit this machine (EX_CONFIG of sysexits.h, which the unit names).
func exitCode(err error) int {
	var refused daemon.NotAdmittedError
	if fault.Is(err, fault.Corrupt) || errors.As(err, &refused) {
		return 78
	}
	return 1
}
