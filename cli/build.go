package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/progress"
	"github.com/gantryd/gantry/cli/sshagent"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/buildcontext"
)

// buildStream lets the contexts and the SSH agent send at the same time.
type buildStream struct {
	*connect.BidiStreamForClient[gantryv1.BuildInput, gantryv1.BuildEvent]
	mu sync.Mutex
}

// Send sends one message. It is safe in parallel.
func (b *buildStream) Send(in *gantryv1.BuildInput) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.BidiStreamForClient.Send(in)
}

// buildJob is what a build needs besides its spec.
type buildJob struct {
	title string
	tags  []string
	// dir is what relative paths in the spec start from.
	dir   string
	quiet bool
	// tar is a ready context in place of a directory.
	tar io.Reader
}

// buildImage runs one build on the daemon and shows it.
func (s *session) buildImage(ctx context.Context, spec *gantryv1.BuildSpec, job buildJob) (*gantryv1.Image, error) {
	start, err := s.buildStart(ctx, spec, job)
	if err != nil {
		return nil, err
	}
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	group, gctx := errgroup.WithContext(stop)
	stream := &buildStream{BidiStreamForClient: c.Images.Build(gctx)}
	if err := stream.Send(&gantryv1.BuildInput{Input: &gantryv1.BuildInput_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	agent := sshagent.New(func(d *gantryv1.SSHData) error {
		return stream.Send(&gantryv1.BuildInput{Input: &gantryv1.BuildInput_Ssh{Ssh: d}})
	}, spec.GetSsh())
	var image *gantryv1.Image
	group.Go(func() error {
		defer cancel()
		var err error
		image, err = s.showBuild(gctx, stream, job, agent)
		return err
	})
	group.Go(func() error {
		err := sendContexts(gctx, stream, spec, job)
		// A server that ended the build has said why on the other side of the stream.
		if errors.Is(err, io.EOF) || gctx.Err() != nil {
			return nil
		}
		return err
	})
	group.Go(func() error { return agent.Run(gctx) })
	err = group.Wait()
	if err == nil && ctx.Err() != nil {
		err = fault.New(fault.Canceled, "the build of %s was given up", job.title)
	}
	return image, err
}

// buildStart reads what the spec refers to on this machine.
func (s *session) buildStart(ctx context.Context, spec *gantryv1.BuildSpec, job buildJob) (*gantryv1.BuildStart, error) {
	auths, err := s.auths(ctx)
	if err != nil {
		return nil, err
	}
	start := &gantryv1.BuildStart{Spec: spec, Tags: job.tags, Auths: auths, Secrets: map[string][]byte{}}
	for id, from := range spec.GetSecrets() {
		if start.Secrets[id], err = buildSecret(id, from, job.dir); err != nil {
			return nil, err
		}
	}
	if spec.GetDockerfileInline() != "" {
		start.Dockerfile = []byte(spec.GetDockerfileInline())
		return start, nil
	}
	if path := outsideDockerfile(spec, job); path != "" {
		if start.Dockerfile, err = os.ReadFile(path); err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "the Dockerfile of %s cannot be read", job.title)
		}
	}
	return start, nil
}

func buildSecret(id, from, dir string) ([]byte, error) {
	if name, ok := strings.CutPrefix(from, "env:"); ok {
		value, set := os.LookupEnv(name)
		if !set {
			return nil, fault.New(fault.NotFound, "build secret %q comes from variable %s, which is not set", id, name).
				WithHint("export %s=…", name)
		}
		return []byte(value), nil
	}
	data, err := os.ReadFile(under(dir, strings.TrimPrefix(from, "file:")))
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "build secret %q cannot be read", id)
	}
	return data, nil
}

// outsideDockerfile gives the path of a Dockerfile that is not part of the context, "" if it is.
func outsideDockerfile(spec *gantryv1.BuildSpec, job buildJob) string {
	name := spec.GetDockerfile()
	if name == "" || job.tar != nil || isRemote(spec.GetContext()) {
		return ""
	}
	root := under(job.dir, spec.GetContext())
	path := under(root, name)
	rel, err := filepath.Rel(root, path)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return ""
	}
	return path
}

