package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/outline"
	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// session is one run of the program: its streams, its global flags and its connection.
type session struct {
	in, out, err    *os.File
	version, commit string

	host        string
	environment string
	output      string
	plain       bool
	compose     composeFlags

	conn *client.Client
}

func (s *session) globalFlags(root *cobra.Command) {
	fs := root.PersistentFlags()
	fs.StringVarP(&s.host, "host", "H", envOr("GANTRY_HOST", client.DefaultHost), "where gantryd listens: unix:///PATH or tcp://HOST:PORT")
	fs.StringVar(&s.environment, "environment", envOr("GANTRY_ENV", "production"), "environment to work in")
	// run and exec have a flag of their own by this name, Docker's.
	fs.StringVar(&s.environment, "env", s.environment, "short for --environment, but on run and exec")
	fs.BoolVar(&s.plain, "plain", os.Getenv("NO_COLOR") != "" && os.Getenv("TERM") == "dumb", "print plain lines on a terminal too")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// client connects at the first use.
func (s *session) client() (*client.Client, error) {
	if s.conn != nil {
		return s.conn, nil
	}
	c, err := client.New(client.Options{Host: s.host})
	s.conn = c
	return c, err
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close()
	}
}

// say prints a line about the work done.
func (s *session) say(format string, args ...any) {
	fmt.Fprintln(s.err, printable.Line(fmt.Sprintf(format, args...)))
}

// apart is say after whatever output stands there without an end of line.
func (s *session) apart(format string, args ...any) {
	fmt.Fprintln(s.err)
	s.say(format, args...)
}

// warn prints a line that deserves attention.
func (s *session) warn(format string, args ...any) {
	fmt.Fprintln(s.err, s.style().Paint(terminal.Yellow, "warning:"), printable.Line(fmt.Sprintf(format, args...)))
}

// put prints a line of what was asked for.
func (s *session) put(format string, args ...any) {
	fmt.Fprintln(s.out, printable.Line(fmt.Sprintf(format, args...)))
}

// style colours what goes to Err.
func (s *session) style() terminal.Style {
	return terminal.Style{On: s.dialogue() && os.Getenv("NO_COLOR") == ""}
}

// dialogue says whether Err is a terminal that may be drawn on.
func (s *session) dialogue() bool {
	return !s.plain && os.Getenv("TERM") != "dumb" && terminal.Is(s.err)
}

// live makes a live area on Err, nil if it is no terminal.
func (s *session) live() *terminal.Live {
	if !s.dialogue() {
		return nil
	}
	return terminal.NewLive(s.err)
}

// outputFlag adds --output to a command that lists or inspects.
func (s *session) outputFlag(cmd *cobra.Command, normal string) *cobra.Command {
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", normal, "json or table")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.output = output
		if s.output != "json" && s.output != "table" {
			return usage(cmd, "output %q is neither json nor table", s.output)
		}
		return run(cmd, args)
	}
	return cmd
}

// list prints messages as a JSON array, or calls table.
func list[M proto.Message](s *session, messages []M, table func() error) error {
	if s.output != "json" {
		return table()
	}
	var b strings.Builder
	b.WriteString("[")
	for i, m := range messages {
		if i > 0 {
			b.WriteString(",")
		}
		text, err := jsonOf(m)
		if err != nil {
			return err
		}
		b.WriteString("\n  " + strings.ReplaceAll(text, "\n", "\n  "))
	}
	if len(messages) > 0 {
		b.WriteString("\n")
	}
	_, err := fmt.Fprintln(s.out, b.String()+"]")
	return err
}

// decoded gives a message as plain JSON values, with exact numbers.
func decoded(m proto.Message) (map[string]any, error) {
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

// jsonOf gives a message in the form of the API's own JSON, indented the same way each time.
func jsonOf(m proto.Message) (string, error) {
	v, err := decoded(m)
	if err != nil {
		return "", err
	}
	return jsonText(v)
}

func jsonText(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return "", fault.Wrap(fault.Internal, err, "the answer has no JSON form")
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// one prints a single message: JSON or an outline.
func one(s *session, m proto.Message) error {
	v, err := decoded(m)
	if err != nil {
		return err
	}
	if s.output != "json" {
		outline.Write(s.out, v, "")
		return nil
	}
	text, err := jsonText(v)
	if err == nil {
		_, err = fmt.Fprintln(s.out, text)
	}
	return err
}

// inspect prints messages as JSON, or as indented "name: value" lines.
func inspect[M proto.Message](s *session, messages []M) error {
	return list(s, messages, func() error {
		for i, m := range messages {
			if i > 0 {
				fmt.Fprintln(s.out)
			}
			v, err := decoded(m)
			if err != nil {
				return err
			}
			outline.Write(s.out, v, "")
		}
		return nil
	})
}

// target names an instance to the daemon.
func (s *session) target(app, name string) *gantryv1.InstanceTarget {
	return &gantryv1.InstanceTarget{Environment: s.environment, App: app, Target: name}
}

// line formats words of others into one safe line.
func line(format string, args ...any) string { return printable.Line(fmt.Sprintf(format, args...)) }

// oneLine prints a message of a stream as JSON on one line.
func oneLine(s *session, m proto.Message) error {
	v, err := decoded(m)
	if err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintln(s.out, string(text))
	}
	return err
}
