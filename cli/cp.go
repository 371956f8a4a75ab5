package cli

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/archive"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

func (s *session) cpCommand() *cobra.Command {
	var follow, owners bool
	var index int
	cmd := &cobra.Command{
		Use:   "cp TARGET:PATH DESTINATION | SOURCE TARGET:PATH",
		Short: "Copy files out of or into a container; - is a tar stream",
		Args:  verb.Between(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, app, err := s.reach(cmd.Context())
			if err != nil {
				return err
			}
			from, fromPath, fromThere := splitRemote(args[0])
			to, toPath, toThere := splitRemote(args[1])
			switch {
			case fromThere && toThere:
				return &verb.Exit{Code: verb.ExitUsage, Cause: fault.New(fault.Invalid, "cp does not copy from container to container").
					WithHint("copy to a directory here in between")}
			case fromThere:
				p := &copying{s: s, c: c, target: s.Target(app, indexed(from, index)), follow: follow, owners: owners}
				return p.out(cmd.Context(), fromPath, args[1])
			case toThere:
				p := &copying{s: s, c: c, target: s.Target(app, indexed(to, index)), follow: follow, owners: owners}
				return p.in(cmd.Context(), args[0], toPath)
			}
			return verb.Usage(cmd, "neither %q nor %q names a container", args[0], args[1])
		},
	}
	s.Compose.Register(cmd.Flags(), "", "p")
	cmd.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what a link points to")
	cmd.Flags().BoolVarP(&owners, "archive", "a", false, "keep user and group numbers")
	cmd.Flags().IntVar(&index, "index", 0, "number of the service's container")
	return cmd
}

// splitRemote tells TARGET:PATH from a path here; a path with a colon is written with ./ or / in front.
func splitRemote(arg string) (target, path string, remote bool) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") || arg == "-" {
		return "", "", false
	}
	target, path, remote = strings.Cut(arg, ":")
	return target, path, remote && target != ""
}

// copying is one cp.
type copying struct {
	s      *session
	c      *client.Client
	target *gantryv1.InstanceTarget
	follow bool
	owners bool
}

// out copies from the container.
func (p *copying) out(ctx context.Context, from, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := p.read(ctx, from)
	defer r.Close()
	if to == "-" {
		_, err := io.Copy(p.s.Out, r)
		return err
	}
	content := strings.HasSuffix(from, "/.")
	info, err := os.Stat(to)
	dir, name := to, path.Base(path.Clean("/"+from))
	switch {
	case err == nil && info.IsDir():
		if content {
			name = "."
		}
	case content:
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fault.Wrap(fault.Denied, err, "the destination cannot be made")
		}
		name = "."
	case strings.HasSuffix(to, "/"):
		return fault.New(fault.NotFound, "there is no directory %s", to).WithHint("mkdir -p %s", to)
	default:
		dir, name = filepath.Split(filepath.Clean(to))
		if dir == "" {
			dir = "."
		}
	}
	return archive.Unpack(r, dir, renamer(name), p.owners)
}

// renamer gives the first part of each name another one; "." removes it.
func renamer(name string) func(string) string {
	return func(old string) string {
		_, rest, below := strings.Cut(old, "/")
		if old == "." {
			return name
		}
		if !below {
			return name
		}
		return path.Join(name, rest)
	}
}

// read gives a path of the container as a tar stream.
func (p *copying) read(ctx context.Context, from string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		err := client.Each(ctx, p.c.Instances.CopyFrom, &gantryv1.CopyFromRequest{Target: p.target, Path: path.Clean("/" + from), FollowLink: p.follow},
			func(chunk *gantryv1.CopyChunk) error {
				_, err := w.Write(chunk.GetData())
				return err
			})
		w.CloseWithError(err)
	}()
	return r
}

// in copies into the container.
func (p *copying) in(ctx context.Context, from, to string) error {
	if from == "-" {
		return p.write(ctx, to, func(w io.Writer) error {
			_, err := io.Copy(w, p.s.In)
			return err
		})
	}
	info, err := os.Stat(from)
	if !p.follow {
		info, err = os.Lstat(from)
	}
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the source cannot be read")
	}
	dir, name, err := p.place(ctx, info.IsDir(), from, to)
	if err != nil {
		return err
	}
	return p.write(ctx, dir, func(w io.Writer) error { return archive.Pack(w, from, name, p.follow, p.owners) })
}

// place finds the directory and the name that a source gets, by Docker's rules.
func (p *copying) place(ctx context.Context, isDir bool, from, to string) (dir, name string, err error) {
	kind, err := p.kind(ctx, to)
	if err != nil {
		return "", "", err
	}
	abs, err := filepath.Abs(from)
	if err != nil {
		return "", "", fault.Wrap(fault.NotFound, err, "the current directory is gone")
	}
	content := isDir && (strings.HasSuffix(from, "/.") || from == ".")
	switch {
	case kind == tar.TypeDir && content:
		return to, ".", nil
	case kind == tar.TypeDir:
		return to, filepath.Base(abs), nil
	case kind != 0 && isDir:
		return "", "", fault.New(fault.Conflict, "%s is a file in the container, and %s is a directory", to, from)
	case kind == 0 && !isDir && strings.HasSuffix(to, "/"):
		return "", "", fault.New(fault.NotFound, "there is no directory %s in the container", to)
	}
	to = path.Clean("/" + to)
	return path.Dir(to), path.Base(to), nil
}

// kind says what is at a path of the container: a tar type, 0 for nothing.
func (p *copying) kind(ctx context.Context, at string) (byte, error) {
	if path.Clean("/"+at) == "/" {
		return tar.TypeDir, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	look := *p
	look.follow = true
	r := look.read(ctx, at)
	defer r.Close()
	// The head of the stream is enough; the rest is never read.
	h, err := tar.NewReader(r).Next()
	if fault.Is(err, fault.NotFound) && missingPath(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return h.Typeflag, nil
}

// missingPath tells a path that is not there from a container that is not.
func missingPath(err error) bool {
	return !strings.Contains(err.Error(), "no instance") && !strings.Contains(err.Error(), "no container")
}

// write sends a tar stream that pack writes.
func (p *copying) write(ctx context.Context, dir string, pack func(io.Writer) error) error {
	// A half archive must not look like a whole one: the stream is cut, not closed, if packing fails.
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	var group errgroup.Group
	stream := p.c.Instances.CopyTo(ctx)
	first := &gantryv1.CopyChunk{Chunk: &gantryv1.CopyChunk_Start{Start: &gantryv1.CopyStart{Target: p.target, Path: dir, Archive: p.owners}}}
	if err := stream.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	r, w := io.Pipe()
	group.Go(func() error {
		err := pack(w)
		w.CloseWithError(err)
		return err
	})
	var sendErr error
	buf := make([]byte, 256<<10)
	for sendErr == nil {
		n, err := io.ReadAtLeast(r, buf, 1)
		if err != nil {
			break
		}
		sendErr = stream.Send(&gantryv1.CopyChunk{Chunk: &gantryv1.CopyChunk_Data{Data: slices.Clone(buf[:n])}})
	}
	r.CloseWithError(sendErr)
	packErr := group.Wait()
	if packErr != nil && sendErr == nil {
		return packErr
	}
	_, err := stream.CloseAndReceive()
	return err
}
