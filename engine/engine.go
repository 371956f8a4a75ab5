// Package engine runs containers: containerd in this process, runc, one log per container, nothing of a container's life
// tied to the daemon's.
//
// Open an Engine on a root and a run directory, Create a container from a resolved request, Start it, watch Events. An
// Engine opened again after the daemon was killed finds its containers, their logs and the exit codes of those that
// ended meanwhile, and clears what was half made. All methods are safe in parallel. The package knows no services,
// networks or volumes: the caller resolves them to namespaces and paths. It pulls no images; see engine/image.
package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/jsonlog"
	"github.com/gantryd/gantry/engine/ocispec"
	"github.com/gantryd/gantry/engine/userns"
	"github.com/gantryd/gantry/fault"
)

// Namespace is the containerd namespace that holds everything of Gantry's.
const Namespace = "gantry"

// snapshotter is where containers' root file systems come from.
const snapshotter = "overlayfs"

// Names of the helper binaries in Options.Helpers.
const (
	shimBinary = "containerd-shim-runc-v2"
	runcBinary = "runc"
	initBinary = "gantry-init"
)

// Options of an engine. Root, Run and Helpers are required.
type Options struct {
	Root    string // persistent files
	Run     string // sockets and files that end with the machine; at most 40 bytes long
	Helpers string // directory with runc, containerd-shim-runc-v2 and gantry-init
	// CgroupParent is the control group below which the containers' are, by default one named by Root. What is in its
	// group "containers" belongs to the engine alone.
	CgroupParent string
	// Users makes the user namespaces of containers; the caller closes it after the engine. Without, root inside is root
	// of the machine.
	Users  *userns.Maker `json:"-"`
	Logger *slog.Logger  // nil means slog's default
}

// Engine runs containers. Make it with Open.
type Engine struct {
	o      Options
	log    *slog.Logger
	server *embedded.Server
	client *containerd.Client
	cgroup cgroups
	shims  shims
	// runtime is the program that containerd takes for a shim's.
	runtime string
	images  imageCache
	hub     hub
	spools  *jsonlog.Watcher

	// ctx ends with Close; group holds everything that runs in the background.
	ctx    context.Context
	cancel context.CancelFunc
	group  errgroup.Group

	filling sync.Mutex // held while a volume is being filled

	mu         sync.Mutex
	containers map[string]*container
}

// Open starts containerd and takes over the containers of an earlier engine on the same directories.
func Open(ctx context.Context, o Options) (*Engine, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &Engine{o: o, log: o.Logger, containers: map[string]*container{}}
	if e.cgroup, err = openCgroups(filepath.Join(o.CgroupParent, "containers")); err != nil {
		return nil, err
	}
	if e.spools, err = jsonlog.NewWatcher(); err != nil {
		return nil, err
	}
	ended := e.endedMeanwhile()
	if err := e.startContainerd(ctx); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(e.Context(context.WithoutCancel(ctx)))
	e.client = e.server.Client()
	e.group.Go(func() error { return e.spools.Run(e.ctx) })
	// Events are subscribed to before the containers are looked at, so that no exit falls between the two.
	e.subscribe()
	if err := e.recover(e.Context(ctx), ended); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	e.group.Go(e.watchPids)
	return e, nil
}

// startContainerd starts containerd, and before it what it needs of shims.
func (e *Engine) startContainerd(ctx context.Context) error {
	var err error
	if e.runtime, err = e.writeRuntime(ctx); err != nil {
		return err
	}
	e.unmountLeftovers()
	used := e.usedShims()
	e.server, err = embedded.Start(ctx, embedded.Options{
		Root: filepath.Join(e.o.Root, "containerd"), Run: e.o.Run, Runtime: e.runtime, Logger: e.o.Logger,
	})
	if err != nil {
		return err
	}
	if err := e.prepareRemap(); err != nil {
		e.log.Error("containers made from now on have no user namespaces", "error", err)
		e.o.Users = nil
	}
	if err := e.openShims(used); err != nil {
		return errors.Join(err, e.server.Close())
	}
	return nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	for _, dir := range []*string{&o.Root, &o.Run, &o.Helpers} {
		if *dir == "" {
			return o, fault.New(fault.Invalid, "engine: Root, Run and Helpers are required")
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return o, fault.Wrap(fault.Invalid, err, "engine: directory %s", *dir)
		}
		*dir = abs
	}
	for _, name := range []string{shimBinary, runcBinary} {
		if _, err := os.Stat(filepath.Join(o.Helpers, name)); err != nil {
			return o, fault.Wrap(fault.NotFound, err, "the helper %s is missing", name).
				WithHint("make build leaves it in bin/, beside gantryd")
		}
	}
	if o.CgroupParent == "" {
		sum := sha256.Sum256([]byte(o.Root))
		o.CgroupParent = "/gantry/" + hex.EncodeToString(sum[:4])
	}
	return o, nil
}

// Close stops the engine. Containers keep running.
func (e *Engine) Close() error {
	e.cancel()
	err := errors.Join(e.shims.pool.Close(), e.server.Close())
	err = errors.Join(err, e.group.Wait())
	e.unmountLayers()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.log != nil {
			err = errors.Join(err, c.log.Close())
		}
	}
	return err
}

// Client returns the containerd client. Its calls need a context made by Context.
func (e *Engine) Client() *containerd.Client { return e.client }

// Address returns the path of containerd's gRPC socket.
func (e *Engine) Address() string { return e.server.Address() }

// CgroupParent returns the control group below which those of the machine's containers are.
func (e *Engine) CgroupParent() string { return e.o.CgroupParent }

// Context returns ctx with Gantry's containerd namespace.
func (e *Engine) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(e.server.Context(ctx), Namespace)
}

// dir returns the directory of a container's files.
func (e *Engine) dir(id string) string { return filepath.Join(e.o.Root, "containers", id) }

// filesDir returns the mount point of a container's secrets.
func (e *Engine) filesDir(id string) string { return filepath.Join(e.o.Run, "files", id) }

func (e *Engine) cgroupFeatures() ocispec.CgroupFeatures {
	return ocispec.CgroupFeatures{Unified: e.cgroup.unified, Swap: e.cgroup.swap}
}

// container finds a container by its ID.
func (e *Engine) container(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil || c.creating {
		return nil, fault.New(fault.NotFound, "no container %s on this node", id).WithHint("gantry ps --all")
	}
	return c, nil
}
