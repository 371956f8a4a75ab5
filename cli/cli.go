// Package cli is the gantry command: its verbs, its output and its voice.
//
// Run runs one command line and returns the exit code. What a command found goes to Out, what it has to say about its
// work to Err, errors to Err as "gantry: MESSAGE" and "hint: NEXT STEP". The package does no work of its own: it reads
// Compose files and flags, and calls the daemon through package client. doc/cli.md describes verbs and exit codes.
package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/cli/explain"
	"github.com/gantryd/gantry/cli/host"
	"github.com/gantryd/gantry/cli/images"
	"github.com/gantryd/gantry/cli/kept"
	"github.com/gantryd/gantry/cli/machines"
	"github.com/gantryd/gantry/cli/rollout"
	"github.com/gantryd/gantry/cli/verb"
)

// Options is the surroundings of a command.
type Options struct {
	In, Out, Err *os.File
	// Version and Commit of the program.
	Version, Commit string
}

// Run runs the command line args (without the program's name) and returns the exit code.
func Run(ctx context.Context, args []string, opts Options) int {
	s := &session{&verb.Session{In: opts.In, Out: opts.Out, Err: opts.Err, Version: opts.Version, Commit: opts.Commit}}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	s.Context = ctx
	root := newRoot(s)
	root.SetArgs(args)
	root.SetIn(opts.In)
	root.SetOut(opts.Out)
	root.SetErr(opts.Err)
	cmd, err := root.ExecuteContextC(ctx)
	s.Close()
	return s.Report(cmd, err)
}

const groupApp, groupOne, groupKeep, groupHost = "app", "one", "keep", "host"

// session gives the verbs of this package what all share.
type session struct{ *verb.Session }

// newRoot builds the tree of verbs: the list of everything the command can do.
func newRoot(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:               "gantry",
		Short:             "Build, run and operate services from Compose files",
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE:              verb.NeedVerb,
	}
	root.SetFlagErrorFunc(verb.FlagError)
	s.GlobalFlags(root)
	root.Version = s.Version
	root.AddGroup(
		&cobra.Group{ID: groupApp, Title: "Apps, from the Compose file here or -p NAME:"},
		&cobra.Group{ID: groupOne, Title: "Instances:"},
		&cobra.Group{ID: groupKeep, Title: "What is kept:"},
		&cobra.Group{ID: groupHost, Title: "Gantry itself:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupApp, s.upCommand(), s.planCommand(), s.downCommand(), s.lsCommand(), s.psCommand(), s.logsCommand(), s.scaleCommand(),
		rollout.Command(s.Session), s.rollbackCommand(), explain.Command(s.Session), s.buildCommand(), s.pullCommand(), s.pushCommand(), s.convertCommand(), kept.Release(s.Session), s.eventsCommand())
	add(groupOne, s.runCommand(), s.execCommand(), s.attachCommand(), s.stopCommand(), s.startCommand(),
		s.restartCommand(), s.killCommand(), s.rmCommand(), s.pauseCommand(), s.unpauseCommand(), s.cpCommand(),
		s.diffCommand(), s.inspectCommand(), s.statsCommand(), s.topCommand(), s.waitCommand(), s.portCommand())
	add(groupKeep, images.Command(s.Session), kept.Volume(s.Session), kept.Network(s.Session), kept.Secret(s.Session), kept.Config(s.Session))
	add(groupHost, machines.Node(s.Session), machines.Cluster(s.Session), host.System(s.Session), s.initCommand(), s.joinCommand(), host.Version(s.Session), host.Completion(s.Session))
	root.SetHelpCommandGroupID(groupHost)
	return root
}
