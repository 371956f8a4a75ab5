package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/appwait"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/compose"
	"github.com/gantryd/gantry/fault"
)

type upFlags struct {
	detach, build, noBuild bool
	forceRecreate, orphans bool
	noDeps, wait           bool
	timeout                string
	scale                  []string
	pull                   string
	noCache, quietPull     bool
	index                  int64
}

func (s *session) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up [SERVICE...]",
		Short: "Build what is missing, bring the app up and wait until it is healthy",
		Args:  verb.Between(0, -1),
		RunE:  func(cmd *cobra.Command, args []string) error { return s.up(cmd.Context(), f, args) },
	}
	fs := cmd.Flags()
	s.Compose.RegisterLoading(fs)
	fs.BoolVarP(&f.detach, "detach", "d", false, "do not wait until it runs")
	fs.BoolVar(&f.build, "build", false, "build images even if they are there")
	fs.BoolVar(&f.noBuild, "no-build", false, "build nothing; a missing image is an error")
	fs.BoolVar(&f.noCache, "no-cache", false, "build without the cache")
	fs.StringVar(&f.pull, "pull", "", "pull policy in place of the file's: missing, always, never")
	fs.BoolVar(&f.forceRecreate, "force-recreate", false, "replace containers even if nothing changed")
	fs.BoolVar(&f.orphans, "remove-orphans", false, "remove services that the file no longer has")
	fs.BoolVar(&f.noDeps, "no-deps", false, "change only the services named; they still wait for those they depend on")
	fs.BoolVar(&f.wait, "wait", false, "wait until it runs, with -d too")
	fs.BoolVar(&f.quietPull, "quiet-pull", false, "show no progress of pulls")
	fs.StringVarP(&f.timeout, "timeout", "t", "", "give up waiting after this time (exit code 1)")
	fs.StringVar(&f.timeout, "wait-timeout", "", "the same by Compose's name")
	fs.StringArrayVar(&f.scale, "scale", nil, "run this many containers of a service: SERVICE=N")
	fs.Int64Var(&f.index, "check-index", 0, "refuse unless the app is as it was when gantry plan printed this index")
	return cmd
}