func under(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// isRemote says whether a context is fetched by the builder itself.
func isRemote(context string) bool {
	for _, prefix := range []string{"http://", "https://", "git://", "git@", "ssh://", "docker-image://", "github.com/"} {
		if strings.HasPrefix(context, prefix) {
			return true
		}
	}
	return false
}

// sendContexts sends the main context and the additional ones, one after the other.
func sendContexts(ctx context.Context, stream *buildStream, spec *gantryv1.BuildSpec, job buildJob) error {
	w := &chunkWriter{stream: stream, name: "context"}
	switch {
	case job.tar != nil:
		if _, err := io.Copy(w, job.tar); err != nil {
			return err
		}
	case !isRemote(spec.GetContext()):
		if err := buildcontext.Pack(ctx, under(job.dir, spec.GetContext()), spec.GetDockerfile(), w); err != nil {
			return err
		}
	}
	if err := w.end(); err != nil {
		return err
	}
	for name, from := range spec.GetAdditionalContexts() {
		if isRemote(from) || strings.HasPrefix(from, "target:") || strings.HasPrefix(from, "oci-layout:") {
			continue
		}
		w := &chunkWriter{stream: stream, name: name}
		if err := buildcontext.Pack(ctx, under(job.dir, from), "", w); err != nil {
			return err
		}
		if err := w.end(); err != nil {
			return err
		}
	}
	return (&chunkWriter{stream: stream}).end() // all contexts are sent
}

type chunkWriter struct {
	stream *buildStream
	name   string
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	for chunk := range slices.Chunk(p, 256<<10) {
		if err := w.send(&gantryv1.BuildInput_Chunk{Name: w.name, Data: chunk}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (w *chunkWriter) end() error { return w.send(&gantryv1.BuildInput_Chunk{Name: w.name, End: true}) }

func (w *chunkWriter) send(c *gantryv1.BuildInput_Chunk) error {
	return w.stream.Send(&gantryv1.BuildInput{Input: &gantryv1.BuildInput_Chunk_{Chunk: c}})
}

// showBuild reads events until the build ends.
func (s *session) showBuild(ctx context.Context, stream *buildStream, job buildJob, agent *sshagent.Agent) (*gantryv1.Image, error) {
	out := io.Writer(s.err)
	live := s.live()
	if job.quiet {
		out, live = io.Discard, nil
	}
	show := progress.NewBuild(out, job.title, live, s.style())
	events := make(chan *gantryv1.BuildEvent)
	var image *gantryv1.Image
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(events)
		for {
			e, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			switch {
			case e.GetImage() != nil:
				image = e.GetImage()
			case e.GetSsh() != nil:
				if err := agent.Receive(gctx, e.GetSsh()); err != nil {
					return err
				}
			default:
				events <- e
			}
		}
	})
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for open := true; open; {
		var e *gantryv1.BuildEvent
		select {
		case e, open = <-events:
			if open {
				show.Event(e)
			}
		case <-tick.C:
			show.Tick()
		}
	}
	err := group.Wait()
	show.Close(err)
	if !job.quiet {
		for _, w := range show.Warnings() {
			s.warn("%s", w)
		}
	}
	if err == nil && image == nil {
		err = fault.New(fault.Internal, "the build of %s ended without an image", job.title)
	}
	return image, err
}

type buildFlags struct {
	file                     []string
	tags, args, labels       []string
	secrets, ssh, cacheFrom  []string
	cacheTo, hosts, contexts []string
	platforms                []string
	target, network, shm     string
	noCache, pull, quiet     bool
}

func (s *session) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [SERVICE...] | build [-t NAME] [-f DOCKERFILE] DIRECTORY",
		Short: "Build the images of the app's services, or a directory with a Dockerfile",
		Long: `Without arguments, or with names of services, build builds the services of the Compose file.
With -t, or with a path like ".", "./app" or "-" (a tar stream on standard input), it builds a directory.
-f names Compose files in the first case and the Dockerfile in the second.`,
		Args: between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (len(f.tags) > 0 || looksLikePath(args[0])) {
				return s.buildDirectory(cmd.Context(), f, args[0])
			}
			return s.buildServices(cmd.Context(), f, args)
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.file, "file", "f", nil, "Compose file, or the Dockerfile when building a directory")
	fs.StringVarP(&s.compose.project, "project-name", "p", "", "name of the app")
	fs.StringVar(&s.compose.dir, "project-directory", "", "directory that paths in the file are relative to")
	fs.StringArrayVar(&s.compose.profiles, "profile", nil, "enable a profile")
	fs.StringArrayVar(&s.compose.envFiles, "env-file", nil, "read variables from this file instead of .env")
	fs.StringArrayVarP(&f.tags, "tag", "t", nil, "name of the result")
	fs.StringArrayVar(&f.args, "build-arg", nil, "set a build argument: NAME=VALUE, or NAME to pass on")
	fs.StringArrayVar(&f.labels, "label", nil, "set a label of the image: NAME=VALUE")
	fs.StringArrayVar(&f.secrets, "secret", nil, "give a secret: id=NAME,src=FILE or id=NAME,env=VARIABLE")
	fs.StringArrayVar(&f.ssh, "ssh", nil, "forward an SSH agent: default, or ID=SOCKET")
	fs.StringArrayVar(&f.cacheFrom, "cache-from", nil, "cache to read")
	fs.StringArrayVar(&f.cacheTo, "cache-to", nil, "cache to write")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "add an entry to /etc/hosts: NAME:ADDRESS")
	fs.StringArrayVar(&f.contexts, "build-context", nil, "additional context: NAME=DIRECTORY")
	fs.StringSliceVar(&f.platforms, "platform", nil, "platform of the result")
	fs.StringVar(&f.target, "target", "", "stage to build")
	fs.StringVar(&f.network, "network", "", "network of RUN steps: default, none, host")
	fs.StringVar(&f.shm, "shm-size", "", "size of /dev/shm")
	fs.BoolVar(&f.noCache, "no-cache", false, "run every step")
	fs.BoolVar(&f.pull, "pull", false, "look for newer base images")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print the digest only")
	return cmd
}

