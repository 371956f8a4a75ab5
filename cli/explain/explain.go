// Package explain is the verb that says why instances are where they are, and why others are nowhere.
//
// Command makes it. It asks the daemon and prints; package cli adds it to the tree.
package explain

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// Command is `gantry explain`.
func Command(s *verb.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain SERVICE",
		Short: "Say for each node why a service can run there or cannot, and what its job has run",
		Long: "Say for each node why a service can run there or cannot, and what its job has run.\n\n" +
			"SERVICE is one of the app here, APP/SERVICE, or the name of an instance of gantry run.",
		Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := ask(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			if s.Output == "json" {
				return verb.One(s, found)
			}
			return show(s, found)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	return s.OutputFlag(cmd, "table")
}

// ask looks in the app here first, and then among the instances of `gantry run`.
func ask(ctx context.Context, s *verb.Session, name string) (*gantryv1.ExplainResponse, error) {
	c, err := s.Client()
	if err != nil {
		return nil, err
	}
	app, service, qualified := strings.Cut(name, "/")
	if !qualified {
		service = name
		if app, err = s.MaybeApp(ctx); err != nil {
			return nil, err
		}
	}
	req := &gantryv1.ExplainRequest{Environment: s.Environment, App: app, Service: service}
	found, err := client.Call(ctx, c.Explain.Explain, req)
	if fault.Is(err, fault.NotFound) && app != "" && !qualified {
		req.App = ""
		if other, otherErr := client.Call(ctx, c.Explain.Explain, req); otherErr == nil {
			return other, nil
		}
	}
	return found, err
}

func show(s *verb.Session, e *gantryv1.ExplainResponse) error {
	s.Put("%s", headline(e))
	for _, w := range e.GetWaiting() {
		s.Put("%s waits (since %s): %s", w.GetName(), verb.Ago(w.GetSince()), w.GetReason())
	}
	if len(e.GetAsks()) > 0 {
		s.Put("asks for:")
	}
	for _, a := range e.GetAsks() {
		s.Put("  %s", a)
	}
	if err := nodes(s, e.GetNodes()); err != nil {
		return err
	}
	return runs(s, e)
}

func headline(e *gantryv1.ExplainResponse) string {
	if e.GetMode() == "" {
		return fmt.Sprintf("%s, of gantry run: %d placed", e.GetService()[strings.LastIndexByte(e.GetService(), '/')+1:], e.GetPlaced())
	}
	return fmt.Sprintf("%s, %s: %d of %d placed", e.GetService(), e.GetMode(), e.GetPlaced(), e.GetWanted())
}

func nodes(s *verb.Session, verdicts []*gantryv1.NodeVerdict) error {
	tab := table.New("NODE", "HAS", "FREE CPU", "FREE MEMORY", "ONE MORE")
	for _, v := range verdicts {
		answer := "yes"
		if !v.GetFits() {
			answer = "no: " + strings.Join(v.GetReasons(), "; ")
		}
		tab.Row(verb.Line("%s", v.GetName()), fmt.Sprint(v.GetInstances()), fmt.Sprintf("%.4g", float64(v.GetFreeCpus())/1e9),
			human.Memory(uint64(max(0, v.GetFreeMemory()))), verb.Line("%s", answer))
	}
	return tab.Write(s.Out)
}

// runs prints what a job has run, the newest first.
func runs(s *verb.Session, e *gantryv1.ExplainResponse) error {
	if next := e.GetNextStart(); next.IsValid() {
		s.Put("next run at %s", next.AsTime().Local().Format(time.DateTime))
	}
	all := e.GetJob().GetRuns()
	if len(all) == 0 {
		return nil
	}
	tab := table.New("RUN", "STATE", "DONE", "STARTED", "TOOK", "CAUSE", "WHY")
	for n := len(all) - 1; n >= 0; n-- {
		r := all[n]
		tab.Row(fmt.Sprint(r.GetNumber()), r.GetState(), fmt.Sprintf("%d/%d", r.GetSucceeded(), r.GetCompletions()),
			verb.Ago(r.GetStartedAt()), took(r), r.GetCause(), verb.Dash(verb.Line("%s", r.GetError())))
	}
	return tab.Write(s.Out)
}

func took(r *gantryv1.JobRun) string {
	if !r.GetStartedAt().IsValid() {
		return "-"
	}
	end := time.Now()
	if r.GetFinishedAt().IsValid() {
		end = r.GetFinishedAt().AsTime()
	}
	return human.Age(end.Sub(r.GetStartedAt().AsTime()))
}
