// Package daemon starts gantryd: it reads the configuration, starts every part in order and stops them in reverse.
//
// Parse the command line into Config, then Run. It is the only place that sees everything; it holds no logic of its own.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/agent"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/build"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/discovery"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/kernelcheck"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/network"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/volume"
)

// Config is what gantryd can be told.
type Config struct {
	Root    string // durable files
	Run     string // sockets and what a reboot may lose
	Listen  string // unix://PATH of the API
	Helpers string // directory of runc and the shim; beside gantryd if empty
	Group   string // group that may use the API's socket, besides root

	Bridge       string
	Subnet       netip.Prefix // addresses of this machine's instances
	VirtualIPs   netip.Prefix // addresses of services
	Registry     string       // host:port of the embedded registry; empty for none
	CgroupParent string

	Version *gantryv1.VersionResponse
	Logger  *slog.Logger
}

// daemon collects the parts as they start, for those that need them and for the stop.
type daemon struct {
	Config
	checks  []*gantryv1.KernelCheck
	started time.Time
	stops   []func() // in order of start
}

// Run starts everything and blocks until ctx ends or a part fails. Containers are left running.
func Run(ctx context.Context, c Config) error {
	d := &daemon{Config: c, started: time.Now()}
	defer d.stop()
	return d.run(ctx)
}

func (d *daemon) stop() {
	for i := len(d.stops) - 1; i >= 0; i-- {
		d.stops[i]()
	}
}

func (d *daemon) onStop(what string, fn func() error) {
	d.stops = append(d.stops, func() {
		if err := fn(); err != nil {
			d.Logger.Warn("stopping failed", "part", what, "err", err)
		}
	})
}

