package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/appwait"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// The words of a command name services ("db", "voting/db") or single instances ("db.1", an ID, a name given to run).
// A service is acted on as a whole, through its wanted state, so that nothing restarts what was stopped.
type sorted struct {
	// Services by app.
	services  map[string][]string
	apps      []string
	instances []string
	// The app that short names belong to; may be empty.
	app string
}

// sortTargets tells services from instances. No words at all mean every service of the app here.
func (s *session) sortTargets(ctx context.Context, c *client.Client, words []string) (*sorted, error) {
	app, err := s.MaybeApp(ctx)
	if err != nil {
		return nil, err
	}
	out := &sorted{services: map[string][]string{}, app: app}
	if len(words) == 0 {
		if out.app, err = s.App(ctx); err != nil {
			return nil, err
		}
		out.apps, out.services[out.app] = []string{out.app}, nil
		return out, nil
	}
	known := map[string][]string{}
	for _, word := range words {
		in, name, full := strings.Cut(word, "/")
		if !full {
			in, name = app, word
		}
		names, err := s.serviceNames(ctx, c, in, known)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, name) {
			out.instances = append(out.instances, word)
			continue
		}
		if out.services[in] == nil {
			out.apps = append(out.apps, in)
		}
		out.services[in] = append(out.services[in], name)
	}
	return out, nil
}

func (s *session) serviceNames(ctx context.Context, c *client.Client, app string, known map[string][]string) ([]string, error) {
	if names, ok := known[app]; ok || app == "" {
		return names, nil
	}
	view, err := client.Call(ctx, c.Apps.Get, &gantryv1.GetAppRequest{Environment: s.Environment, App: app})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	known[app] = []string{}
	for _, v := range view.GetServices() {
		known[app] = append(known[app], v.GetService().GetName())
	}
	return known[app], nil
}

// reach gives the daemon and the app that short names belong to, which may be empty.
func (s *session) reach(ctx context.Context) (*client.Client, string, error) {
	return s.reachBy(ctx, s.MaybeApp)
}

// reachApp is reach where there must be an app.
func (s *session) reachApp(ctx context.Context) (*client.Client, string, error) {
	return s.reachBy(ctx, s.App)
}

func (s *session) reachBy(ctx context.Context, find func(context.Context) (string, error)) (*client.Client, string, error) {
	app, err := find(ctx)
	if err != nil {
		return nil, "", err
	}
	c, err := s.Client()
	return c, app, err
}

type lifecycle struct {
	timeout, wait string
	detach        bool
}

// timeFlags adds what stop and restart have in common.
func (l *lifecycle) timeFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&l.timeout, "timeout", "t", "", "time between the stop signal and SIGKILL")
	l.waitFlags(cmd)
}

func (l *lifecycle) waitFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&l.detach, "detach", "d", false, "do not wait until it is done")
	cmd.Flags().StringVar(&l.wait, "wait-timeout", "", "give up waiting after this time (exit code 1)")
}

// grace reads --timeout; nil leaves it to the services and instances.
func (l *lifecycle) grace() (*durationpb.Duration, error) {
	d, err := verb.Timeout(l.timeout)
	if l.timeout == "" || err != nil {
		return nil, err
	}
	return durationpb.New(d), nil
}

