package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/converse"
	"github.com/gantryd/gantry/cli/images"
	"github.com/gantryd/gantry/cli/runflags"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

type runOptions struct {
	spec       runflags.Flags
	name, app  string
	cidfile    string
	detachKeys string
	detach, rm bool
	sigProxy   bool
	quiet      bool
}

func (s *session) runCommand() *cobra.Command {
	f := &runOptions{}
	cmd := &cobra.Command{
		Use:         "run [OPTIONS] IMAGE [COMMAND...] | run --rootfs DIR [OPTIONS] COMMAND...",
		Short:       "Run a command in a new container",
		Annotations: map[string]string{verb.AnnotationProcess: "yes"},
		Args:        cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			image, command := "", args
			if cmd.Flag("rootfs").Value.String() == "" {
				if len(args) == 0 {
					return verb.Usage(cmd, "run needs an image, or --rootfs")
				}
				image, command = args[0], args[1:]
			} else if len(args) == 0 {
				return verb.Usage(cmd, "run --rootfs needs a command")
			}
			return processError(s.run(cmd.Context(), f, image, command))
		},
	}
	fs := cmd.Flags()
	// What follows the image belongs to the command.
	fs.SetInterspersed(false)
	f.spec.Register(fs)
	fs.StringVar(&f.name, "name", "", "name of the container")
	fs.StringVar(&f.app, "app", "", "join the networks of this app")
	fs.BoolVarP(&f.detach, "detach", "d", false, "print the ID and leave it running")
	fs.BoolVar(&f.rm, "rm", false, "remove the container when its process has ended")
	fs.StringVar(&f.cidfile, "cidfile", "", "write the ID to this file")
	fs.BoolVar(&f.sigProxy, "sig-proxy", true, "pass signals on to the process")
	fs.StringVar(&f.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave the process alone")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress of the pull")
	return cmd
}

func (s *session) run(ctx context.Context, f *runOptions, image string, command []string) error {
	here, err := os.Getwd()
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the current directory is gone")
	}
	spec, err := f.spec.Spec(image, command, runflags.Place{Dir: here, Environment: s.Environment, Lookup: os.LookupEnv})
	if err != nil {
		return err
	}
	if err := s.checkTerminal(spec.GetTty(), spec.GetStdinOpen(), f.detach); err != nil {
		return err
	}
	keys, err := converse.DetachKeys(f.detachKeys)
	if err != nil {
		return err
	}
	if image != "" {
		if spec.ImageDigest, err = images.Pull(ctx, s.Session, image, spec.GetPlatform(), spec.GetPullPolicy(), f.quiet); err != nil {
			return s.meantService(ctx, image, err)
		}
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	if f.spec.PublishesAll() {
		exposed, err := s.exposed(ctx, c, spec)
		if err != nil {
			return err
		}
		if err := f.spec.PublishExposed(spec, exposed); err != nil {
			return err
		}
	}
	made, err := client.Call(ctx, c.Instances.Create, &gantryv1.CreateInstanceRequest{
		Environment: s.Environment, Name: f.name, Spec: spec, AutoRemove: f.rm, WaitAttach: !f.detach,
		Labels: spec.GetLabels(), App: f.app,
	})
	if err != nil {
		return err
	}
	if f.cidfile != "" {
		if err := writeNew(f.cidfile, made.GetId()); err != nil {
			return err
		}
	}
	if f.detach {
		return s.started(ctx, made.GetId())
	}
	err = s.runAttached(ctx, f, made.GetId(), spec, keys)
	if e, ok := errors.AsType[*verb.Exit](err); ok && e.Code == exitKilled && e.Cause == nil && s.outOfMemory(ctx, made.GetId()) {
		e.Cause = fault.New(fault.Exhausted, "%s was killed: it used more memory than its limit", cmp.Or(made.GetName(), made.GetId())).
			WithHint("give it more with --memory; gantry stats shows what it uses")
	}
	return err
}

// meantService adds to the failure to get an image that there is a service by that name, for those who know Compose's run.
func (s *session) meantService(ctx context.Context, image string, err error) error {
	if !s.HasFile() {
		return err
	}
	p, loadErr := s.Load(ctx)
	if loadErr != nil || p.Spec.GetServices()[image] == nil {
		return err
	}
	return fault.Wrap(fault.KindOf(err), err, "run takes an image, and %q is a service of the Compose file here", image).
		WithHint("gantry exec %s COMMAND runs in its container; gantry run --app %s %s COMMAND makes one beside it", image, p.Name, p.Spec.GetServices()[image].GetContainer().GetImage())
}

