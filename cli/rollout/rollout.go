// Package rollout is the verb that shows how services move from one release to another, and steers it.
//
// Command makes it. It asks the daemon and prints; package cli adds it to the tree.
package rollout

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
)

// Command is `gantry rollout`.
func Command(s *verb.Session) *cobra.Command {
	return verb.Group("rollout", "Show and steer how services move to another release", list(s), show(s),
		steer(s, "pause SERVICE...", "Let what is begun end, and begin nothing more", "is paused",
			func(c *client.Client) call { return c.Operations.Pause }),
		steer(s, "resume SERVICE...", "Go on after a pause, approve a canary, or try again what failed", "goes on",
			func(c *client.Client) call { return c.Operations.Resume }),
		steer(s, "abort SERVICE...", "Go back to the release before", "goes back",
			func(c *client.Client) call { return c.Operations.Abort }),
	)
}

type call = func(context.Context, *connect.Request[gantryv1.OperationTarget]) (*connect.Response[gantryv1.Operation], error)

func list(s *verb.Session) *cobra.Command {
	var all, active bool
	cmd := &cobra.Command{
		Use:   "ls [SERVICE]",
		Short: "List the rollouts of the app, the newest first",
		Args:  verb.Between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &gantryv1.ListOperationsRequest{Environment: s.Environment, Active: active}
			if !all {
				var err error
				if req.App, req.Service, err = named(cmd.Context(), s, args); err != nil {
					return err
				}
			}
			c, err := s.Client()
			if err != nil {
				return err
			}
			found, err := client.Call(cmd.Context(), c.Operations.List, req)
			if err != nil {
				return err
			}
			return verb.List(s, found.GetOperations(), func() error { return write(s, found.GetOperations()) })
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVarP(&all, "all", "A", false, "of all apps of the environment")
	cmd.Flags().BoolVar(&active, "active", false, "only those that have not ended")
	return s.OutputFlag(cmd, "table")
}

// named reads "SERVICE" or "APP/SERVICE"; without a word, all services of the app here are meant.
func named(ctx context.Context, s *verb.Session, args []string) (app, service string, err error) {
	if len(args) > 0 {
		if app, service, ok := strings.Cut(args[0], "/"); ok {
			return app, service, nil
		}
		service = args[0]
	}
	app, err = s.App(ctx)
	return app, service, err
}

func target(ctx context.Context, s *verb.Session, word string) (*gantryv1.OperationTarget, error) {
	app, service, err := named(ctx, s, []string{word})
	return &gantryv1.OperationTarget{Environment: s.Environment, App: app, Service: service}, err
}

func write(s *verb.Session, ops []*gantryv1.Operation) error {
	tab := table.New("SERVICE", "ROLLOUT", "RELEASE", "STATE", "STEP", "BY", "BEGUN")
	for _, op := range ops {
		tab.Row(strings.TrimPrefix(op.GetSubject(), s.Environment+"/"), fmt.Sprint(op.GetNumber()), releases(op), state(op),
			verb.Dash(step(op.GetSteps())), verb.Dash(op.GetWho()), verb.Ago(op.GetMeta().GetCreatedAt()))
	}
	return tab.Write(s.Out)
}

// releases tells where a rollout leads: "3 -> 4", or "3 <- 4" once it goes back.
func releases(op *gantryv1.Operation) string {
	r := op.GetRollout()
	switch {
	case r.GetFrom() == 0:
		return fmt.Sprint(r.GetTo())
	case r.GetBack():
		return fmt.Sprintf("%d <- %d", r.GetFrom(), r.GetTo())
	}
	return fmt.Sprintf("%d -> %d", r.GetFrom(), r.GetTo())
}

func state(op *gantryv1.Operation) string {
	text := word(op.GetState())
	if op.GetWaiting() != "" {
		text += ", waits for " + op.GetWaiting()
	}
	return text
}

func word(s gantryv1.Operation_State) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.String(), "STATE_"), "_", " "))
}

// step names the step that is due; empty after the end.
func step(steps []*gantryv1.OperationStep) string {
	for _, st := range steps {
		switch st.GetState() {
		case gantryv1.Operation_STATE_PENDING, gantryv1.Operation_STATE_RUNNING:
			if part := step(st.GetSteps()); part != "" {
				return part
			}
			return st.GetName()
		}
	}
	return ""
}

func show(s *verb.Session) *cobra.Command {
	var number int64
	var follow bool
	cmd := &cobra.Command{
		Use:   "show SERVICE",
		Short: "Show a rollout with its steps: the last one, or the one with a number",
		Args:  verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := target(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			t.Number = number
			c, err := s.Client()
			if err != nil {
				return err
			}
			if follow {
				return client.Each(cmd.Context(), c.Operations.Watch, t, func(op *gantryv1.Operation) error { return print(s, op) })
			}
			op, err := client.Call(cmd.Context(), c.Operations.Get, t)
			if err != nil {
				return err
			}
			return print(s, op)
		},
	}
	s.Compose.Register(cmd.Flags(), "", "p")
	cmd.Flags().Int64VarP(&number, "number", "n", 0, "number of the rollout, from: gantry rollout ls")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show it again after every change until it ends")
	return s.OutputFlag(cmd, "table")
}

func print(s *verb.Session, op *gantryv1.Operation) error {
	if s.Output == "json" {
		return verb.One(s, op)
	}
	s.Put("rollout %d of %s: release %s, %s", op.GetNumber(), op.GetSubject(), releases(op), state(op))
	by := op.GetCause()
	if op.GetWho() != "" {
		by += " by " + op.GetWho()
	}
	s.Put("begun %s: %s", verb.Ago(op.GetMeta().GetCreatedAt()), by)
	printSteps(s, op.GetSteps(), "  ")
	if op.GetError() != "" {
		s.Put("what went wrong: %s", op.GetError())
	}
	if op.GetHint() != "" {
		s.Put("hint: %s", op.GetHint())
	}
	return nil
}

func printSteps(s *verb.Session, steps []*gantryv1.OperationStep, indent string) {
	for _, st := range steps {
		line := fmt.Sprintf("%s%-11s  %s", indent, word(st.GetState()), st.GetName())
		if took := duration(st); took != "" {
			line += ", " + took
		}
		s.Put("%s", line)
		printSteps(s, st.GetSteps(), indent+"  ")
	}
}

// duration is how long a step took, or has taken so far.
func duration(st *gantryv1.OperationStep) string {
	if !st.GetStartedAt().IsValid() {
		return ""
	}
	end := time.Now()
	if st.GetEndedAt().IsValid() {
		end = st.GetEndedAt().AsTime()
	}
	return human.Duration(end.Sub(st.GetStartedAt().AsTime()))
}

// steer makes a command that acts on the last rollout of each service named.
func steer(s *verb.Session, use, short, done string, of func(*client.Client) call) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			var failed []error
			for _, name := range args {
				t, err := target(cmd.Context(), s, name)
				if err != nil {
					return err
				}
				op, err := client.Call(cmd.Context(), of(c), t)
				if err != nil {
					failed = append(failed, err)
					continue
				}
				s.Say("rollout %d of %s %s (release %s)", op.GetNumber(), name, done, releases(op))
			}
			return s.Join(failed)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	return cmd
}
