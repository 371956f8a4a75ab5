// Package embedded runs containerd inside this process: only the plug-ins that containers and builds need, never CRI.
//
// Call Start; use Server.Client from this process (no socket, no encoding) and Server.Address from BuildKit or ctr.
// Several servers with different roots live side by side. Shims are processes of their own, so containers outlive the
// server; a server started again on the same root and run directories finds them. The package knows nothing of Gantry.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/boltcheck"
)

// maxSocketDir is the longest directory of shim sockets that leaves room for a socket's name in a Unix address.
const maxSocketDir = 42

// Options says where a server keeps its things. All are required.
type Options struct {
	Root string // persistent: content, snapshots, metadata
	Run  string // volatile: sockets, bundles of running containers
	// Runtime is the program that clears away after a shim, for containers whose record says no other.
	Runtime string
	// Logger gets the server's warnings.
	Logger *slog.Logger
}

// Server is a running containerd.
type Server struct {
	logger  *log.Entry
	client  *containerd.Client
	plugins *plugin.Set
	closers []io.Closer
	grpc    *grpc.Server
	ttrpc   *ttrpc.Server
	address string
	group   errgroup.Group
	cancel  context.CancelFunc
}

// Start brings a server up. Containers of an earlier one on the same directories are found again before it returns.
func Start(ctx context.Context, o Options) (*Server, error) {
	if err := prepareDirectories(o); err != nil {
		return nil, err
	}
	if err := whole(o.Root); err != nil {
		return nil, err
	}
	s := &Server{address: Socket(o.Run), logger: forwardingEntry(o.Logger)}
	ctx, s.cancel = context.WithCancel(s.Context(context.WithoutCancel(ctx)))
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.UnaryInterceptor(s.forwardNamespace), grpc.StreamInterceptor(s.forwardStreamNamespace))
	var err error
	if s.ttrpc, err = ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser())); err != nil {
		s.cancel()
		return nil, fault.Wrap(fault.Internal, err, "containerd: shim listener")
	}
	if err := s.start(ctx, o); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// whole refuses databases on which containerd would panic.
func whole(root string) error {
	for _, name := range []string{"io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"} {
		err := boltcheck.File(filepath.Join(root, name), nil)
		if fault.Is(err, fault.Corrupt) {
			return fault.Wrap(fault.Corrupt, err, "containerd: what it knows of images and containers is damaged").
				WithHint("put the file back from your backup; or remove %s: images are fetched and containers made again, volumes stay", root)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) start(ctx context.Context, o Options) error {
	// Shims found by the task plug-in connect back at once, so their socket listens before the plug-ins start.
	ttrpcListener, err := listen(s.address + ".ttrpc")
	if err != nil {
		return err
	}
	s.closers = append(s.closers, ttrpcListener)
	grpcListener, err := listen(s.address)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, grpcListener)
	if err := s.loadPlugins(ctx, o); err != nil {
		return err
	}
	s.group.Go(func() error { return closedIsFine(s.ttrpc.Serve(ctx, ttrpcListener)) })
	s.group.Go(func() error { return closedIsFine(s.grpc.Serve(grpcListener)) })
	return nil
}

// Socket returns the path of the gRPC socket of a server.
func Socket(run string) string { return filepath.Join(run, "containerd.sock") }

// Client returns a client that calls the server's services directly. Contexts given to it carry a namespace.
func (s *Server) Client() *containerd.Client { return s.client }

// Address returns the path of the gRPC socket.
func (s *Server) Address() string { return s.address }

// Close stops the server. Containers keep running.
func (s *Server) Close() error {
	s.cancel()
	s.grpc.Stop()
	var errs []error
	errs = append(errs, closedIsFine(s.ttrpc.Close()))
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, closedIsFine(c.Close()))
	}
	errs = append(errs, s.group.Wait())
	return errors.Join(errs...)
}

func prepareDirectories(o Options) error {
	sockets := SocketDir(o.Run)
	if len(sockets) > maxSocketDir {
		return fault.New(fault.Invalid, "the run directory %s is too long for Unix sockets (%d bytes, at most %d)",
			o.Run, len(o.Run), maxSocketDir-len("/s")).WithHint("choose a shorter one: gantryd --run /run/NAME")
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{o.Root, 0o700}, {o.Run, 0o711}, {sockets, 0o700}} {
		// Also one that is there: a container's root passes through Run to its file system, and may be nobody here.
		if err := errors.Join(os.MkdirAll(d.path, d.mode), os.Chmod(d.path, d.mode)); err != nil {
			return fault.Wrap(fault.Unavailable, err, "containerd: cannot make %s", d.path)
		}
	}
	return nil
}

func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "containerd: old socket %s", path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "containerd: cannot listen on %s", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func closedIsFine(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, ttrpc.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Services read the namespace of a call from incoming metadata and hand it on as outgoing metadata.
func (s *Server) forwardNamespace(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx = s.Context(ctx)
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	return next(ctx, req)
}

func (s *Server) forwardStreamNamespace(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx := s.Context(stream.Context())
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	return next(srv, &streamWithContext{stream, ctx})
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

// Context returns ctx with the logger that containerd's code looks for in it.
func (s *Server) Context(ctx context.Context) context.Context { return log.WithLogger(ctx, s.logger) }

func forwardingEntry(l *slog.Logger) *log.Entry {
	entry := log.L.Dup()
	entry.Logger = newForwardingLogger(l)
	return entry
}

// pluginError names the plug-in that an error came from.
func pluginError(uri string, err error) error {
	return fault.Wrap(fault.Internal, err, "%s", fmt.Sprintf("containerd: plug-in %s", uri))
}