// looksLikePath tells a directory from the name of a service, which may be the name of a directory too.
func looksLikePath(arg string) bool {
	return arg == "-" || arg == "." || arg == ".." || strings.ContainsRune(arg, '/')
}

func (s *session) buildDirectory(ctx context.Context, f buildFlags, dir string) error {
	spec := &gantryv1.BuildSpec{Context: dir}
	if len(f.file) > 1 {
		return fault.New(fault.Invalid, "a directory is built from one Dockerfile, not %d", len(f.file))
	}
	here, err := os.Getwd()
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the current directory is gone")
	}
	if len(f.file) == 1 {
		// Docker's rule: -f is relative to where one stands, not to the context.
		spec.Dockerfile = under(here, f.file[0])
	}
	job := buildJob{title: dir, tags: f.tags, dir: here, quiet: f.quiet}
	switch {
	case dir == "-":
		job.tar, job.title, spec.Context, spec.Dockerfile = s.in, "standard input", "", strings.Join(f.file, "")
	case !isRemote(dir):
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return fault.New(fault.NotFound, "%q is not a directory to build", dir).WithHint("gantry build --help")
		}
		if rel, err := filepath.Rel(under(here, dir), spec.Dockerfile); spec.Dockerfile != "" && err == nil && filepath.IsLocal(rel) {
			spec.Dockerfile = rel
		}
	}
	if err := f.into(spec); err != nil {
		return err
	}
	image, err := s.buildImage(ctx, spec, job)
	if err != nil {
		return err
	}
	s.put("%s", image.GetDigest())
	return nil
}