// exposed lists the ports that an image names.
func (s *session) exposed(ctx context.Context, c *client.Client, spec *gantryv1.ContainerSpec) ([]string, error) {
	if spec.GetImage() == "" {
		return nil, nil
	}
	got, err := client.Call(ctx, c.Images.Inspect, &gantryv1.InspectImageRequest{Image: spec.GetImage(), Platform: spec.GetPlatform()})
	if err != nil {
		return nil, err
	}
	var config struct {
		Config struct{ ExposedPorts map[string]struct{} }
	}
	if err := json.Unmarshal(got.GetConfig(), &config); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the configuration of image %q cannot be read", spec.GetImage()).WithHint("pull or build it again")
	}
	return slices.Collect(maps.Keys(config.Config.ExposedPorts)), nil
}

func writeNew(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fault.Wrap(fault.Exists, err, "the file for the ID cannot be made")
	}
	_, err = file.WriteString(text)
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *session) runAttached(ctx context.Context, f *runOptions, id string, spec *gantryv1.ContainerSpec, keys []byte) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	calm := ctx
	if f.sigProxy {
		calm = context.WithoutCancel(ctx)
	}
	talk := &converse.Conversation{
		In: s.In, Out: s.Out, Err: s.Err, Stream: c.Instances.Attach(calm), Tty: spec.GetTty(), Stdin: spec.GetStdinOpen(), Signals: f.sigProxy && !spec.GetTty(),
	}
	if spec.GetTty() && spec.GetStdinOpen() {
		talk.Detach = keys
	}
	talk.Probe = func(ctx context.Context) error { return s.startFailure(ctx, id) }
	code, err := talk.Talk(calm, &gantryv1.ExecStart{Target: s.Target("", id)})
	if errors.Is(err, converse.ErrDetached) {
		s.Apart("detached; come back with: gantry attach %s", id)
		return nil
	}
	if err != nil {
		if f.rm {
			// What never started does not go by itself.
			_, _ = client.Call(context.WithoutCancel(ctx), c.Instances.Remove, &gantryv1.RemoveInstanceRequest{Target: s.Target("", id), Force: true, Volumes: true})
		}
		return err
	}
	return exitWith(code)
}

// exitKilled is the exit code of a process that SIGKILL has ended.
const exitKilled = 137

// outOfMemory reports whether a container whose process was killed had used all the memory it may. One that is removed
// already has left its events.
func (s *session) outOfMemory(ctx context.Context, id string) bool {
	// The stream may be ahead of the status.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	c, err := s.Client()
	if err != nil {
		return false
	}
	for {
		v, err := client.Call(ctx, c.Instances.Inspect, s.Target("", id))
		if fault.Is(err, fault.NotFound) {
			return s.hadEvent(ctx, c, id, "oom")
		}
		if err != nil || v.GetStatus().GetOomKilled() {
			return err == nil
		}
		switch v.GetStatus().GetPhase() {
		case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_FAILED, gantryv1.InstanceStatus_PHASE_RESTARTING:
			return false
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}

// hadEvent looks through what has happened to an instance lately.
func (s *session) hadEvent(ctx context.Context, c *client.Client, id, action string) (found bool) {
	now := time.Now()
	req := &gantryv1.EventsRequest{Environment: s.Environment, Since: timestamppb.New(now.Add(-time.Minute)), Until: timestamppb.New(now)}
	_ = client.Each(ctx, c.Instances.Events, req, func(e *gantryv1.Event) error {
		found = found || e.GetKey() == id && e.GetAction() == action
		return nil
	})
	return found
}

// startFailure looks after a container whose process was asked for, and returns why it cannot run. A container that
// runs or has run needs no looking after: its stream tells how it ends.
func (s *session) startFailure(ctx context.Context, id string) error {
	c, err := s.Client()
	if err != nil {
		return nil
	}
	for {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
		v, err := client.Call(ctx, c.Instances.Inspect, s.Target("", id))
		switch st := v.GetStatus(); {
		case fault.Is(err, fault.NotFound):
			// The stream of one that has run ends by itself; give that a moment.
			select {
			case <-time.After(2 * time.Second):
				return fault.New(fault.Conflict, "container %s was removed before its process ran", id).WithHint("see why: gantry events --since 1m")
			case <-ctx.Done():
				return nil
			}
		case st.GetPhase() == gantryv1.InstanceStatus_PHASE_FAILED:
			return notStarted(id, st)
		case st.GetStartedAt() != nil:
			return nil
		}
	}
}

// notStarted says why a process could not be started, naming the container once.
func notStarted(id string, st *gantryv1.InstanceStatus) error {
	why := strings.TrimPrefix(st.GetError(), "container "+id+": ")
	return fault.New(fault.Conflict, "container %s did not start: %s", id, why).WithHint("%s", st.GetHint())
}

// started waits until a detached container's process runs, and prints the ID.
func (s *session) started(ctx context.Context, id string) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	for pause := 4 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		v, err := client.Call(ctx, c.Instances.Inspect, s.Target("", id))
		if fault.Is(err, fault.NotFound) {
			break // It has ended already and removed itself.
		}
		if err != nil {
			return err
		}
		switch st := v.GetStatus(); st.GetPhase() {
		case gantryv1.InstanceStatus_PHASE_FAILED:
			return notStarted(id, st)
		case gantryv1.InstanceStatus_PHASE_RUNNING, gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_RESTARTING,
			gantryv1.InstanceStatus_PHASE_STOPPING, gantryv1.InstanceStatus_PHASE_PAUSED, gantryv1.InstanceStatus_PHASE_REMOVED:
			s.Put("%s", id)
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			s.Put("%s", id)
			return ctx.Err()
		}
	}
	s.Put("%s", id)
	return nil
}

