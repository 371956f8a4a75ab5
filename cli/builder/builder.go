// Package builder runs one build on the daemon: it sends contexts, secrets and the SSH agent's answers, and shows the
// build's progress.
//
// Fill in a Builder and call Build for each image. It is safe in parallel if its outputs are.
package builder

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
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/progress"
	"github.com/gantryd/gantry/cli/sshagent"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/client"
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

// Builder is who builds, and how it shows.
type Builder struct {
	Client *client.Client
	// Auths gives the credentials of all registries.
	Auths func(context.Context) ([]*gantryv1.RegistryAuth, error)
	// Out is for plain lines; NewLive gives an area to draw on in their place, nil for none.
	Out     io.Writer
	NewLive func() *terminal.Live
	Style   terminal.Style
	// Environment is whose permissions the build has.
	Environment string
	// Warn prints one line, made printable.
	Warn func(format string, args ...any)
}

// Job is what a build needs besides its spec.
type Job struct {
	Title string
	Tags  []string
	// Dir is what relative paths in the spec start from.
	Dir   string
	Quiet bool
	// Tar is a ready context in place of a directory.
	Tar io.Reader
}

// Build runs one build on the daemon and shows it.
func (s *Builder) Build(ctx context.Context, spec *gantryv1.BuildSpec, job Job) (*gantryv1.Image, error) {
	start, err := s.buildStart(ctx, spec, job)
	if err != nil {
		return nil, err
	}
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	group, gctx := errgroup.WithContext(stop)
	stream := &buildStream{BidiStreamForClient: s.Client.Images.Build(gctx)}
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
		err = fault.New(fault.Canceled, "the build of %s was given up", job.Title)
	}
	return image, err
}

// buildStart reads what the spec refers to on this machine.
func (s *Builder) buildStart(ctx context.Context, spec *gantryv1.BuildSpec, job Job) (*gantryv1.BuildStart, error) {
	auths, err := s.Auths(ctx)
	if err != nil {
		return nil, err
	}
	start := &gantryv1.BuildStart{Spec: spec, Tags: job.Tags, Auths: auths, Secrets: map[string][]byte{}, Environment: s.Environment}
	for id, from := range spec.GetSecrets() {
		if start.Secrets[id], err = buildSecret(id, from, job.Dir); err != nil {
			return nil, err
		}
	}
	if spec.GetDockerfileInline() != "" {
		start.Dockerfile = []byte(spec.GetDockerfileInline())
		return start, nil
	}
	if path := outsideDockerfile(spec, job); path != "" {
		if start.Dockerfile, err = os.ReadFile(path); err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "the Dockerfile of %s cannot be read", job.Title)
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
	data, err := os.ReadFile(Under(dir, strings.TrimPrefix(from, "file:")))
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "build secret %q cannot be read", id)
	}
	return data, nil
}

// outsideDockerfile gives the path of a Dockerfile that is not part of the context, "" if it is.
func outsideDockerfile(spec *gantryv1.BuildSpec, job Job) string {
	name := spec.GetDockerfile()
	if name == "" || job.Tar != nil || IsRemote(spec.GetContext()) {
		return ""
	}
	root := Under(job.Dir, spec.GetContext())
	path := Under(root, name)
	rel, err := filepath.Rel(root, path)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return ""
	}
	return path
}

// Under resolves a path against a directory.
func Under(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// IsRemote says whether a context is fetched by the builder itself.
func IsRemote(context string) bool {
	for _, prefix := range []string{"http://", "https://", "git://", "git@", "ssh://", "docker-image://", "github.com/"} {
		if strings.HasPrefix(context, prefix) {
			return true
		}
	}
	return false
}

// sendContexts sends the main context and the additional ones, one after the other.
func sendContexts(ctx context.Context, stream *buildStream, spec *gantryv1.BuildSpec, job Job) error {
	w := &chunkWriter{stream: stream, name: "context"}
	switch {
	case job.Tar != nil:
		if _, err := io.Copy(w, job.Tar); err != nil {
			return err
		}
	case !IsRemote(spec.GetContext()):
		if err := buildcontext.Pack(ctx, Under(job.Dir, spec.GetContext()), spec.GetDockerfile(), w); err != nil {
			return err
		}
	}
	if err := w.end(); err != nil {
		return err
	}
	for name, from := range spec.GetAdditionalContexts() {
		if IsRemote(from) || strings.HasPrefix(from, "target:") || strings.HasPrefix(from, "oci-layout:") {
			continue
		}
		w := &chunkWriter{stream: stream, name: name}
		if err := buildcontext.Pack(ctx, Under(job.Dir, from), "", w); err != nil {
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
func (s *Builder) showBuild(ctx context.Context, stream *buildStream, job Job, agent *sshagent.Agent) (*gantryv1.Image, error) {
	out := s.Out
	live := s.NewLive()
	if job.Quiet {
		out, live = io.Discard, nil
	}
	show := progress.NewBuild(out, job.Title, live, s.Style)
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
	if !job.Quiet {
		for _, w := range show.Warnings() {
			s.Warn("%s", w)
		}
	}
	if err == nil && image == nil {
		err = fault.New(fault.Internal, "the build of %s ended without an image", job.Title)
	}
	return image, err
}