func (s *session) stopCommand() *cobra.Command {
	var l lifecycle
	cmd := &cobra.Command{
		Use:   "stop [TARGET...]",
		Short: "Stop services or instances; they keep their files",
		Args:  verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.setStopped(cmd.Context(), l, args, true)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	l.timeFlags(cmd)
	return cmd
}

func (s *session) startCommand() *cobra.Command {
	var l lifecycle
	cmd := &cobra.Command{
		Use:   "start [TARGET...]",
		Short: "Start stopped services or instances",
		Args:  verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.setStopped(cmd.Context(), l, args, false)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	l.waitFlags(cmd)
	return cmd
}

// aim finds what the words of a command mean, and how long it has to end.
func (s *session) aim(ctx context.Context, l lifecycle, words []string) (*client.Client, *sorted, *durationpb.Duration, error) {
	c, err := s.Client()
	if err != nil {
		return nil, nil, nil, err
	}
	t, err := s.sortTargets(ctx, c, words)
	if err != nil {
		return nil, nil, nil, err
	}
	grace, err := l.grace()
	return c, t, grace, err
}

func (s *session) setStopped(ctx context.Context, l lifecycle, words []string, stopped bool) error {
	c, t, grace, err := s.aim(ctx, l, words)
	if err != nil {
		return err
	}
	for _, app := range t.apps {
		_, err := client.Call(ctx, c.Apps.SetStopped, &gantryv1.SetStoppedRequest{Environment: s.Environment, App: app, Services: t.services[app], Stopped: stopped, GracePeriod: grace})
		if err != nil {
			return err
		}
		w := appwait.Wait{App: app, Services: t.services[app], Work: "starting", Settle: true}
		if stopped {
			w.Work, w.Done = "stopping", appwait.Stopped
		}
		if err := s.arrive(ctx, l, w); err != nil {
			return err
		}
	}
	return s.ForEach(t.instances, func(name string) error {
		if stopped {
			got, err := client.Call(ctx, c.Instances.Stop, &gantryv1.StopInstanceRequest{Target: s.Target(t.app, name), GracePeriod: grace})
			if got.GetKilledAfter() != nil {
				s.Say("%s did not end within %s and was killed", name, got.KilledAfter.AsDuration())
			}
			return err
		}
		_, err := client.Call(ctx, c.Instances.Start, s.Target(t.app, name))
		return err
	})
}

// arrive waits until services are where they were sent.
func (s *session) arrive(ctx context.Context, l lifecycle, w appwait.Wait) error {
	if l.detach {
		return nil
	}
	timeout, err := verb.Timeout(l.wait)
	if err != nil {
		return err
	}
	w.Timeout = timeout
	return s.await(ctx, w)
}

func (s *session) restartCommand() *cobra.Command {
	var l lifecycle
	cmd := &cobra.Command{
		Use:   "restart [TARGET...]",
		Short: "Restart services or instances",
		Args:  verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, t, grace, err := s.aim(ctx, l, args)
			if err != nil {
				return err
			}
			for _, app := range t.apps {
				got, err := client.Call(ctx, c.Apps.Restart, &gantryv1.RestartRequest{Environment: s.Environment, App: app, Services: t.services[app], GracePeriod: grace})
				if err != nil {
					return err
				}
				if err := s.arrive(ctx, l, appwait.Wait{App: app, Services: append(got.GetServices(), t.services[app]...), Work: "starting", Settle: true}); err != nil {
					return err
				}
			}
			return s.ForEach(t.instances, func(name string) error {
				_, err := client.Call(ctx, c.Instances.Restart, &gantryv1.StopInstanceRequest{Target: s.Target(t.app, name), GracePeriod: grace})
				return err
			})
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	l.timeFlags(cmd)
	return cmd
}

// instances resolves words to single instances, a service to all of its own.
func (s *session) instances(ctx context.Context, c *client.Client, words []string) (app string, names []string, err error) {
	t, err := s.sortTargets(ctx, c, words)
	if err != nil {
		return "", nil, err
	}
	names = t.instances
	for _, app := range t.apps {
		all, err := client.Call(ctx, c.Instances.List, &gantryv1.ListInstancesRequest{Environment: s.Environment, App: app, All: true})
		if err != nil {
			return "", nil, err
		}
		for _, v := range all.GetInstances() {
			i := v.GetInstance()
			if len(t.services[app]) == 0 || slices.Contains(t.services[app], i.GetService()) {
				names = append(names, fmt.Sprintf("%s/%s.%d", app, i.GetService(), i.GetSlot()))
			}
		}
	}
	return t.app, names, nil
}

// single makes a command that acts on each of the instances named.
func (s *session) single(use, short string, act func(context.Context, *client.Client, *gantryv1.InstanceTarget) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			app, names, err := s.instances(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			return s.ForEach(names, func(name string) error { return act(cmd.Context(), c, s.Target(app, name)) })
		},
	}
	s.Compose.Register(cmd.Flags(), "", "p")
	return cmd
}

func (s *session) killCommand() *cobra.Command {
	var sig string
	cmd := s.single("kill TARGET...", "Send a signal to instances (SIGKILL)", func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget) error {
		_, err := client.Call(ctx, c.Instances.Kill, &gantryv1.KillRequest{Target: t, Signal: sig})
		return err
	})
	cmd.Flags().StringVarP(&sig, "signal", "s", "SIGKILL", "signal to send")
	return cmd
}

func (s *session) rmCommand() *cobra.Command {
	var force, stop, volumes bool
	cmd := s.single("rm TARGET...", "Remove stopped instances", func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget) error {
		_, err := client.Call(ctx, c.Instances.Remove, &gantryv1.RemoveInstanceRequest{Target: t, Force: force || stop, Volumes: volumes})
		return err
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop them first if they run")
	cmd.Flags().BoolVarP(&stop, "stop", "s", false, "the same by Compose's name")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "Docker's; anonymous volumes go with their instance in any case")
	return cmd
}

func (s *session) pauseCommand() *cobra.Command {
	return s.single("pause TARGET...", "Freeze instances", func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget) error {
		_, err := client.Call(ctx, c.Instances.Pause, t)
		return err
	})
}

