// Command gantryd is Gantry's daemon: the node role of a machine and, on some, the server role of its cluster.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/gantryd/gantry/fault"
)

var version, commit = "dev", "" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "gantryd: %v\n", err)
		if hint := fault.HintOf(err); hint != "" {
			fmt.Fprintf(os.Stderr, "hint: %s\n", hint)
		}
		os.Exit(exitCode(err))
	}
}

// exitCode tells a supervisor whether another start can help: not where something on the disk is damaged (EX_CONFIG of
// sysexits.h, which the unit names).
func exitCode(err error) int {
	if fault.Is(err, fault.Corrupt) {
		return 78
	}
	return 1
}
