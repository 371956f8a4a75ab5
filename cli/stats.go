package cli

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/client"
)

func (s *session) statsCommand() *cobra.Command {
	var noStream, everything bool
	cmd := &cobra.Command{
		Use: "stats [TARGET...]", Short: "Show what containers use, live", Args: between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app := ""
			if !everything {
				var err error
				if app, err = s.maybeApp(cmd.Context()); err != nil {
					return err
				}
			}
			return s.stats(cmd.Context(), &gantryv1.StatsRequest{Environment: s.environment, App: app, Targets: args, Once: noStream})
		},
	}
	s.compose.register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVar(&noStream, "no-stream", false, "print one sample and end")
	cmd.Flags().BoolVarP(&everything, "everything", "A", false, "all of the environment, not only the app here")
	return s.outputFlag(cmd, "table")
}

func (s *session) stats(ctx context.Context, req *gantryv1.StatsRequest) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	// The table itself is what was asked for, so it is drawn on Out.
	var live *terminal.Live
	if !req.GetOnce() && s.output == "table" && !s.plain && terminal.Is(s.out) {
		live = terminal.NewLive(s.out)
	}
	err = client.Each(ctx, c.Instances.Stats, req, func(r *gantryv1.StatsResponse) error {
		switch {
		case s.output == "json" && req.GetOnce():
			return list(s, r.GetStats(), nil)
		case s.output == "json":
			return oneLine(s, r)
		case live != nil:
			live.Draw(strings.Split(strings.TrimSuffix(statsTable(r).String(), "\n"), "\n"))
			return nil
		}
		return statsTable(r).Write(s.out)
	})
	if ctx.Err() != nil {
		return &exit{code: exitInterrupted}
	}
	return err
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
		tab.Row(st.GetName(), short(st.GetInstance()), fmt.Sprintf("%.1f%%", st.GetCpuPercent()), human.Memory(st.GetMemory()), limit,
			human.Size(int64(st.GetNetworkRx()))+" / "+human.Size(int64(st.GetNetworkTx())),
			human.Size(int64(st.GetBlockRead()))+" / "+human.Size(int64(st.GetBlockWrite())), fmt.Sprint(st.GetPids()))
	}
	return tab
}
