package cli

import (
	"bufio"
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/hostinit"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// hostFlags are those of init and join.
func hostFlags(cmd *cobra.Command, o *hostinit.Options, timeout *string) {
	cmd.Flags().StringVar(&o.Root, "root", "/var/lib/gantry", "directory for all that the daemon keeps")
	cmd.Flags().StringVar(&o.Run, "run", "/run/gantry", "directory for what is gone after a reboot")
	cmd.Flags().StringVar(&o.Listen, "listen", "", "where the daemon listens (unix://RUN/gantry.sock)")
	cmd.Flags().StringVar(&o.Group, "group", "", "group that may use the daemon without sudo; made if it is not there (gantry)")
	cmd.Flags().StringVar(&o.Daemon, "daemon", "", "path of gantryd")
	cmd.Flags().StringVarP(timeout, "timeout", "t", "60s", "how long to wait for the daemon's first answer")
}

func (s *session) initCommand() *cobra.Command {
	var o hostinit.Options
	var timeout, advertise string
	var encrypt bool
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
			if advertise == "auto" {
				advertise = hostinit.AddressTowards(anywhere)
			}
			if advertise != "" && advertise != "none" {
				o.Extra = append(o.Extra, "--advertise", advertise)
			}
			if encrypt {
				o.Extra = append(o.Extra, "--overlay", "wireguard")
			}
			if err := s.initHost(cmd.Context(), o, limit); err != nil {
				return err
			}
			return s.tellJoin(cmd.Context(), o, advertise, limit)
		},
	}
	hostFlags(cmd, &o, &timeout)
	cmd.Flags().StringVar(&advertise, "advertise", "auto", "address that other machines reach this one at; none for a machine that stands alone")
	cmd.Flags().BoolVar(&encrypt, "encrypt", false, "encrypt what instances on different machines say to one another (WireGuard)")
	return cmd
}

// anywhere is an address that no machine has (RFC 5737): the way to it is the way to the outside.
const anywhere = "192.0.2.1:9"

// tellJoin ends an init with the command for the next machine. A daemon answers before its state is served.
func (s *session) tellJoin(ctx context.Context, o hostinit.Options, advertise string, timeout time.Duration) error {
	if advertise == "" || advertise == "none" {
		s.Say("this machine stands alone; for more than one: stop gantryd, then gantry init --advertise ADDRESS")
		return nil
	}
	if o.PlainNode() {
		s.Say("this machine is a node of a cluster; to add another, on a server: gantry cluster token create")
		return nil
	}
	c, err := client.New(client.Options{Host: o.Socket()})
	if err != nil {
		return err
	}
	defer c.Close()
	patience, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	t, err := client.Call(ctx, c.Cluster.CreateToken, &gantryv1.CreateTokenRequest{Role: "node"})
	for fault.Is(err, fault.Unavailable) && pause(patience) {
		t, err = client.Call(ctx, c.Cluster.CreateToken, &gantryv1.CreateTokenRequest{Role: "node"})
	}
	if err != nil {
		return err
	}
	s.Say("to add a machine, run there as root, within a day:")
	s.Put("gantry join %s --token %s", t.GetAddress(), t.GetToken())
	return nil
}

// pause waits before the daemon is asked again, and says whether there is time to.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(50 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *session) joinCommand() *cobra.Command {
	var o hostinit.Options
	var timeout, advertise, token string
	var asServer bool
	var labels []string
	cmd := &cobra.Command{
		Use:   "join ADDRESS --token TOKEN",
		Short: "Install and start the daemon on this machine as part of a cluster (needs root)",
		Args:  verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := verb.Timeout(timeout)
			if err != nil {
				return err
			}
			o.Say = s.Say
			if token == "-" {
				line, err := bufio.NewReader(s.In).ReadString('\n')
				if token = strings.TrimSpace(line); token == "" {
					return fault.Wrap(fault.Invalid, err, "there is no token on standard input")
				}
			}
			if advertise == "auto" {
				advertise = hostinit.AddressTowards(args[0])
			}
			if err := o.Join(args[0], advertise, token, asServer, labels); err != nil {
				return err
			}
			return s.initHost(cmd.Context(), o, limit)
		},
	}
	hostFlags(cmd, &o, &timeout)
	cmd.Flags().StringVar(&advertise, "advertise", "auto", "address that other machines reach this one at (auto: the one on its way to ADDRESS)")
	cmd.Flags().StringVar(&token, "token", "", "token from gantry cluster token create; - reads it from standard input")
	cmd.Flags().BoolVar(&asServer, "server", false, "become a server; the token must be one for servers")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label of the node, KEY=VALUE")
	_ = cmd.MarkFlagRequired("token") // the flag is there
	return cmd
}

func (s *session) initHost(ctx context.Context, o hostinit.Options, timeout time.Duration) error {
	listen := o.Socket()
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
			return result.Failure(ctx)
		case <-ctx.Done():
			return fault.New(fault.Timeout, "gantryd was started and does not answer at %s: %s%s", result.Listen, err, result.LastWords(ctx)).
				WithHint("%s", result.Hint())
		}
	}
}