func (s *session) unpauseCommand() *cobra.Command {
	return s.single("unpause TARGET...", "Let frozen instances go on", func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget) error {
		_, err := client.Call(ctx, c.Instances.Unpause, t)
		return err
	})
}

// oneInstance makes a command that reads a single instance.
func (s *session) oneInstance(use, short string, most int, act func(context.Context, *client.Client, *gantryv1.InstanceTarget, []string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: verb.Between(1, most),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, app, err := s.reach(cmd.Context())
			if err != nil {
				return err
			}
			return act(cmd.Context(), c, s.Target(app, args[0]), args[1:])
		},
	}
	s.Compose.Register(cmd.Flags(), "", "p")
	return cmd
}

func (s *session) waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "wait TARGET...", Short: "Wait until instances end, and print their exit codes", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, app, err := s.reach(cmd.Context())
			if err != nil {
				return err
			}
			var failed []error
			for _, name := range args {
				w, err := client.Call(cmd.Context(), c.Instances.Wait, s.Target(app, name))
				if err != nil {
					failed = append(failed, err)
					continue
				}
				s.Put("%d", w.GetExitCode())
				if w.GetOomKilled() {
					s.Say("%s was killed for lack of memory", name)
				}
				if w.GetError() != "" {
					s.Say("%s: %s", name, w.GetError())
				}
			}
			return s.Join(failed)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	return cmd
}

func (s *session) topCommand() *cobra.Command {
	return s.OutputFlag(s.oneInstance("top TARGET", "List an instance's processes", 1,
		func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget, _ []string) error {
			top, err := client.Call(ctx, c.Instances.Top, t)
			if err != nil {
				return err
			}
			if s.Output == "json" {
				return verb.One(s.Session, top)
			}
			tab := table.New(top.GetTitles()...)
			for _, p := range top.GetProcesses() {
				tab.Row(p.GetValues()...)
			}
			return tab.Write(s.Out)
		}), "table")
}

func (s *session) diffCommand() *cobra.Command {
	return s.OutputFlag(s.oneInstance("diff TARGET", "List files that differ from the image: A added, C changed, D deleted", 1,
		func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget, _ []string) error {
			diff, err := client.Call(ctx, c.Instances.Diff, t)
			if err != nil {
				return err
			}
			return verb.List(s.Session, diff.GetEntries(), func() error {
				for _, e := range diff.GetEntries() {
					s.Put("%s %s", e.GetKind(), e.GetPath())
				}
				return nil
			})
		}), "table")
}

