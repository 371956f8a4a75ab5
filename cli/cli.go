// Package cli is the gantry command: its verbs, its output and its voice.
//
// Run runs one command line and returns the exit code. What a command found goes to Out, what it has to say about its
// work to Err, errors to Err as "gantry: MESSAGE" and "hint: NEXT STEP". The package does no work of its own: it reads
// Compose files and flags, and calls the daemon through package client. doc/cli.md describes verbs and exit codes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/fault"
)

// Exit codes besides those of processes that run, exec, attach and wait pass on.
const (
	exitOK          = 0
	exitFailed      = 1
	exitChanges     = 2
	exitUsage       = 64
	exitRunFailed   = 125
	exitNotRunnable = 126
	exitNotThere    = 127
	exitInterrupted = 130
)

// Options is the surroundings of a command.
type Options struct {
	In, Out, Err *os.File
	// Version and Commit of the program.
	Version, Commit string
}

// Run runs the command line args (without the program's name) and returns the exit code.
func Run(ctx context.Context, args []string, opts Options) int {
	s := &session{in: opts.In, out: opts.Out, err: opts.Err, version: opts.Version, commit: opts.Commit}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(s)
	root.SetArgs(args)
	root.SetIn(opts.In)
	root.SetOut(opts.Out)
	root.SetErr(opts.Err)
	cmd, err := root.ExecuteContextC(ctx)
	s.close()
	return s.report(cmd, err)
}

// exit is an error that ends the program with a code; without a cause nothing is printed.
type exit struct {
	code  int
	cause error
}

func (e *exit) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

func (e *exit) Unwrap() error { return e.cause }

// usage is a command line that is wrong.
func usage(cmd *cobra.Command, format string, args ...any) error {
	err := fault.New(fault.Invalid, format, args...).WithHint("%s --help", cmd.CommandPath())
	return &exit{code: exitUsage, cause: err}
}

// report prints err and finds the exit code.
func (s *session) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitOK
	}
	code := exitFailed
	if e, ok := errors.AsType[*exit](err); ok {
		code, err = e.code, e.cause
	} else if fault.Is(err, fault.Canceled) || errors.Is(err, context.Canceled) {
		code = exitInterrupted
	}
	if code == exitUsage && cmd.Annotations[annotationProcess] != "" {
		code = exitRunFailed
	}
	if err == nil {
		return code
	}
	if code == exitInterrupted && strings.HasSuffix(err.Error(), context.Canceled.Error()) {
		err = fault.New(fault.Canceled, "interrupted")
	}
	s.complain(err)
	return code
}

// complain prints an error with its hint.
func (s *session) complain(err error) {
	message := strings.ReplaceAll(strings.TrimSpace(printable.Text(err.Error())), "\n", "\n  ")
	fmt.Fprintf(s.err, "gantry: %s\n", message)
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintf(s.err, "hint: %s\n", printable.Line(hint))
	}
}

// annotationProcess marks commands whose exit codes below 125 belong to a process.
const annotationProcess = "process"

const groupApp, groupOne, groupKeep, groupHost = "app", "one", "keep", "host"

// newRoot builds the tree of verbs: the list of everything the command can do.
func newRoot(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:               "gantry",
		Short:             "Build, run and operate services from Compose files",
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE:              needVerb,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%s", err) })
	s.globalFlags(root)
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
	add(groupApp, s.upCommand(), s.planCommand(), s.downCommand(), s.psCommand(), s.logsCommand(), s.scaleCommand(),
		s.rollbackCommand(), s.buildCommand(), s.releaseCommand(), s.eventsCommand())
	add(groupOne, s.runCommand(), s.execCommand(), s.attachCommand(), s.stopCommand(), s.startCommand(),
		s.restartCommand(), s.killCommand(), s.rmCommand(), s.pauseCommand(), s.unpauseCommand(), s.cpCommand(),
		s.diffCommand(), s.inspectCommand(), s.statsCommand(), s.topCommand(), s.waitCommand(), s.portCommand())
	add(groupKeep, s.imageCommand(), s.volumeCommand(), s.networkCommand(), s.secretCommand(), s.configCommand())
	add(groupHost, s.systemCommand(), s.initCommand(), s.versionCommand(), s.completionCommand())
	root.SetHelpCommandGroupID(groupHost)
	return root
}

// needVerb is what a command that only holds others runs.
func needVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err := fault.New(fault.Invalid, "there is no command %q", cmd.CommandPath()+" "+args[0])
		return &exit{code: exitUsage, cause: err.WithHint("%s %s", cmd.CommandPath(), near[0])}
	}
	return usage(cmd, "there is no command %q", cmd.CommandPath()+" "+args[0])
}

// group makes a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: needVerb, SuggestionsMinimumDistance: 2}
	c.AddCommand(commands...)
	return c
}

// between checks the number of arguments; a negative most means any number.
func between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		form := strings.TrimSuffix(strings.TrimPrefix(cmd.UseLine(), cmd.Root().Name()+" "), " [flags]")
		if len(args) < least {
			return usage(cmd, "%s needs more: gantry %s", cmd.CommandPath(), form)
		}
		if most >= 0 && len(args) > most {
			return usage(cmd, "%s does not take %q: gantry %s", cmd.CommandPath(), args[most], form)
		}
		return nil
	}
}
