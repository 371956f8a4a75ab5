package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/builder"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/images"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/fault"
)

// buildImage runs one build with this session's display.
func (s *session) buildImage(ctx context.Context, spec *gantryv1.BuildSpec, job builder.Job) (*gantryv1.Image, error) {
	c, err := s.Client()
	if err != nil {
		return nil, err
	}
	auths := func(ctx context.Context) ([]*gantryv1.RegistryAuth, error) { return images.Auths(ctx, s.Session) }
	b := &builder.Builder{Client: c, Auths: auths, Out: s.Err, NewLive: s.Live, Style: s.Style(), Warn: s.Warn, Environment: s.Environment}
	return b.Build(ctx, spec, job)
}

type buildFlags struct {
	file                     []string
	tags, args, labels       []string
	secrets, ssh, cacheFrom  []string
	cacheTo, hosts, contexts []string
	platforms                []string
	target, network, shm     string
	noCache, pull, quiet     bool
	push                     bool
	progress, iidfile        string
}

func (s *session) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [SERVICE...] | build [-t NAME] [-f DOCKERFILE] DIRECTORY",
		Short: "Build the images of the app's services, or a directory with a Dockerfile",
		Long: `Without arguments, or with names of services, build builds the services of the Compose file.
With -t, or with a path like ".", "./app" or "-" (a tar stream on standard input), it builds a directory.
-f names Compose files in the first case and the Dockerfile in the second.`,
		Args: verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch f.progress {
			case "plain":
				s.Plain = true
			case "auto":
			default:
				return verb.Usage(cmd, "progress %q is neither auto nor plain", f.progress)
			}
			if len(args) == 1 && (len(f.tags) > 0 || looksLikePath(args[0])) {
				return s.buildDirectory(cmd.Context(), f, args[0])
			}
			return s.buildServices(cmd.Context(), f, args)
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.file, "file", "f", nil, "Compose file, or the Dockerfile when building a directory")
	fs.StringVarP(&s.Compose.Project, "project-name", "p", "", "name of the app")
	fs.StringVar(&s.Compose.Dir, "project-directory", "", "directory that paths in the file are relative to")
	fs.StringArrayVar(&s.Compose.Profiles, "profile", nil, "enable a profile")
	fs.StringArrayVar(&s.Compose.EnvFiles, "env-file", nil, "read variables from this file instead of .env")
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
	fs.BoolVar(&f.push, "push", false, "push the result to its registry by all its names")
	fs.StringVar(&f.progress, "progress", "auto", "how progress is shown: auto, or plain lines")
	fs.StringVar(&f.iidfile, "iidfile", "", "write the digest to this file; a directory only")
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
		spec.Dockerfile = builder.Under(here, f.file[0])
	}
	if dir == "-" && slices.Equal(f.file, []string{"-"}) {
		return fault.New(fault.Invalid, "standard input cannot be both the context and the Dockerfile").WithHint("gantry build -t NAME - < Dockerfile needs no -f")
	}
	job := builder.Job{Title: dir, Tags: f.tags, Dir: here, Quiet: f.quiet}
	if slices.Equal(f.file, []string{"-"}) && dir != "-" {
		if spec.DockerfileInline, err = dockerfile(s.In); err != nil {
			return err
		}
		spec.Dockerfile = ""
	}
	switch {
	case dir == "-":
		job.Title, spec.Context, spec.Dockerfile = "standard input", "", strings.Join(f.file, "")
		if job.Tar, spec.DockerfileInline, err = streamed(s.In, len(f.file) > 0); err != nil {
			return err
		}
	case !builder.IsRemote(dir):
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return fault.New(fault.NotFound, "%q is not a directory to build", dir).WithHint("gantry build --help")
		}
		if rel, err := filepath.Rel(builder.Under(here, dir), spec.Dockerfile); spec.Dockerfile != "" && err == nil && filepath.IsLocal(rel) {
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
	s.Put("%s", image.GetDigest())
	if f.iidfile != "" {
		if err := os.WriteFile(f.iidfile, []byte(image.GetDigest()), 0o644); err != nil {
			return fault.Wrap(fault.Unavailable, err, "the file for the digest cannot be written")
		}
	}
	return s.pushed(ctx, f, f.tags)
}

// pushed pushes what has been built, if that was asked for.
func (s *session) pushed(ctx context.Context, f buildFlags, names []string) error {
	if !f.push {
		return nil
	}
	if len(names) == 0 {
		return fault.New(fault.Invalid, "an image without a name cannot be pushed").WithHint("name it: -t REGISTRY/NAME:TAG")
	}
	for _, name := range names {
		if _, err := images.Push(ctx, s.Session, name, false, f.quiet); err != nil {
			return err
		}
	}
	return nil
}

// maxDockerfile bounds a Dockerfile that comes on standard input.
const maxDockerfile = 1 << 20

func dockerfile(in io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxDockerfile+1))
	switch {
	case err != nil:
		return "", fault.Wrap(fault.Unavailable, err, "the Dockerfile cannot be read from standard input")
	case len(text) > maxDockerfile:
		return "", fault.New(fault.Invalid, "the Dockerfile on standard input has more than 1 MiB")
	case len(bytes.TrimSpace(text)) == 0:
		return "", fault.New(fault.Invalid, "there is no Dockerfile on standard input").WithHint("gantry build -t NAME - < Dockerfile")
	}
	return string(text), nil
}

// streamed reads what Docker takes on standard input: a context as a tar stream, or a Dockerfile alone.
func streamed(in io.Reader, named bool) (context io.Reader, inline string, err error) {
	buffered := bufio.NewReader(in)
	head, _ := buffered.Peek(512)
	// An archive, compressed or not, begins with a block in which there are zeros.
	if named || bytes.IndexByte(head, 0) >= 0 {
		return buffered, "", nil
	}
	inline, err = dockerfile(buffered)
	var empty bytes.Buffer
	if err == nil {
		err = tar.NewWriter(&empty).Close()
	}
	return &empty, inline, err
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
	if f.iidfile != "" {
		return fault.New(fault.Invalid, "--iidfile is for one image, and these are the app's").WithHint("the digests are on standard output")
	}
	s.Compose.Files = f.file
	p, err := s.Load(ctx)
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
				s.Say("service %q has no build section, nothing to build", name)
			}
			continue
		}
		if err := f.into(svc.GetBuild()); err != nil {
			return err
		}
		tags := append([]string{svc.GetContainer().GetImage()}, svc.GetBuild().GetTags()...)
		image, err := s.buildImage(ctx, svc.GetBuild(), builder.Job{Title: name, Tags: append(tags, f.tags...), Dir: p.Dir, Quiet: f.quiet})
		if err != nil {
			return err
		}
		built++
		s.Put("%s", svc.GetContainer().GetImage()+"@"+image.GetDigest())
		if err := s.pushed(ctx, f, append(tags, f.tags...)); err != nil {
			return err
		}
	}
	if built == 0 && len(names) == 0 {
		s.Say("no service of app %q has a build section, nothing to build", p.Name)
	}
	return nil
}