func (s *session) portCommand() *cobra.Command {
	return s.OutputFlag(s.oneInstance("port TARGET [PORT[/udp]]", "Print where a container's ports can be reached", 2,
		func(ctx context.Context, c *client.Client, t *gantryv1.InstanceTarget, args []string) error {
			v, err := client.Call(ctx, c.Instances.Inspect, t)
			if err != nil {
				return err
			}
			ports := v.GetStatus().GetPorts()
			if len(args) > 0 {
				ports = slices.DeleteFunc(ports, func(p *gantryv1.PortPublish) bool {
					want := args[0]
					if !strings.Contains(want, "/") {
						want += "/tcp"
					}
					return fmt.Sprintf("%d/%s", p.GetContainerPort(), protocolOf(p)) != want
				})
				if len(ports) == 0 {
					return fault.New(fault.NotFound, "%s does not publish port %s", t.GetTarget(), args[0]).WithHint("gantry port %s", t.GetTarget())
				}
			}
			return verb.List(s.Session, ports, func() error {
				for _, p := range ports {
					if len(args) > 0 {
						s.Put("%s", hostPort(p))
					} else {
						s.Put("%d/%s -> %s", p.GetContainerPort(), protocolOf(p), hostPort(p))
					}
				}
				return nil
			})
		}), "table")
}

func (s *session) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "inspect TARGET...", Short: "Print all that is known of instances", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, app, err := s.reach(cmd.Context())
			if err != nil {
				return err
			}
			found, failed := verb.Gather(s.Session, args, func(name string) (*gantryv1.InstanceView, error) {
				return client.Call(cmd.Context(), c.Instances.Inspect, s.Target(app, name))
			})
			return errors.Join(verb.Inspect(s.Session, found), failed)
		},
	}
	s.Compose.Register(cmd.Flags(), "", "p")
	return s.OutputFlag(cmd, "json")
}

func (s *session) scaleCommand() *cobra.Command {
	var l lifecycle
	cmd := &cobra.Command{
		Use: "scale SERVICE=NUMBER...", Short: "Change how many containers services have", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			replicas, err := parseScale(args)
			if err != nil {
				return err
			}
			c, app, err := s.reachApp(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := client.Call(cmd.Context(), c.Apps.Scale, &gantryv1.ScaleRequest{Environment: s.Environment, App: app, Replicas: replicas}); err != nil {
				return err
			}
			names := make([]string, 0, len(replicas))
			for name := range replicas {
				names = append(names, name)
			}
			return s.arrive(cmd.Context(), l, appwait.Wait{App: app, Services: names, Work: "starting"})
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	l.waitFlags(cmd)
	return cmd
}

func (s *session) rollbackCommand() *cobra.Command {
	var l lifecycle
	var release int64
	cmd := &cobra.Command{
		Use: "rollback SERVICE", Short: "Go back to a service's release before", Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, app, err := s.reachApp(cmd.Context())
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Apps.Rollback, &gantryv1.RollbackRequest{
				Environment: s.Environment, App: app, Service: args[0], Release: release,
			})
			if err != nil {
				return err
			}
			if got.GetOperation() == "" {
				s.Say("service %q has release %d already", args[0], got.GetRelease())
			} else {
				s.Say("service %q goes back to release %d", args[0], got.GetRelease())
			}
			w := appwait.Wait{App: app, Services: args, Work: "starting", Settle: true, Operations: []string{got.GetOperation()}, Backwards: true}
			return s.arrive(cmd.Context(), l, w)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().Int64Var(&release, "release", 0, "release to go to, from: gantry release ls")
	l.waitFlags(cmd)
	return cmd
}
