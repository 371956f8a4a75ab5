// Package daemon starts gantryd: it reads the configuration, starts every part in order and stops them in reverse.
//
// Parse the command line into Config, then Run. It is the only place that sees everything; it holds no logic of its own.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/agent"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/build"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/discovery"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/kernelcheck"
	"github.com/gantryd/gantry/network"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/volume"
)

// Config is what gantryd can be told.
type Config struct {
	Root    string // durable files
	Run     string // sockets and what a reboot may lose
	Listen  string // unix://PATH of the API
	Helpers string // directory of runc and the shim; beside gantryd if empty
	Group   string // group that may use the API's socket, besides root

	Advertise string            // address that other machines reach this one at; empty if it stands alone
	Port      int               // first of the ports for other machines
	Join      string            // host:port of a server whose cluster this machine joins at its first start
	TokenFile string            // file with the join token
	Labels    map[string]string // of the node, when it joins
	Overlay   string            // how packets travel between nodes of a cluster founded here: "vxlan" or "wireguard"

	Bridge       string
	Subnet       netip.Prefix // addresses of this machine's instances, if it founds a cluster
	NodeRange    netip.Prefix // where the ranges of machines that join it come from
	VirtualIPs   netip.Prefix // addresses of services
	Registry     string       // host:port of the embedded registry; empty for none
	CgroupParent string
	Devices      map[string]int // named devices that instances can reserve, with their number

	// PEM files; empty for this machine's own certificate where the registry is reached from others.
	RegistryCertificate, RegistryKey string

	Version *gantryv1.VersionResponse
	Logger  *slog.Logger
}

// daemon collects the parts as they start, for those that need them and for the stop.
type daemon struct {
	Config
	checks  []*gantryv1.KernelCheck
	started time.Time
	space   *cluster.Space // under the root
	stops   []func()       // in order of start
}

