// Package overssh runs commands on another machine with the ssh program of this one, so that its keys, agents, known hosts
// and configuration hold.
//
// Parse reads where the machine is, Run runs a command there. A Host is safe in parallel. The package knows no protocol and
// keeps no connection: each Run is one.
package overssh

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"os/exec"
	"strings"

	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/fault"
)

// Host is a machine that ssh reaches.
type Host struct{ User, Name, Port string }

// Parse reads ssh://[USER@]NAME[:PORT].
func Parse(text string) (Host, error) {
	bad := fault.New(fault.Invalid, "%q is not ssh://USER@HOST", text).WithHint("for example ssh://root@192.0.2.7 or ssh://ann@host:2222")
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "ssh" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return Host{}, bad
	}
	if _, ok := u.User.Password(); ok {
		return Host{}, fault.New(fault.Invalid, "a password has no place in an address").WithHint("ssh asks for it, or use a key: ssh-copy-id")
	}
	h := Host{User: u.User.Username(), Name: u.Hostname(), Port: u.Port()}
	for _, s := range []string{h.User, h.Name} {
		// ssh would take it for an option, or a shell for more than a word.
		if strings.HasPrefix(s, "-") || strings.ContainsAny(s, " \t\n'\"\\$`;&|<>()@") {
			return Host{}, bad
		}
	}
	return h, nil
}

// String is the machine as ssh takes it.
func (h Host) String() string {
	if h.User == "" {
		return h.Name
	}
	return h.User + "@" + h.Name
}

func (h Host) args(command string) []string {
	args := []string{"-T"}
	if h.Port != "" {
		args = append(args, "-p", h.Port)
	}
	return append(args, h.String(), command)
}

// byHand is the command that shows a person what is wrong.
func (h Host) byHand() string {
	if h.Port != "" {
		return "ssh -p " + h.Port + " " + h.String()
	}
	return "ssh " + h.String()
}

// exitUnreached is ssh's own exit code when it has run nothing.
const exitUnreached = 255

// Run runs a command of the user's shell there and returns what it has printed. What it says on standard error goes to say,
// line by line, as it comes; if that is nil, the last of it is in the error.
func (h Host) Run(ctx context.Context, command string, in io.Reader, say func(line string)) ([]byte, error) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return nil, fault.New(fault.NotFound, "the program ssh is not there").WithHint("install it: apt-get install openssh-client")
	}
	cmd := exec.CommandContext(ctx, ssh, h.args(command)...)
	var out bytes.Buffer
	said := &lines{say: say}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, said
	err = cmd.Run()
	said.end()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &exit) && exit.ExitCode() == exitUnreached:
		return nil, fault.New(fault.Unavailable, "ssh does not reach %s: %s", h, said.last).WithHint("this has to work first: %s", h.byHand())
	case errors.As(err, &exit) && say != nil:
		return nil, fault.New(fault.Internal, "a command on %s failed: %s", h, exit).WithHint("look there: %s", h.byHand())
	case errors.As(err, &exit):
		return nil, fault.New(fault.Internal, "a command on %s failed: %s: %s", h, exit, said.last).WithHint("look there: %s", h.byHand())
	}
	return nil, fault.Wrap(fault.Internal, err, "ssh cannot be run")
}

// lines passes on whole lines, with what could change a terminal escaped.
type lines struct {
	say  func(string)
	part []byte
	last string
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.part = append(l.part, p...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.part = rest
		l.tell(line)
	}
}

func (l *lines) end() {
	l.tell(l.part)
	l.part = nil
}

func (l *lines) tell(line []byte) {
	text := printable.Line(strings.TrimSpace(string(line)))
	if text == "" {
		return
	}
	l.last = text
	if l.say != nil {
		l.say(text)
	}
}

// Quote makes one word of a text for a POSIX shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
