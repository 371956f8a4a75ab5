package verb

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/outline"
	"github.com/gantryd/gantry/cli/overssh"
	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// Session is one run of the program: its streams, its global flags and its connection.
type Session struct {
	In, Out, Err    *os.File
	Version, Commit string
	// Context ends when the user interrupts the program.
	Context context.Context

	Host        string
	Environment string
	Output      string // "json" or "table", once OutputFlag's command runs
	Plain       bool
	Compose     ComposeFlags

	conn   *client.Client
	hangUp func() // ends the way to a host over ssh
}

func (s *Session) GlobalFlags(root *cobra.Command) {
	fs := root.PersistentFlags()
	fs.StringVarP(&s.Host, "host", "H", EnvOr("GANTRY_HOST", client.DefaultHost), "where gantryd listens: unix:///PATH, ssh://USER@HOST or tcp://HOST:PORT")
	fs.StringVar(&s.Environment, "environment", EnvOr("GANTRY_ENV", "production"), "environment to work in")
	// run and exec have a flag of their own by this name, Docker's.
	fs.StringVar(&s.Environment, "env", s.Environment, "short for --environment, but on run and exec")
	fs.BoolVar(&s.Plain, "plain", os.Getenv("NO_COLOR") != "" && os.Getenv("TERM") == "dumb", "print plain lines on a terminal too")
}

func EnvOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// Client connects at the first use.
func (s *Session) Client() (*client.Client, error) {
	if s.conn != nil {
		return s.conn, nil
	}
	host := s.Host
	if strings.HasPrefix(host, "ssh://") {
		there, socket, err := overssh.ParseSocket(host, strings.TrimPrefix(client.DefaultHost, "unix://"))
		if err != nil {
			return nil, err
		}
		local, stop, err := there.Forward(s.Context, socket)
		if err != nil {
			return nil, err
		}
		host, s.hangUp = "unix://"+local, stop
	}
	c, err := client.New(client.Options{Host: host})
	s.conn = c
	return c, err
}

func (s *Session) Close() {
	if s.conn != nil {
		s.conn.Close()
	}
	if s.hangUp != nil {
		s.hangUp()
	}
}

// Say prints a line about the work done.
func (s *Session) Say(format string, args ...any) {
	fmt.Fprintln(s.Err, printable.Line(fmt.Sprintf(format, args...)))
}

// Apart is say after whatever output stands there without an end of line.
func (s *Session) Apart(format string, args ...any) {
	fmt.Fprintln(s.Err)
	s.Say(format, args...)
}

// Warn prints a line that deserves attention.
func (s *Session) Warn(format string, args ...any) {
	fmt.Fprintln(s.Err, s.Style().Paint(terminal.Yellow, "warning:"), printable.Line(fmt.Sprintf(format, args...)))
}

// Put prints a line of what was asked for.
func (s *Session) Put(format string, args ...any) {
	fmt.Fprintln(s.Out, printable.Line(fmt.Sprintf(format, args...)))
}

// Style colours what goes to Err.
func (s *Session) Style() terminal.Style {
	return terminal.Style{On: s.Dialogue() && os.Getenv("NO_COLOR") == ""}
}

// Dialogue says whether Err is a terminal that may be drawn on.
func (s *Session) Dialogue() bool {
	return !s.Plain && os.Getenv("TERM") != "dumb" && terminal.Is(s.Err)
}

// Live makes a live area on Err, nil if it is no terminal.
func (s *Session) Live() *terminal.Live {
	if !s.Dialogue() {
		return nil
	}
	return terminal.NewLive(s.Err)
}

// OutputFlag adds --output to a command that lists or inspects.
func (s *Session) OutputFlag(cmd *cobra.Command, normal string) *cobra.Command {
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", normal, "json or table")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.Output = output
		if s.Output != "json" && s.Output != "table" {
			return Usage(cmd, "output %q is neither json nor table", s.Output)
		}
		return run(cmd, args)
	}
	return cmd
}

// List prints messages as a JSON array, or calls table.
func List[M proto.Message](s *Session, messages []M, table func() error) error {
	if s.Output != "json" {
		return table()
	}
	var b strings.Builder
	b.WriteString("[")
	for i, m := range messages {
		if i > 0 {
			b.WriteString(",")
		}
		text, err := JSONOf(m)
		if err != nil {
			return err
		}
		b.WriteString("\n  " + strings.ReplaceAll(text, "\n", "\n  "))
	}
	if len(messages) > 0 {
		b.WriteString("\n")
	}
	_, err := fmt.Fprintln(s.Out, b.String()+"]")
	return err
}

// Decoded gives a message as plain JSON values, with exact numbers.
func Decoded(m proto.Message) (map[string]any, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the answer has no JSON form")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the answer has no JSON form")
	}
	return v, nil
}

// JSONOf gives a message in the form of the API's own JSON, indented the same way each time.
func JSONOf(m proto.Message) (string, error) {
	v, err := Decoded(m)
	if err != nil {
		return "", err
	}
	return JSONText(v)
}

func JSONText(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return "", fault.Wrap(fault.Internal, err, "the answer has no JSON form")
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// One prints a single message: JSON or an outline.
func One(s *Session, m proto.Message) error {
	v, err := Decoded(m)
	if err != nil {
		return err
	}
	if s.Output != "json" {
		outline.Write(s.Out, v, "")
		return nil
	}
	text, err := JSONText(v)
	if err == nil {
		_, err = fmt.Fprintln(s.Out, text)
	}
	return err
}

// Inspect prints messages as JSON, or as indented "name: value" lines.
func Inspect[M proto.Message](s *Session, messages []M) error {
	return List(s, messages, func() error {
		for i, m := range messages {
			if i > 0 {
				fmt.Fprintln(s.Out)
			}
			v, err := Decoded(m)
			if err != nil {
				return err
			}
			outline.Write(s.Out, v, "")
		}
		return nil
	})
}

// Target names an instance to the daemon.
func (s *Session) Target(app, name string) *gantryv1.InstanceTarget {
	return &gantryv1.InstanceTarget{Environment: s.Environment, App: app, Target: name}
}

// OneLine prints a message of a stream as JSON on one line.
func OneLine(s *Session, m proto.Message) error {
	v, err := Decoded(m)
	if err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintln(s.Out, string(text))
	}
	return err
}

// Confirm asks before what cannot be undone; where nobody can answer it must be forced.
func (s *Session) Confirm(force bool, what string) error {
	if force {
		return nil
	}
	if !terminal.Is(s.In) {
		return fault.New(fault.Denied, "this removes %s, and nobody is there to confirm it", what).WithHint("add --force")
	}
	fmt.Fprintf(s.Err, "This removes %s. Go on? [y/N] ", what)
	var answer string
	_, _ = fmt.Fscanln(s.In, &answer)
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return fault.New(fault.Canceled, "nothing was removed")
	}
	return nil
}

// InEnv leaves the environment out of a key.
func (s *Session) InEnv(key string) string { return strings.TrimPrefix(key, s.Environment+"/") }
