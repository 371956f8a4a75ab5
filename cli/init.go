package cli

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/hostinit"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

func (s *session) initCommand() *cobra.Command {
	var o hostinit.Options
	var timeout string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Install and start the daemon on this machine (needs root)",
		Args:  verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit, err := verb.Timeout(timeout)
			if err != nil {
				return err
			}
			o.Say = s.Say
			return s.initHost(cmd.Context(), o, limit)
		},
	}
	cmd.Flags().StringVar(&o.Root, "root", "/var/lib/gantry", "directory for all that the daemon keeps")
	cmd.Flags().StringVar(&o.Run, "run", "/run/gantry", "directory for what is gone after a reboot")
	cmd.Flags().StringVar(&o.Listen, "listen", "", "where the daemon listens (unix://RUN/gantry.sock)")
	cmd.Flags().StringVar(&o.Daemon, "daemon", "", "path of gantryd")
	cmd.Flags().StringVarP(&timeout, "timeout", "t", "60s", "how long to wait for the daemon's first answer")
	return cmd
}

func (s *session) initHost(ctx context.Context, o hostinit.Options, timeout time.Duration) error {
	listen := o.Listen
	if listen == "" {
		listen = "unix://" + o.Run + "/gantry.sock"
	}
	c, err := client.New(client.Options{Host: listen})
	if err != nil {
		return err
	}
	defer c.Close()
	if v, err := client.Call(ctx, c.System.Version, &gantryv1.VersionRequest{}); err == nil {
		s.Say("gantryd %s runs already at %s", v.GetVersion(), listen)
		return nil
	}
	result, err := hostinit.Run(ctx, o)
	if err != nil {
		return err
	}
	return s.firstAnswer(ctx, c, result, timeout)
}

// firstAnswer waits until the daemon that was started can be used.
func (s *session) firstAnswer(ctx context.Context, c *client.Client, result *hostinit.Result, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		v, err := client.Call(ctx, c.System.Version, &gantryv1.VersionRequest{})
		if err == nil {
			s.Say("gantryd %s runs at %s", v.GetVersion(), result.Listen)
			if result.Listen != client.DefaultHost {
				s.Say("hint: export GANTRY_HOST=%s", result.Listen)
			}
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-result.Exited:
			return fault.New(fault.Unavailable, "gantryd ended at once%s", lastLines(result.Log)).WithHint("%s", logHint(result))
		case <-ctx.Done():
			return fault.New(fault.Timeout, "gantryd was started and does not answer at %s: %s", result.Listen, err).WithHint("%s", logHint(result))
		}
	}
}

// lastLines gives the end of a log file for a message.
func lastLines(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	return "; its last words:\n" + strings.Join(lines, "\n")
}

func logHint(r *hostinit.Result) string {
	if r.Systemd {
		return r.Log
	}
	return "tail " + r.Log
}