// checkTerminal refuses a terminal session without a terminal, which would hang or garble.
func (s *session) checkTerminal(tty, stdin, detach bool) error {
	if tty && stdin && !detach && !terminal.Is(s.In) {
		return fault.New(fault.Invalid, "standard input is not a terminal").WithHint("leave out -t, or run it from a terminal")
	}
	return nil
}

// exitWith passes a process's exit code on.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &verb.Exit{Code: code}
}

// processError gives failures of Gantry the exit codes that Docker gives them, apart from those of processes.
func processError(err error) error {
	if e, ok := errors.AsType[*verb.Exit](err); ok {
		if e.Code == verb.ExitUsage {
			e.Code = verb.ExitRunFailed
		}
		return e
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || fault.Is(err, fault.Canceled) {
		return &verb.Exit{Code: verb.ExitInterrupted, Cause: err}
	}
	text := strings.ToLower(err.Error())
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	code := verb.ExitRunFailed
	switch {
	// Only what came from starting the process speaks of executables; a missing image stays 125.
	case has("exec") && has("executable file not found", "no such file or directory"):
		code = verb.ExitNotThere
	case has("exec") && has("permission denied", "is a directory", "exec format error"):
		code = verb.ExitNotRunnable
	}
	return &verb.Exit{Code: code, Cause: err}
}

type execOptions struct {
	detach, interactive, tty, privileged bool
	noTty                                bool
	env                                  []string
	envFiles                             []string
	workdir, user                        string
	index                                int
	detachKeys                           string
}

func (s *session) execCommand() *cobra.Command {
	f := &execOptions{}
	cmd := &cobra.Command{
		Use:         "exec [OPTIONS] TARGET COMMAND [ARG...]",
		Short:       "Run a command in a running container",
		Annotations: map[string]string{verb.AnnotationProcess: "yes"},
		Args:        verb.Between(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("tty") && !cmd.Flags().Changed("interactive") && !f.noTty && !f.detach {
				// From one terminal to another, a conversation is what people mean.
				f.tty = terminal.Is(s.In) && terminal.Is(s.Out)
				f.interactive = f.tty
			}
			if f.tty && f.noTty {
				return processError(verb.Usage(cmd, "-t and -T contradict each other"))
			}
			return processError(s.exec(cmd.Context(), f, args[0], args[1:]))
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	s.Compose.Register(fs, "", "")
	fs.BoolVarP(&f.detach, "detach", "d", false, "leave it running")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "connect standard input")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the process a terminal; from a terminal, -i and -t need not be said")
	fs.BoolVarP(&f.noTty, "no-tty", "T", false, "give the process no terminal and no input, from a terminal too")
	fs.BoolVar(&f.privileged, "privileged", false, "give it all capabilities, if the environment permits it")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable: NAME=VALUE, or NAME to pass on")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "read environment variables from a file")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory in the container")
	fs.StringVarP(&f.user, "user", "u", "", "user[:group], names or numbers")
	fs.IntVar(&f.index, "index", 0, "number of the service's container")
	fs.StringVar(&f.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave the process alone")
	return cmd
}

func (s *session) exec(ctx context.Context, f *execOptions, name string, command []string) error {
	app, err := s.MaybeApp(ctx)
	if err != nil {
		return err
	}
	if err := s.checkTerminal(f.tty, f.interactive, f.detach); err != nil {
		return err
	}
	start := &gantryv1.ExecStart{
		Target: s.Target(app, indexed(name, f.index)), Command: command, WorkingDir: f.workdir, User: f.user,
		Privileged: f.privileged, Detach: f.detach,
	}
	if start.Env, err = execEnv(f); err != nil {
		return err
	}
	keys, err := converse.DetachKeys(f.detachKeys)
	if err != nil {
		return err
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	calm := context.WithoutCancel(ctx)
	talk := &converse.Conversation{In: s.In, Out: s.Out, Err: s.Err, Stream: c.Instances.Exec(calm), Tty: f.tty, Stdin: f.interactive, Signals: !f.tty && !f.detach}
	if f.tty && f.interactive {
		talk.Detach = keys
	}
	if f.detach {
		return talk.Start(start)
	}
	code, err := talk.Talk(calm, start)
	if errors.Is(err, converse.ErrDetached) {
		s.Apart("detached; the command goes on")
		return nil
	}
	if err != nil {
		return err
	}
	return exitWith(code)
}

// indexed adds a slot to the name of a service.
func indexed(name string, index int) string {
	if index <= 0 {
		return name
	}
	return verb.Line("%s.%d", name, index)
}

func execEnv(f *execOptions) ([]string, error) {
	var out []string
	for _, path := range f.envFiles {
		entries, err := runflags.EnvFile(path, os.LookupEnv)
		if err != nil {
			return nil, err
		}
		out = append(out, entries...)
	}
	for _, e := range f.env {
		entry, ok, err := runflags.Env(e, os.LookupEnv)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, entry)
		}
	}
	return out, nil
}

func (s *session) attachCommand() *cobra.Command {
	var noStdin, sigProxy, logs bool
	var keyText string
	cmd := &cobra.Command{
		Use:         "attach TARGET",
		Short:       "Connect to a container's process",
		Annotations: map[string]string{verb.AnnotationProcess: "yes"},
		Args:        verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := converse.DetachKeys(keyText)
			if err != nil {
				return processError(err)
			}
			return processError(s.attach(cmd.Context(), args[0], keys, noStdin, sigProxy, logs))
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not connect standard input")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the process")
	cmd.Flags().BoolVar(&logs, "logs", false, "first show what it has printed before")
	cmd.Flags().StringVar(&keyText, "detach-keys", "ctrl-p,ctrl-q", "keys that leave the process alone")
	return cmd
}

func (s *session) attach(ctx context.Context, name string, keys []byte, noStdin, sigProxy, logs bool) error {
	c, app, err := s.reach(ctx)
	if err != nil {
		return err
	}
	v, err := client.Call(ctx, c.Instances.Inspect, s.Target(app, name))
	if err != nil {
		return err
	}
	spec, err := s.specOf(ctx, v)
	if err != nil {
		return err
	}
	calm := ctx
	if sigProxy {
		calm = context.WithoutCancel(ctx)
	}
	talk := &converse.Conversation{
		In: s.In, Out: s.Out, Err: s.Err, Stream: c.Instances.Attach(calm), Tty: spec.GetTty(), Stdin: spec.GetStdinOpen() && !noStdin, Signals: sigProxy && !spec.GetTty(),
	}
	if talk.Stdin && terminal.Is(s.In) {
		talk.Detach = keys
	}
	code, err := talk.Talk(calm, &gantryv1.ExecStart{Target: s.Target("", v.GetInstance().GetMeta().GetKey()), Logs: logs})
	if errors.Is(err, converse.ErrDetached) {
		s.Apart("detached")
		return nil
	}
	if err != nil {
		return err
	}
	return exitWith(code)
}

// specOf finds what an instance runs: its own spec, or its service's.
func (s *session) specOf(ctx context.Context, v *gantryv1.InstanceView) (*gantryv1.ContainerSpec, error) {
	i := v.GetInstance()
	if i.GetSpec() != nil || i.GetApp() == "" {
		return i.GetSpec(), nil
	}
	c, err := s.Client()
	if err != nil {
		return nil, err
	}
	app, err := client.Call(ctx, c.Apps.Get, &gantryv1.GetAppRequest{Environment: i.GetEnvironment(), App: i.GetApp()})
	if err != nil {
		return nil, err
	}
	for _, svc := range app.GetServices() {
		if svc.GetService().GetName() == i.GetService() {
			return svc.GetService().GetSpec().GetContainer(), nil
		}
	}
	return nil, nil
}
