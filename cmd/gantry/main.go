// Command gantry is the command line of Gantry. Package cli has its verbs; doc/cli.md describes them.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/gantryd/gantry/cli"
)

// version is set by the build.
var version = "dev"

func main() {
	// A command ends before a collection would pay.
	debug.SetGCPercent(400)
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Options{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: version, Commit: commit(),
	}))
}

// commit is what the build noted of the source.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