func (d *daemon) run(ctx context.Context) error {
	// One daemon per root: everything below assumes it.
	unlock, err := lock(d.Root)
	if err != nil {
		return err
	}
	d.onStop("lock", unlock)
	if err := d.checkKernel(); err != nil {
		return err
	}
	// State first: it says which node this is.
	member, st, err := d.state(ctx)
	if err != nil {
		return err
	}
	// What runs ends before what it uses is stopped, also when a later part cannot start.
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	defer func() {
		cancel()
		_ = group.Wait() // its error has been returned, or is the consequence of another
	}()
	group.Go(func() error { return st.Run(ctx) })
	group.Go(func() error { return memberFailed(ctx, member) })
	sealer, err := d.sealer(st)
	if err != nil {
		return err
	}
	node, err := d.node(ctx, st)
	if err != nil {
		return err
	}
	// The machine: the network before the engine, whose containers may be running already; names need the bridge.
	parts, err := d.parts(ctx)
	if err != nil {
		return err
	}
	group.Go(func() error { return parts.Network.Run(ctx) })
	group.Go(func() error { return parts.Discovery.Run(ctx) })
	// The API listens before anything uses it; requests are served once the handlers are in place.
	api, err := listen(d.Listen, d.Group)
	if err != nil {
		return err
	}
	d.onStop("API", closing(api))
	inner, err := listen("unix://"+filepath.Join(d.Config.Run, "node.sock"), "")
	if err != nil {
		return err
	}
	d.onStop("node API", closing(inner))
	ag, err := agent.New(agent.Options{
		Node: node.Meta.Key, Name: node.Name, Root: filepath.Join(d.Root, "agent"), Info: d.info(node), Logger: d.Logger,
		Server: gantryv1connect.NewNodeSessionServiceClient(unixClient("unix://"+inner.Addr().String()), "http://gantryd"),
	}, parts)
	if err != nil {
		return err
	}
	nodeHandler := ag.Handler(server.HandlerOptions()...)
	srv := server.New(st, localNode(inner.Addr().String(), nodeHandler), server.Options{
		Node: node.Meta.Key, VirtualIPs: d.VirtualIPs, Sealer: sealer, Version: d.Version, Leadership: alone{},
		Guarded: []string{d.Root, d.Config.Run}, Logger: d.Logger,
	})
	group.Go(func() error { return srv.Run(ctx) })
	// Sessions carry secrets: only root's own socket has them.
	between := http.NewServeMux()
	between.Handle("/"+gantryv1connect.NodeSessionServiceName+"/", srv.NodeHandler())
	between.Handle("/", nodeHandler)
	group.Go(func() error { return serve(ctx, inner, between) })
	group.Go(func() error { return serve(ctx, api, srv.Handler()) })
	group.Go(func() error { return rollout.New(st, d.Logger).Run(ctx) })
	group.Go(func() error { return schedule.New(st, d.Logger).Run(ctx) })
	if err := d.registry(ctx, group, parts); err != nil {
		return err
	}
	group.Go(func() error { return ag.Run(ctx) })
	d.Logger.Info("gantryd is ready", "listen", d.Listen, "node", node.Name, "after", time.Since(d.started).Round(time.Millisecond))
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// checkKernel prints what the machine can do and refuses one that lacks what is needed.
func (d *daemon) checkKernel() error {
	checks, err := kernelcheck.Run(d.Root)
	if err != nil {
		return err
	}
	if err := kernelcheck.Table(os.Stderr, checks); err != nil {
		return err
	}
	for _, c := range checks {
		d.checks = append(d.checks, &gantryv1.KernelCheck{
			Feature: c.Feature, Present: c.Present, Required: c.Required, Detail: c.Detail, Cost: c.Cost,
		})
	}
	return kernelcheck.Missing(checks)
}

func (d *daemon) state(ctx context.Context) (*cluster.Member, *store.Store, error) {
	m, err := cluster.Start(ctx, cluster.Options{
		Root: filepath.Join(d.Root, "etcd"), Run: filepath.Join(d.Config.Run, "etcd"), Logger: d.Logger,
	})
	if err != nil {
		return nil, nil, err
	}
	d.onStop("state", func() error { m.Stop(); return nil })
	st, err := store.New(ctx, m.Client(), d.Logger)
	return m, st, err
}

func memberFailed(ctx context.Context, m *cluster.Member) error {
	select {
	case err := <-m.Err():
		return fault.Wrap(fault.Unavailable, err, "the state's server ended")
	case <-ctx.Done():
		return nil
	}
}

// sealer opens the key of the secrets; a new one is made only while nothing is sealed with another.
func (d *daemon) sealer(st *store.Store) (*seal.Box, error) {
	fresh := len(store.List[*gantryv1.Secret](st.Snapshot(), "")) == 0
	return seal.Open(filepath.Join(d.Root, "secrets.key"), fresh)
}

func (d *daemon) parts(ctx context.Context) (agent.Parts, error) {
	var p agent.Parts
	var err error
	p.Network, err = network.Open(ctx, network.Options{
		Root: filepath.Join(d.Root, "network"), Run: filepath.Join(d.Config.Run, "network"), Bridge: d.Bridge,
		Subnet: d.Subnet, VirtualIPs: d.VirtualIPs, Logger: d.Logger,
	})
	if err != nil {
		return p, err
	}
	d.onStop("network", p.Network.Close)
	if p.Discovery, err = discovery.New(discovery.Options{
		Listen: []netip.Addr{p.Network.Gateway()}, Clients: []netip.Prefix{d.Subnet}, Logger: d.Logger,
	}); err != nil {
		return p, err
	}
	if p.Engine, err = engine.Open(ctx, engine.Options{
		Root: filepath.Join(d.Root, "engine"), Run: filepath.Join(d.Config.Run, "engine"), Helpers: d.Helpers,
		CgroupParent: d.CgroupParent, Logger: d.Logger,
	}); err != nil {
		return p, err
	}
	d.onStop("engine", p.Engine.Close)
	if p.Images, err = image.FromClient(p.Engine.Client(), image.Options{
		Root: filepath.Join(d.Root, "images"), Logger: d.Logger,
	}); err != nil {
		return p, err
	}
	if p.Volumes, err = volume.Open(volume.Options{Root: filepath.Join(d.Root, "volumes"), Logger: d.Logger}); err != nil {
		return p, err
	}
	d.onStop("volumes", p.Volumes.Close)
	if err := d.temporary(); err != nil {
		return p, err
	}
	p.Builder, err = build.New(ctx, build.Options{
		Root: filepath.Join(d.Root, "build"), Run: filepath.Join(d.Config.Run, "build"), Client: p.Engine.Client(),
		Runc: filepath.Join(d.Helpers, "runc"), CgroupParent: d.CgroupParent, Logger: d.Logger,
		HostGateway: p.Network.Gateway().String(), Network: buildNetwork{p.Network},
	})
	if err != nil {
		return p, err
	}
	d.onStop("builder", p.Builder.Close)
	return p, nil
}

// temporary gives libraries a place for temporary files that the builder clears after a crash.
func (d *daemon) temporary() error {
	dir := filepath.Join(d.Config.Run, "build", "tmp")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make %s", dir)
	}
	return os.Setenv("TMPDIR", dir)
}

// unixClient is HTTP/2 without TLS over a Unix socket.
func unixClient(listen string) *http.Client {
	path := socketPath(listen)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

// alone is the leadership of a server that has no others.
type alone struct{}

func (alone) Leading() bool { return true }

func (alone) LeaderAddress() string { return "" }

func localNode(socket string, images http.Handler) server.Node {
	c := unixClient("unix://" + socket)
	return server.Node{
		Service:      gantryv1connect.NewNodeServiceClient(c, "http://node"),
		Images:       gantryv1connect.NewImageServiceClient(c, "http://node"),
		ImageHandler: images,
	}
}

// serve answers on a listener until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: headerTimeout,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fault.Wrap(fault.Unavailable, err, "serving on %s ended", l.Addr())
	}
	return nil
}

// closing closes a listener that its server may have closed already.
func closing(l net.Listener) func() error {
	return func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

const headerTimeout = 10 * time.Second

// Helpers is the directory beside the running program.
func Helpers() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding gantryd's own place: %w", err)
	}
	exe, err = filepath.EvalSymlinks(exe)
	return filepath.Dir(exe), err
}