// Run starts everything and blocks until ctx ends or a part fails. Containers are left running.
func Run(ctx context.Context, c Config) error {
	d := &daemon{Config: c, started: time.Now(), space: cluster.NewSpace(c.Root)}
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
	if err := d.useSpare(); err != nil {
		return err
	}
	if err := d.checkKernel(); err != nil {
		return err
	}
	// Who this is comes first: from its own disk, so that a node starts without a server.
	m, err := d.machine(ctx)
	if err != nil {
		return err
	}
	// What runs ends before what it uses is stopped, also when a later part cannot start.
	told := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(told))
	atOnce := context.AfterFunc(told, cancel) // while there is nothing to end in order
	group, ctx := errgroup.WithContext(ctx)
	defer func() {
		cancel()
		_ = group.Wait() // its error has been returned, or is the consequence of another
	}()
	// The machine: the network before the engine, whose containers may be running already; names need the bridge.
	ways := newServers(m, d.innerSocket())
	parts, err := d.parts(ctx, m, ways)
	if err != nil {
		return err
	}
	group.Go(func() error { return parts.Network.Run(ctx) })
	group.Go(func() error { return parts.Discovery.Run(ctx) })
	// Everything listens before anybody uses it; calls wait until there is somebody to answer.
	doors, err := d.listen()
	if err != nil {
		return err
	}
	ag, err := d.agent(m, ways, parts)
	if err != nil {
		return err
	}
	nodeHandler := ag.Handler(append(server.HandlerOptions(), connect.WithInterceptors(server.Audit(d.Logger)))...)
	role := newServerRole(d, m, ways, localNode(d.innerSocket(), nodeHandler))
	f := newFront(m, role, nodeHandler, parts.Images.Peers(), role.metrics(d.nodeMetrics(ag, m)))
	group.Go(func() error { return serve(ctx, doors.inner, f.Local(), d.Logger) })
	group.Go(func() error { return serve(ctx, doors.api, f.Operators(), d.Logger) })
	if doors.machines != nil {
		group.Go(func() error {
			return serve(ctx, tls.NewListener(doors.machines, m.keeper.ServerTLS()), f.Machines(), d.Logger)
		})
	}
	group.Go(func() error { return role.run(ctx) })
	group.Go(func() error { return f.watchCallers(ctx) })
	group.Go(func() error { return d.upkeep(ctx, m, ways) })
	group.Go(func() error { return d.keepSpare(ctx) })
	if x := parts.Images.Peers(); x != nil {
		group.Go(func() error { return x.Run(ctx) })
	}
	if err := d.registry(ctx, group, parts, m.keeper); err != nil {
		return err
	}
	group.Go(func() error { return ag.Run(ctx) })
	if atOnce() {
		group.Go(func() error { defer cancel(); return d.awaitEnd(ctx, told, ag) })
	}
	group.Go(func() error { return d.sayReady(ctx, m, role) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// sayReady notes when the daemon can be used.
func (d *daemon) sayReady(ctx context.Context, m *machine, role *serverRole) error {
	for m.isServer() {
		s, moved := role.current()
		if s != nil && (s.Leading() || s.LeaderAddress() != "") {
			break
		}
		select {
		case <-moved:
		case <-time.After(leaderPoll):
		case <-ctx.Done():
			return nil
		}
	}
	d.Logger.Info("gantryd is ready", "listen", d.Listen, "node", m.Node().Name, "role", m.Node().Role,
		"after", time.Since(d.started).Round(time.Millisecond))
	return nil
}

// innerSocket is where this machine's own roles reach one another.
func (d *daemon) innerSocket() string { return filepath.Join(d.Config.Run, "node.sock") }

// doors are what the daemon listens on.
type doors struct {
	api      net.Listener // for operators, a Unix socket
	inner    net.Listener // for this machine itself, root's own Unix socket
	machines net.Listener // for other machines; nil if this one stands alone
}

func (d *daemon) listen() (doors, error) {
	var out doors
	var err error
	if out.api, err = listen(d.Listen, d.Group); err != nil {
		return out, err
	}
	d.onStop("API", closing(out.api))
	if out.inner, err = listen("unix://"+d.innerSocket(), ""); err != nil {
		return out, err
	}
	d.onStop("node API", closing(out.inner))
	if d.Advertise == "" {
		return out, nil
	}
	if out.machines, err = net.Listen("tcp", d.apiAddress()); err != nil {
		return out, fault.Wrap(fault.Conflict, err, "cannot listen for other machines on %s", d.apiAddress()).
			WithHint("is %s an address of this machine? is the port free? choose others with --advertise and --port", d.Advertise)
	}
	d.onStop("machines' API", closing(out.machines))
	return out, nil
}

func (d *daemon) agent(m *machine, ways *servers, parts agent.Parts) (*agent.Agent, error) {
	n, disk := m.Node(), &cluster.DiskWatch{}
	return agent.New(agent.Options{
		Node: n.Meta.Key, Name: n.Name, Root: filepath.Join(d.Root, "agent"), Info: d.info(n), Logger: d.Logger, Server: ways,
		CertificateEnd: m.keeper.Ends, CertificateLife: m.keeper.Life,
		SlowDisk: func() time.Duration { return disk.Slow(time.Now()) },
		FullDisk: d.fullDisk(m),
		NoServer: m.noServer,
		Guarded:  []string{d.Root, d.Config.Run},
		Lost:     m.loseLeader,
		Heard: func(u *gantryv1.NodeUpdate) {
			if err := m.heard(u); err != nil {
				d.Logger.Warn("what the server said of this machine could not be kept", "err", err)
			}
		},
	}, parts)
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

func (d *daemon) parts(ctx context.Context, m *machine, ways *servers) (agent.Parts, error) {
	var p agent.Parts
	subnet, err := m.Subnet()
	if err != nil {
		return p, err
	}
	o, err := d.networkOptions(m, subnet)
	if err != nil {
		return p, err
	}
	// Whom containers belong to, before the network, whose namespaces are theirs.
	users, err := d.userNamespaces()
	if err != nil {
		return p, err
	}
	o.Namespace = networkNamespaces(users)
	if p.Network, err = network.Open(ctx, o); err != nil {
		return p, err
	}
	d.onStop("network", p.Network.Close)
	if p.Discovery, err = discovery.New(discovery.Options{
		Listen: []netip.Addr{p.Network.Gateway()}, Clients: []netip.Prefix{subnet}, Logger: d.Logger,
	}); err != nil {
		return p, err
	}
	if p.Engine, err = engine.Open(ctx, engine.Options{
		Root: filepath.Join(d.Root, "engine"), Run: filepath.Join(d.Config.Run, "engine"), Helpers: d.Helpers,
		CgroupParent: d.CgroupParent, Users: users, Logger: d.Logger,
	}); err != nil {
		return p, err
	}
	d.onStop("engine", p.Engine.Close)
	if p.Images, err = image.FromClient(p.Engine.Client(), image.Options{
		Root: filepath.Join(d.Root, "images"), Logger: d.Logger, Peers: d.peers(m, ways),
	}); err != nil {
		return p, err
	}
	if err := p.Images.Recover(ctx); err != nil {
		d.Logger.Warn("what the last daemon was doing with images is not cleared away", "err", err)
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
		Runc: filepath.Join(d.Helpers, "runc"), CgroupParent: filepath.Join(p.Engine.CgroupParent(), "build"), Logger: d.Logger,
		HostGateway: p.Network.Gateway().String(), Network: buildNetwork{p.Network}, Bring: p.Images.Bring,
		RegistryHosts: p.Images.Hosts(ctx),
	})
	if err != nil {
		return p, err
	}
	d.onStop("builder", p.Builder.Close)
	return p, nil
}

// peers says how images are exchanged with other nodes; nil if this machine stands alone.
func (d *daemon) peers(m *machine, ways *servers) *peer.Options {
	if d.Advertise == "" {
		return nil
	}
	others := m.keeper.Client(identity.AnyMachine)
	return &peer.Options{
		Tracker: ways.tracker, Client: func(string) *http.Client { return others },
		ContentRoot: engine.ContentRoot(filepath.Join(d.Root, "engine")), Logger: d.Logger,
	}
}

// networkOptions says what the network of this machine has to do with those of others.
func (d *daemon) networkOptions(m *machine, subnet netip.Prefix) (network.Options, error) {
	c := m.Cluster()
	o := network.Options{
		Root: filepath.Join(d.Root, "network"), Run: filepath.Join(d.Config.Run, "network"), Bridge: d.Bridge,
		Subnet: subnet, Logger: d.Logger,
	}
	var err error
	if o.VirtualIPs, err = netip.ParsePrefix(c.VirtualIps); err != nil {
		return o, fault.Wrap(fault.Corrupt, err, "the range of the services' addresses %q cannot be read", c.VirtualIps)
	}
	if d.Advertise == "" {
		return o, nil
	}
	if o.NodeRange, err = netip.ParsePrefix(c.NodeRange); err != nil {
		return o, fault.Wrap(fault.Corrupt, err, "the range of the nodes' addresses %q cannot be read", c.NodeRange)
	}
	if o.Address, err = netip.ParseAddr(d.Advertise); err != nil {
		return o, fault.Wrap(fault.Invalid, err, "--advertise %q is not an IP address", d.Advertise)
	}
	o.Overlay, o.Cluster, o.OverlayPort = c.Overlay, c.Id, uint16(d.Port+vxlanPort)
	if c.Overlay != "wireguard" {
		return o, nil
	}
	o.OverlayPort = uint16(d.Port + wireguardPort)
	return o, nil
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
		Protocols: protocols, IdleConnTimeout: identity.IdleTime,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

func localNode(socket string, images http.Handler) server.Node {
	c := unixClient("unix://" + socket)
	return server.Node{
		Service:      gantryv1connect.NewNodeServiceClient(c, "http://node"),
		Images:       gantryv1connect.NewImageServiceClient(c, "http://node"),
		ImageHandler: images,
	}
}

// serve answers on a listener until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: caller.FromConn, ErrorLog: slog.NewLogLogger(remarks{log.Handler()}, slog.LevelWarn),
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

// remarks is the log of what the HTTP server says of its connections. What anybody can bring about by opening one, and that
// goes by the thousand, is for those who look for it; a handler that panics is not.
type remarks struct{ slog.Handler }

// Handle is part of slog.Handler.
func (h remarks) Handle(ctx context.Context, r slog.Record) error {
	if !strings.Contains(r.Message, "panic") {
		r.Level = slog.LevelDebug
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

const (
	headerTimeout = 10 * time.Second
	// idleTimeout ends connections on which nothing is asked: on the port for machines anybody can open them. It is longer than
	// machines keep theirs.
	idleTimeout = identity.IdleTime + 30*time.Second
)

// Helpers is the directory beside the running program.
func Helpers() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding gantryd's own place: %w", err)
	}
	exe, err = filepath.EvalSymlinks(exe)
	return filepath.Dir(exe), err
}