func (s *session) up(ctx context.Context, f upFlags, services []string) error {
	timeout, err := verb.Timeout(f.timeout)
	if err != nil {
		return err
	}
	p, err := s.Load(ctx)
	if err != nil {
		return err
	}
	if err := scaled(p, f.scale); err != nil {
		return err
	}
	if f.noDeps && len(services) == 0 {
		return fault.New(fault.Invalid, "--no-deps needs the services that are meant").WithHint("gantry up --no-deps SERVICE")
	}
	wanted, err := closure(p, services)
	if f.noDeps && err == nil {
		wanted = services
	}
	if err != nil {
		return err
	}
	if err := s.provide(ctx, p, wanted, f); err != nil {
		return err
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	plan, err := client.Call(ctx, c.Apps.Apply, &gantryv1.ApplyRequest{
		Environment: s.Environment, App: p.Name, Spec: p.Spec, Services: services,
		RemoveOrphans: f.orphans, ForceRecreate: f.forceRecreate, CheckIndex: f.index, NoDependencies: f.noDeps,
	})
	if err != nil {
		return err
	}
	changed := len(plan.GetChanges()) > 0 || f.forceRecreate
	if !changed {
		s.Say("app %q is as the file says, nothing changed", p.Name)
	}
	detach := f.detach && !f.wait
	if detach && changed {
		s.Say("app %q is on its way: %s", p.Name, summary(plan.GetChanges()))
	}
	operations := plan.GetOperations()
	if detach || !changed {
		// What an earlier up has begun may have stopped on its way.
		if operations, err = s.underWay(ctx, p.Name, wanted, detach); err != nil {
			return err
		}
	}
	if detach {
		return nil
	}
	begun := time.Now()
	w := appwait.Wait{
		App: p.Name, Services: wanted, Timeout: timeout, Since: plan.GetRevision(), Work: "starting", Settle: true,
		Operations: operations, Again: !changed,
	}
	if err := s.await(ctx, w); err != nil {
		return err
	}
	if changed {
		s.Say("app %q is up in %s: %s", p.Name, human.Duration(time.Since(begun)), verb.Count(len(wanted), "service"))
	}
	return nil
}

// underWay lists the rollouts of services that have not ended. To one who does not wait for them it says which are paused, why,
// and what to do.
func (s *session) underWay(ctx context.Context, app string, services []string, tell bool) ([]string, error) {
	c, err := s.Client()
	if err != nil {
		return nil, err
	}
	view, err := client.Call(ctx, c.Apps.Get, &gantryv1.GetAppRequest{Environment: s.Environment, App: app})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, v := range view.GetServices() {
		op, name := v.GetOperation(), v.GetService().GetName()
		if !slices.Contains(services, name) {
			continue
		}
		switch op.GetState() {
		case gantryv1.Operation_STATE_PAUSED:
			if tell {
				appwait.SayPaused(s.Say, name, op)
			}
		case gantryv1.Operation_STATE_PENDING, gantryv1.Operation_STATE_RUNNING:
		default:
			continue
		}
		out = append(out, op.GetMeta().GetKey())
	}
	return out, nil
}

// scaled puts --scale into the spec.
func scaled(p *compose.Project, entries []string) error {
	replicas, err := parseScale(entries)
	if err != nil {
		return err
	}
	for name, n := range replicas {
		svc := p.Spec.GetServices()[name]
		if svc == nil {
			return noService(p, name)
		}
		svc.Replicas = n
	}
	return nil
}

// parseScale reads SERVICE=N.
func parseScale(entries []string) (map[string]int32, error) {
	out := map[string]int32{}
	for _, e := range entries {
		name, number, ok := strings.Cut(e, "=")
		n, err := strconv.ParseInt(number, 10, 32)
		if !ok || name == "" || err != nil || n < 0 {
			return nil, fault.New(fault.Invalid, "%q is not SERVICE=NUMBER", e).WithHint("write it like web=3")
		}
		out[name] = int32(n)
	}
	return out, nil
}

func noService(p *compose.Project, name string) error {
	err := fault.New(fault.NotFound, "app %q has no service %q", p.Name, name)
	if slices.Contains(p.DisabledServices, name) {
		return err.WithHint("it belongs to a profile that is not enabled; add --profile, or set COMPOSE_PROFILES")
	}
	return err.WithHint("it has: %s", strings.Join(slices.Sorted(maps.Keys(p.Spec.GetServices())), ", "))
}

// closure gives the named services with all they depend on, sorted; all if none is named.
func closure(p *compose.Project, names []string) ([]string, error) {
	all := p.Spec.GetServices()
	if len(names) == 0 {
		return slices.Sorted(maps.Keys(all)), nil
	}
	seen := map[string]bool{}
	queue := slices.Clone(names)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] {
			continue
		}
		svc := all[name]
		if svc == nil {
			return nil, noService(p, name)
		}
		seen[name] = true
		for _, d := range svc.GetDependsOn() {
			if all[d.GetService()] != nil {
				queue = append(queue, d.GetService())
			}
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

func (s *session) planCommand() *cobra.Command {
	var orphans, recreate bool
	var scale []string
	cmd := &cobra.Command{
		Use:   "plan [SERVICE...]",
		Short: "Show what up would change (exit code 2 if anything)",
		Args:  verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.plan(cmd.Context(), &gantryv1.ApplyRequest{Services: args, RemoveOrphans: orphans, ForceRecreate: recreate}, scale)
		},
	}
	s.Compose.RegisterLoading(cmd.Flags())
	cmd.Flags().BoolVar(&orphans, "remove-orphans", false, "remove services that the file no longer has")
	cmd.Flags().BoolVar(&recreate, "force-recreate", false, "replace containers even if nothing changed")
	cmd.Flags().StringArrayVar(&scale, "scale", nil, "run this many containers of a service: SERVICE=N")
	return s.OutputFlag(cmd, "table")
}

func (s *session) plan(ctx context.Context, req *gantryv1.ApplyRequest, scale []string) error {
	p, err := s.Load(ctx)
	if err != nil {
		return err
	}
	if err := scaled(p, scale); err != nil {
		return err
	}
	wanted, err := closure(p, req.GetServices())
	if err != nil {
		return err
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	// The digests of images that are here make the plan exact; what is missing would be built or pulled.
	for _, name := range wanted {
		if err := s.knownDigest(ctx, p.Spec.GetServices()[name].GetContainer()); err != nil {
			return err
		}
	}
	req.Environment, req.App, req.Spec = s.Environment, p.Name, p.Spec
	plan, err := client.Call(ctx, c.Apps.Plan, req)
	if err != nil {
		return err
	}
	if s.Output == "json" {
		err = verb.One(s.Session, plan)
	} else {
		s.printPlan(p.Name, plan)
	}
	if err == nil && len(plan.GetChanges()) > 0 {
		return &verb.Exit{Code: verb.ExitChanges}
	}
	return err
}

var marks = map[gantryv1.Change_Action]struct{ sign, word, colour string }{
	gantryv1.Change_ACTION_CREATE: {"+", "create", terminal.Green},
	gantryv1.Change_ACTION_UPDATE: {"~", "update", terminal.Yellow},
	gantryv1.Change_ACTION_REMOVE: {"-", "remove", terminal.Red},
}

func (s *session) printPlan(app string, plan *gantryv1.PlanResponse) {
	if len(plan.GetChanges()) == 0 {
		s.Put("app %q is as the file says, nothing to change", app)
		return
	}
	style := terminal.Style{On: terminal.Is(s.Out) && s.Style().On}
	for _, c := range plan.GetChanges() {
		m := marks[c.GetAction()]
		fmt.Fprintln(s.Out, style.Paint(m.colour, m.sign+" "+verb.Line("%s %s", c.GetKind(), c.GetKey())))
		for _, f := range c.GetFields() {
			fmt.Fprintln(s.Out, "    "+field(f))
		}
	}
	s.Put("%s", summary(plan.GetChanges()))
	if plan.GetIndex() != 0 {
		s.Put("index %d (gantry up --check-index %d)", plan.GetIndex(), plan.GetIndex())
	}
}

func field(f *gantryv1.FieldChange) string {
	switch {
	case f.GetOld() == "":
		return verb.Line("%s: + %s", f.GetPath(), f.GetNew())
	case f.GetNew() == "":
		return verb.Line("%s: - %s", f.GetPath(), f.GetOld())
	}
	return verb.Line("%s: %s -> %s", f.GetPath(), f.GetOld(), f.GetNew())
}

// summary counts changes: "2 to create, 1 to update".
func summary(changes []*gantryv1.Change) string {
	n := map[gantryv1.Change_Action]int{}
	for _, c := range changes {
		n[c.GetAction()]++
	}
	var parts []string
	for _, a := range []gantryv1.Change_Action{gantryv1.Change_ACTION_CREATE, gantryv1.Change_ACTION_UPDATE, gantryv1.Change_ACTION_REMOVE} {
		if n[a] > 0 {
			parts = append(parts, fmt.Sprintf("%d to %s", n[a], marks[a].word))
		}
	}
	return strings.Join(parts, ", ")
}

func (s *session) downCommand() *cobra.Command {
	var volumes, orphans bool
	var timeout, rmi string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove the app's containers and networks; volumes stay unless -v is given",
		Args:  verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit, err := verb.Timeout(timeout)
			if err != nil {
				return err
			}
			leave, err := s.imagesToRemove(cmd, rmi)
			if err != nil {
				return err
			}
			if err := s.down(cmd.Context(), volumes, limit); err != nil {
				return err
			}
			return s.removeImages(cmd.Context(), leave)
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove the app's volumes with all data in them")
	cmd.Flags().StringVar(&rmi, "rmi", "", "remove images that nothing else uses: local (those built for the app), or all of the file")
	cmd.Flags().BoolVar(&orphans, "remove-orphans", true, "services that the file no longer has go in any case")
	cmd.Flags().StringVarP(&timeout, "timeout", "t", "", "give up waiting after this time (exit code 1)")
	return cmd
}

var errDownTimeout = errors.New("the time to wait is over")

// await waits for an app with this session's display; Ctrl-C ends the waiting only.
func (s *session) await(ctx context.Context, w appwait.Wait) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	waiter := &appwait.Waiter{Client: c, Environment: s.Environment, Say: s.Say, NewLive: s.Live, Style: s.Style()}
	if err = waiter.Await(ctx, w); errors.Is(err, appwait.ErrPaused) {
		return &verb.Exit{Code: verb.ExitOK}
	}
	if errors.Is(err, appwait.ErrStopped) {
		return &verb.Exit{Code: verb.ExitInterrupted}
	}
	return err
}

func (s *session) down(ctx context.Context, volumes bool, timeout time.Duration) error {
	app, err := s.App(ctx)
	if err != nil {
		return err
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	// The daemon answers when all is gone; what was asked for goes on if nobody waits.
	asked, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() { cancel(errDownTimeout) })
		defer timer.Stop()
	}
	_, err = client.Call(asked, c.Apps.Remove, &gantryv1.RemoveAppRequest{Environment: s.Environment, App: app, Volumes: volumes})
	if errors.Is(context.Cause(asked), errDownTimeout) {
		return fault.New(fault.Timeout, "app %q is not gone after %s", app, timeout).WithHint("it goes on ending; see gantry ps -A")
	}
	if ctx.Err() != nil {
		s.Say("stopped waiting; app %q goes on ending", app)
		return &verb.Exit{Code: verb.ExitInterrupted}
	}
	if fault.Is(err, fault.NotFound) {
		s.Say("app %q is not there, nothing to remove", app)
		return nil
	}
	if err != nil {
		return err
	}
	w := appwait.Wait{App: app, Timeout: timeout, Work: "ending", Done: func(v []*gantryv1.ServiceView) bool { return len(v) == 0 }}
	if err := s.await(ctx, w); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	s.Say("app %q is removed", app)
	return nil
}
