// Package build runs Dockerfiles: BuildKit's solver and Dockerfile frontend inside this process, its results in
// containerd's image store.
//
// Call New once per daemon, then Build as often as wished; every method of Builder is safe in parallel, and a running
// builder keeps its solver warm between builds. UnpackContext turns a client's tar stream into a directory that Build
// reads; package buildcontext is the client's half. The package pulls base images when it may, but it is not the place
// to pull or push images, and it runs no service.
package build

import (
	"context"
	"log/slog"
	"os"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"go.etcd.io/bbolt"

	"github.com/gantryd/gantry/fault"
)

// Namespace is containerd's namespace for everything of Gantry's, unless Options says otherwise.
const Namespace = "gantry"

// DefaultCacheBytes bounds the build cache when Options does not.
const DefaultCacheBytes = 20 << 30

// Options says where a Builder works. Root, Run, Runc and one of Client and ContainerdAddress are required.
type Options struct {
	// Root keeps the cache's records and cache mounts; it survives reboots. Run is for what does not.
	Root, Run string
	// Client is used when set; else a connection to ContainerdAddress (a Unix socket's path) is made.
	Client            *containerd.Client
	ContainerdAddress string
	// Namespace of containerd; "gantry" when empty.
	Namespace string
	// Snapshotter; "overlayfs" when empty.
	Snapshotter string
	// Runc is the path of the runc program.
	Runc string
	// CgroupParent is the cgroup under which steps run; "gantry-build" when empty.
	CgroupParent string
	// CacheBytes is what the cache may take; DefaultCacheBytes when 0.
	CacheBytes int64
	// Bring makes an image be in the store that other machines of the cluster have; nil asks none.
	Bring func(ctx context.Context, ref, platform string) error
	// Network gives steps their network. Without one they use the machine's own.
	Network Network
	// HostGateway is the address that "host-gateway" in extra_hosts stands for; 127.0.0.1 when Network is nil.
	HostGateway string
	// RegistryHosts finds registries; BuildKit's defaults when nil.
	RegistryHosts docker.RegistryHosts
	// AllowInsecure permits builds that ask for privileges (RUN --security=insecure).
	AllowInsecure bool
	// Logger hears of what is not an answer to a caller; slog.Default() when nil.
	Logger *slog.Logger
}

// Builder runs builds. Make one with New.
type Builder struct {
	opts       Options
	log        *slog.Logger
	controller *control.Controller
	sessions   *session.Manager
	images     images.Store
	client     *containerd.Client
	ownClient  bool
	collect    func(context.Context) (gc.Stats, error) // has containerd remove what nobody needs, now

	mu    sync.Mutex
	inUse map[string]bool // kept context directories that a build has
}

// New opens the cache under opts.Root, removes what a killed predecessor left behind, and returns a ready Builder. Two
// builders must not share a Root.
func New(ctx context.Context, opts Options) (*Builder, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	b := &Builder{opts: opts, log: opts.Logger, client: opts.Client, inUse: map[string]bool{}}
	if err := b.dial(); err != nil {
		return nil, err
	}
	if err := b.open(ctx); err != nil {
		b.hangUp()
		return nil, err
	}
	return b, nil
}

// Close stops the builder. Builds still running fail; call it when they are done.
func (b *Builder) Close() error {
	err := b.controller.Close()
	if err == nil {
		err = b.settle()
	}
	b.hangUp()
	b.removeControlGroups()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "close the builder")
	}
	return nil
}

func (o Options) complete() (Options, error) {
	if o.Root == "" || o.Run == "" || o.Runc == "" || (o.Client == nil && o.ContainerdAddress == "") {
		return o, fault.New(fault.Invalid, "a builder needs Root, Run, Runc and a containerd")
	}
	o.Namespace = or(o.Namespace, Namespace)
	o.Snapshotter = or(o.Snapshotter, "overlayfs")
	o.CgroupParent = or(o.CgroupParent, "gantry-build")
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.HostGateway == "" && o.Network == nil {
		o.HostGateway = "127.0.0.1"
	}
	return o, nil
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func (b *Builder) dial() error {
	if b.client != nil {
		return nil
	}
	client, err := containerd.New(b.opts.ContainerdAddress)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "connect to containerd at %s", b.opts.ContainerdAddress)
	}
	b.client, b.ownClient = client, true
	return nil
}

func (b *Builder) hangUp() {
	if b.ownClient {
		b.client.Close()
	}
}

// open tells the start's story: clean up, worker, cache, solver.
func (b *Builder) open(ctx context.Context) error {
	for _, dir := range []string{b.opts.Root, b.opts.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fault.Wrap(fault.Unavailable, err, "make the builder's directory")
		}
	}
	b.clearLeftovers(ctx)
	var err error
	if b.sessions, err = session.NewManager(); err != nil {
		return fault.Wrap(fault.Internal, err, "start the session manager")
	}
	opt, err := b.workerOptions(ctx)
	if err != nil {
		return err
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "start the build worker")
	}
	b.images, b.collect = opt.ImageStore, opt.GarbageCollect
	if b.controller, err = b.newController(ctx, w); err != nil {
		w.Close()
		return err
	}
	return nil
}

func (b *Builder) newController(ctx context.Context, w *base.Worker) (*control.Controller, error) {
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "add the build worker")
	}
	cache, err := bboltcachestorage.NewStore(b.path(cacheFile))
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "open the build cache").
			WithHint("with the daemon stopped, remove %s; only the cache is lost", b.opts.Root)
	}
	history, err := bbolt.Open(b.path(historyFile), 0o600, nil)
	if err != nil {
		cache.Close()
		return nil, fault.Wrap(fault.Corrupt, err, "open the build history")
	}
	c, err := control.NewController(b.controlOptions(ctx, w, workers, cache, history))
	if err != nil {
		history.Close()
		cache.Close()
		return nil, fault.Wrap(fault.Internal, err, "start the build solver")
	}
	return c, nil
}

func (b *Builder) controlOptions(ctx context.Context, w *base.Worker, workers *worker.Controller, cache *bboltcachestorage.Store, history *bbolt.DB) control.Opt {
	hosts := b.opts.RegistryHosts
	return control.Opt{
		SessionManager:   b.sessions,
		WorkerController: workers,
		// Only the built-in frontend: a frontend image would run code of its author's inside the builder.
		Frontends:    map[string]frontend.Frontend{frontendName: forwarder.NewGatewayForwarder(workers.Infos(), b.dockerfile)},
		CacheManager: solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		CacheStore:   cache,
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registry.ResolveCacheImporterFunc(b.sessions, w.ContentStore(), hosts),
		},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"inline":   inline.ResolveCacheExporterFunc(),
			"registry": registry.ResolveCacheExporterFunc(b.sessions, hosts),
		},
		Entitlements:   b.entitlements(),
		HistoryDB:      history,
		HistoryConfig:  &config.HistoryConfig{MaxEntries: new(int64)},
		LeaseManager:   w.LeaseManager(),
		ContentStore:   w.ContentStore(),
		GarbageCollect: w.GarbageCollect,
	}
}

func (b *Builder) entitlements() []string {
	all := []string{string(entitlements.EntitlementNetworkHost)}
	if b.opts.AllowInsecure {
		all = append(all, string(entitlements.EntitlementSecurityInsecure))
	}
	return all
}