// into puts the flags over a spec.
func (f *buildFlags) into(spec *gantryv1.BuildSpec) error {
	for _, a := range f.args {
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		put(&spec.Args, name, value)
	}
	for _, v := range []struct {
		to   *map[string]string
		from []string
		what string
	}{{&spec.Labels, f.labels, "label"}, {&spec.AdditionalContexts, f.contexts, "build context"}} {
		for _, e := range v.from {
			name, value, ok := strings.Cut(e, "=")
			if !ok || name == "" {
				return fault.New(fault.Invalid, "%s %q is not NAME=VALUE", v.what, e)
			}
			put(v.to, name, value)
		}
	}
	for _, e := range f.secrets {
		id, from, err := secretFlag(e)
		if err != nil {
			return err
		}
		put(&spec.Secrets, id, from)
	}
	spec.Ssh = append(spec.Ssh, f.ssh...)
	spec.CacheFrom = append(spec.CacheFrom, f.cacheFrom...)
	spec.CacheTo = append(spec.CacheTo, f.cacheTo...)
	spec.ExtraHosts = append(spec.ExtraHosts, f.hosts...)
	spec.NoCache = spec.NoCache || f.noCache
	spec.Pull = spec.Pull || f.pull
	if len(f.platforms) > 0 {
		spec.Platforms = f.platforms
	}
	if f.target != "" {
		spec.Target = f.target
	}
	if f.network != "" {
		spec.Network = f.network
	}
	if f.shm != "" {
		size, err := human.ParseSize(f.shm)
		if err != nil {
			return err
		}
		spec.ShmSize = size
	}
	return nil
}

func put(to *map[string]string, name, value string) {
	if *to == nil {
		*to = map[string]string{}
	}
	(*to)[name] = value
}

// secretFlag reads id=NAME,src=FILE or id=NAME,env=VARIABLE; a bare id is a variable if set, else a file.
func secretFlag(s string) (id, from string, err error) {
	for _, field := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "id":
			id = value
		case "src", "source":
			from = "file:" + value
		case "env":
			from = "env:" + value
		case "type":
		default:
			return "", "", fault.New(fault.Invalid, "secret %q has an unknown field %q", s, key).WithHint("write it like id=token,src=token.txt")
		}
	}
	if id == "" {
		return "", "", fault.New(fault.Invalid, "secret %q has no id", s).WithHint("write it like id=token,src=token.txt")
	}
	if from == "" {
		from = "file:" + id
		if _, ok := os.LookupEnv(id); ok {
			from = "env:" + id
		}
	}
	return id, from, nil
}

func (s *session) buildServices(ctx context.Context, f buildFlags, names []string) error {
	s.compose.files = f.file
	p, err := s.load(ctx)
	if err != nil {
		if fault.Is(err, fault.NotFound) && len(f.file) == 0 && len(names) == 0 {
			return fault.Wrap(fault.NotFound, err, "nothing to build").WithHint("gantry build -t NAME . builds a directory")
		}
		return err
	}
	chosen, err := closure(p, nil)
	if len(names) > 0 {
		_, err = closure(p, names)
		chosen = names
	}
	if err != nil {
		return err
	}
	built := 0
	for _, name := range chosen {
		svc := p.Spec.GetServices()[name]
		if svc.GetBuild() == nil {
			if len(names) > 0 {
				s.say("service %q has no build section, nothing to build", name)
			}
			continue
		}
		if err := f.into(svc.GetBuild()); err != nil {
			return err
		}
		tags := append([]string{svc.GetContainer().GetImage()}, svc.GetBuild().GetTags()...)
		image, err := s.buildImage(ctx, svc.GetBuild(), buildJob{title: name, tags: append(tags, f.tags...), dir: p.Dir, quiet: f.quiet})
		if err != nil {
			return err
		}
		built++
		s.put("%s", svc.GetContainer().GetImage()+"@"+image.GetDigest())
	}
	if built == 0 && len(names) == 0 {
		s.say("no service of app %q has a build section, nothing to build", p.Name)
	}
	return nil
}
