// Package verb is what every verb of the command line shares: its session (streams, global flags, the connection), the form
// of its output, its errors and its exit codes.
//
// A verb is a function that takes a Session and returns a cobra command. It is used by one goroutine. The package knows no
// verb.
package verb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/cli/instead"
	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/fault"
)

// Exit codes besides those of processes that run, exec, attach and wait pass on.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitChanges     = 2
	ExitUsage       = 64
	ExitRunFailed   = 125
	ExitNotRunnable = 126
	ExitNotThere    = 127
	ExitInterrupted = 130
)

// AnnotationProcess marks commands whose exit codes below 125 belong to a process.
const AnnotationProcess = "process"

// Exit is an error that ends the program with a code; without a cause nothing is printed.
type Exit struct {
	Code  int
	Cause error
}

// Error implements error.
func (e *Exit) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Cause.Error()
}

// Unwrap gives the cause.
func (e *Exit) Unwrap() error { return e.Cause }

// Usage is a command line that is wrong.
func Usage(cmd *cobra.Command, format string, args ...any) error {
	err := fault.New(fault.Invalid, format, args...).WithHint("%s --help", cmd.CommandPath())
	return &Exit{Code: ExitUsage, Cause: err}
}

// Report prints err and finds the exit code.
func (s *Session) Report(cmd *cobra.Command, err error) int {
	if err == nil {
		return ExitOK
	}
	code := ExitFailed
	if e, ok := errors.AsType[*Exit](err); ok {
		code, err = e.Code, e.Cause
	} else if fault.Is(err, fault.Canceled) || errors.Is(err, context.Canceled) {
		code = ExitInterrupted
	}
	if code == ExitUsage && cmd.Annotations[AnnotationProcess] != "" {
		code = ExitRunFailed
	}
	if err == nil {
		return code
	}
	if code == ExitInterrupted && strings.HasSuffix(err.Error(), context.Canceled.Error()) {
		err = fault.New(fault.Canceled, "interrupted")
	}
	s.Complain(err)
	return code
}

// Complain prints an error with its hint.
func (s *Session) Complain(err error) {
	message := strings.ReplaceAll(strings.TrimSpace(printable.Text(err.Error())), "\n", "\n  ")
	fmt.Fprintf(s.Err, "gantry: %s\n", message)
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintf(s.Err, "hint: %s\n", printable.Line(hint))
	}
}

// NeedVerb is what a command that only holds others runs.
func NeedVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return NoCommand(cmd, args)
}

// NoCommand is a verb that there is not.
func NoCommand(cmd *cobra.Command, args []string) error {
	err := fault.New(fault.Invalid, "there is no command %q", cmd.CommandPath()+" "+args[0])
	words := append(strings.Fields(cmd.CommandPath())[1:], args...)
	if hint, ok := instead.Command(words); ok {
		return &Exit{Code: ExitUsage, Cause: err.WithHint("%s", hint)}
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return &Exit{Code: ExitUsage, Cause: err.WithHint("%s %s", cmd.CommandPath(), near[0])}
	}
	return &Exit{Code: ExitUsage, Cause: err.WithHint("%s --help", cmd.CommandPath())}
}

// FlagError is a flag that there is not, or that cannot be read.
func FlagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return Usage(cmd, "%s", err)
	}
	name := "--" + unknown.GetSpecifiedName()
	if unknown.GetSpecifiedShortnames() != "" {
		name = "-" + unknown.GetSpecifiedName()
	}
	// A verb that only holds others takes no flags: what was typed before is the mistake.
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return NoCommand(cmd, args)
	}
	if hint, ok := instead.Flag(cmd.CommandPath(), name); ok {
		cause := fault.New(fault.Invalid, "%s has no flag %s", cmd.CommandPath(), name).WithHint("%s", hint)
		return &Exit{Code: ExitUsage, Cause: cause}
	}
	return Usage(cmd, "%s", err)
}

// Group makes a command that only holds others.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: NeedVerb, SuggestionsMinimumDistance: 2}
	c.AddCommand(commands...)
	return c
}

// Between checks the number of arguments; a negative most means any number.
func Between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		form := strings.TrimSuffix(strings.TrimPrefix(cmd.UseLine(), cmd.Root().Name()+" "), " [flags]")
		if len(args) < least {
			return Usage(cmd, "%s needs more: gantry %s", cmd.CommandPath(), form)
		}
		if most >= 0 && len(args) > most {
			return Usage(cmd, "%s does not take %q: gantry %s", cmd.CommandPath(), args[most], form)
		}
		return nil
	}
}

// ForEach acts on every target even if one fails, prints the names of those that worked, and joins the failures.
func (s *Session) ForEach(names []string, act func(name string) error) error {
	var failed []error
	for _, name := range names {
		if err := act(name); err != nil {
			failed = append(failed, err)
			continue
		}
		s.Put("%s", name)
	}
	return s.Join(failed)
}

// Join reports all errors but the last, which it returns.
func (s *Session) Join(failed []error) error {
	if len(failed) == 0 {
		return nil
	}
	last := len(failed) - 1
	for _, err := range failed[:last] {
		s.Complain(err)
	}
	return failed[last]
}

// Gather reads what each name stands for; failures are joined.
func Gather[M any](s *Session, names []string, read func(string) (M, error)) ([]M, error) {
	var found []M
	var failed []error
	for _, name := range names {
		m, err := read(name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		found = append(found, m)
	}
	return found, s.Join(failed)
}
