package cli

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
)

func (s *session) statsCommand() *cobra.Command {
	var noStream, everything bool
	cmd := &cobra.Command{
		Use: "stats [TARGET...]", Short: "Show what containers use, live", Args: verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app := ""
			if !everything {
				var err error
				if app, err = s.MaybeApp(cmd.Context()); err != nil {
					return err
				}
			}
			return s.stats(cmd.Context(), &gantryv1.StatsRequest{Environment: s.Environment, App: app, Targets: args, Once: noStream})
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVar(&noStream, "no-stream", false, "print one sample and end")
	cmd.Flags().BoolVarP(&everything, "everything", "A", false, "all of the environment, not only the app here")
	return s.OutputFlag(cmd, "table")
}

func (s *session) stats(ctx context.Context, req *gantryv1.StatsRequest) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	// The table itself is what was asked for, so it is drawn on Out.
	var live *terminal.Live
	if !req.GetOnce() && s.Output == "table" && !s.Plain && terminal.Is(s.Out) {
		live = terminal.NewLive(s.Out)
	}
	var lost []*gantryv1.NodeFailure // of the last sample
	err = client.Each(ctx, c.Instances.Stats, req, func(r *gantryv1.StatsResponse) error {
		lost = r.GetFailures()
		switch {
		case s.Output == "json" && req.GetOnce():
			return verb.List(s.Session, r.GetStats(), nil)
		case s.Output == "json":
			return verb.OneLine(s.Session, r)
		case live != nil:
			live.Draw(append(strings.Split(strings.TrimSuffix(statsTable(r).String(), "\n"), "\n"), notes(lost)...))
			return nil
		}
		return statsTable(r).Write(s.Out)
	})
	if ctx.Err() != nil {
		return &verb.Exit{Code: verb.ExitInterrupted}
	}
	return errors.Join(err, s.Missing(lost))
}

// notes says below the table which nodes are missing from it.
func notes(failures []*gantryv1.NodeFailure) []string {
	var out []string
	for _, f := range failures {
		out = append(out, verb.Line("missing: %s", f.GetMessage()))
	}
	return out
}

func statsTable(r *gantryv1.StatsResponse) *table.Table {
	rows := r.GetStats()
	sort.SliceStable(rows, func(a, b int) bool { return rows[a].GetName() < rows[b].GetName() })
	tab := table.New("NAME", "ID", "CPU", "MEMORY", "OF", "NET IN/OUT", "BLOCK READ/WRITE", "PIDS")
	for _, st := range rows {
		limit := "-"
		if st.GetMemoryLimit() > 0 {
			limit = human.Memory(st.GetMemoryLimit())
		}
		tab.Row(st.GetName(), verb.Short(st.GetInstance()), fmt.Sprintf("%.1f%%", st.GetCpuPercent()), human.Memory(st.GetMemory()), limit,
			human.Size(int64(st.GetNetworkRx()))+" / "+human.Size(int64(st.GetNetworkTx())),
			human.Size(int64(st.GetBlockRead()))+" / "+human.Size(int64(st.GetBlockWrite())), fmt.Sprint(st.GetPids()))
	}
	return tab
}
