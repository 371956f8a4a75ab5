package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/outline"
	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

type logFlags struct {
	follow, timestamps, noColor, noPrefix, raw bool
	tail, since, until                         string
}

func (s *session) logsCommand() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:   "logs [TARGET...]",
		Short: "Print what containers have logged",
		Long: `Print what containers have logged, all of the app's where none is named.

On a terminal colours in logs are shown and all other control characters escaped, so that a log cannot rewrite the
screen; --raw shows them as they are. What goes to a file or a pipe is never changed.`,
		Args: verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error { return s.logs(cmd.Context(), f, args) },
	}
	fs := cmd.Flags()
	s.Compose.Register(fs, "", "p")
	fs.BoolVarP(&f.follow, "follow", "f", false, "go on with what is logged from now on")
	fs.StringVarP(&f.tail, "tail", "n", "all", "last lines of each container")
	fs.StringVar(&f.since, "since", "", "from this time, or this long ago: 10m")
	fs.StringVar(&f.until, "until", "", "up to this time, or this long ago")
	fs.BoolVarP(&f.timestamps, "timestamps", "t", false, "print the time of each line")
	fs.BoolVar(&f.noColor, "no-color", false, "print names without colour")
	fs.BoolVar(&f.noPrefix, "no-log-prefix", false, "print lines without names")
	fs.BoolVar(&f.raw, "raw", false, "escape nothing on a terminal")
	return cmd
}

func (s *session) logs(ctx context.Context, f logFlags, targets []string) error {
	app, err := s.MaybeApp(ctx)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		if app, err = s.App(ctx); err != nil {
			return err
		}
	}
	req := &gantryv1.LogsRequest{Environment: s.Environment, App: app, Targets: targets, Follow: f.follow, Tail: -1}
	if f.tail != "all" {
		if req.Tail, err = strconv.ParseInt(f.tail, 10, 64); err != nil {
			return fault.New(fault.Invalid, "%q is not a number of lines", f.tail).WithHint("use a number, or all")
		}
	}
	for _, v := range []struct {
		to   **timestamppb.Timestamp
		from string
	}{{&req.Since, f.since}, {&req.Until, f.until}} {
		if v.from == "" {
			continue
		}
		t, err := human.ParseTime(v.from, time.Now())
		if err != nil {
			return err
		}
		*v.to = timestamppb.New(t)
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	w := s.newLogWriter(f, targets)
	err = client.Each(ctx, c.Instances.Logs, req, func(e *gantryv1.LogEntry) error {
		if f := e.GetFailure(); f != nil {
			s.Warn("%s is silent: %s", e.GetName(), f.GetMessage())
			return nil
		}
		return w.write(e)
	})
	if f.follow && ctx.Err() != nil {
		// Ctrl-C is how one leaves.
		return &verb.Exit{Code: verb.ExitInterrupted}
	}
	return err
}

// logWriter prints log entries with the names of who wrote them.
type logWriter struct {
	out, err io.Writer
	flags    logFlags
	prefix   bool
	style    terminal.Style
	width    int
	colours  map[string]string
	// Instances in the middle of a line.
	open map[string]bool
	last string
}

func (s *session) newLogWriter(f logFlags, targets []string) *logWriter {
	w := &logWriter{out: s.Out, err: s.Err, flags: f, colours: map[string]string{}, open: map[string]bool{}}
	// One container by its own name: its streams stay apart, as if it ran here.
	single := len(targets) == 1 && (strings.Contains(targets[0], ".") || !strings.Contains(targets[0], "/") && s.Compose.Project == "" && !s.HasFile())
	w.prefix = !f.noPrefix && !single
	if w.prefix {
		w.err = s.Out
	}
	tty := terminal.Is(s.Out)
	w.style = terminal.Style{On: tty && !f.noColor && os.Getenv("NO_COLOR") == ""}
	if tty && !f.raw {
		w.out, w.err = printable.NewFilter(w.out), printable.NewFilter(w.err)
	} else if !f.raw && terminal.Is(s.Err) && !w.prefix {
		w.err = printable.NewFilter(s.Err)
	}
	return w
}

func (w *logWriter) write(e *gantryv1.LogEntry) error {
	to := w.out
	if e.GetStream() == "stderr" {
		to = w.err
	}
	text := string(e.GetLine())
	head := ""
	// The rest of a long line belongs to its beginning.
	if key := e.GetInstance() + e.GetStream(); !w.open[key] || w.last != key {
		if w.last != "" && w.open[w.last] {
			head = "\n"
		}
		head += w.head(e)
		w.last = key
	}
	w.open = map[string]bool{w.last: !strings.HasSuffix(text, "\n")}
	_, err := io.WriteString(to, head+text)
	return err
}

func (w *logWriter) head(e *gantryv1.LogEntry) string {
	head := ""
	if w.prefix {
		name := printable.Line(e.GetName())
		w.width = max(w.width, len(name))
		head = w.style.Paint(w.colour(name), fmt.Sprintf("%-*s |", w.width, name)) + " "
	}
	if w.flags.timestamps {
		head += e.GetTime().AsTime().Format("2006-01-02T15:04:05.000000000Z07:00") + " "
	}
	return head
}

func (w *logWriter) colour(name string) string {
	palette := []string{"36", "33", "32", "35", "34", "96", "93", "92", "95", "94"}
	if w.colours[name] == "" {
		w.colours[name] = palette[len(w.colours)%len(palette)]
	}
	return w.colours[name]
}

func (s *session) eventsCommand() *cobra.Command {
	var since, until string
	cmd := &cobra.Command{
		Use: "events", Short: "Print what happens, as it happens", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, err := s.MaybeApp(cmd.Context())
			if err != nil {
				return err
			}
			req := &gantryv1.EventsRequest{Environment: s.Environment, App: app}
			if since != "" {
				t, err := human.ParseTime(since, time.Now())
				if err != nil {
					return err
				}
				req.Since = timestamppb.New(t)
			}
			if until != "" {
				t, err := human.ParseTime(until, time.Now())
				if err != nil {
					return err
				}
				req.Until = timestamppb.New(t)
			}
			return s.events(cmd.Context(), req)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().StringVar(&since, "since", "", "begin with events from this time, or this long ago")
	cmd.Flags().StringVar(&until, "until", "", "end at this time")
	return s.OutputFlag(cmd, "table")
}

func (s *session) events(ctx context.Context, req *gantryv1.EventsRequest) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	err = client.Each(ctx, c.Instances.Events, req, func(e *gantryv1.Event) error {
		if s.Output == "json" {
			return verb.OneLine(s.Session, e)
		}
		text := fmt.Sprintf("%s %s %s %s", e.GetTime().AsTime().Local().Format(time.RFC3339Nano), e.GetKind(), e.GetAction(), e.GetKey())
		s.Put("%s%s", text, outline.Attributes(e.GetAttributes()))
		return nil
	})
	if ctx.Err() != nil {
		return &verb.Exit{Code: verb.ExitInterrupted}
	}
	return err
}
