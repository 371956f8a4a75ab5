package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	"github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/winlayers"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/label"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/groupmove"
)

// workerOptions joins containerd's stores with BuildKit's own runc executor: a step needs no shim, no task and no log
// pipes of containerd's, and starts several times faster without them.
func (b *Builder) workerOptions(ctx context.Context) (base.WorkerOpt, error) {
	opt := b.stores()
	if err := b.trustRecords(ctx, opt.LeaseManager); err != nil {
		return opt, err
	}
	networks := b.networks()
	monitor, err := resources.NewMonitor()
	if err != nil {
		return opt, fault.Wrap(fault.Internal, err, "start the resource monitor")
	}
	executor, err := b.executor(networks, monitor)
	if err != nil {
		return opt, err
	}
	id, err := base.ID(b.opts.Root)
	if err != nil {
		return opt, fault.Wrap(fault.Corrupt, err, "read the builder's identity")
	}
	md, err := b.openRecords()
	if err != nil {
		return opt, err
	}
	opt.ID, opt.Root, opt.MetadataStore = id, b.opts.Root, md
	opt.Labels = map[string]string{label.Executor: "oci", label.Snapshotter: b.opts.Snapshotter}
	opt.Platforms = []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}
	opt.GCPolicy = gcPolicy(b.opts.CacheBytes)
	opt.NetworkProviders, opt.Executor, opt.ResourceMonitor = networks, executor, monitor
	opt.RegistryHosts = b.opts.RegistryHosts
	opt.MountPoolRoot = filepath.Join(b.opts.Run, "mounts")
	return opt, nil
}

// stores are containerd's, each bound to the namespace.
func (b *Builder) stores() base.WorkerOpt {
	ns := b.opts.Namespace
	content := containerd.NewContentStore(thriftyContent{b.client.ContentStore()}, ns)
	diff := namespacedDiff{b.client.DiffService(), ns}
	manager := leaseutil.WithNamespace(shareLeases(b.client.LeasesService()), ns)
	return base.WorkerOpt{
		Snapshotter:    containerd.NewSnapshotter(b.opts.Snapshotter, b.client.SnapshotService(b.opts.Snapshotter), ns, nil),
		ContentStore:   content,
		Applier:        winlayers.NewFileSystemApplierWithWindows(content, diff),
		Differ:         winlayers.NewWalkingDiffWithWindows(content, diff),
		ImageStore:     namespacedImages{b.client.ImageService(), ns},
		LeaseManager:   manager,
		GarbageCollect: collector(manager),
	}
}

// collector makes containerd collect garbage now: deleting a lease synchronously is the one way its API offers.
func collector(manager *leaseutil.Manager) func(context.Context) (gc.Stats, error) {
	return func(ctx context.Context) (gc.Stats, error) {
		l, err := manager.Create(ctx, leases.WithRandomID())
		if err != nil {
			return nil, err
		}
		return nil, manager.Delete(ctx, leases.Lease{ID: l.ID}, leases.SynchronousDelete)
	}
}

func (b *Builder) executor(networks map[pb.NetMode]network.Provider, monitor *resources.Monitor) (executor.Executor, error) {
	runc, err := b.runcWrapper()
	if err != nil {
		return nil, err
	}
	e, err := runcexecutor.New(runcexecutor.Opt{
		Root:                b.bundles(),
		CommandCandidates:   []string{runc},
		DefaultCgroupParent: b.opts.CgroupParent,
		ResourceMonitor:     monitor,
	}, networks)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "start the build executor")
	}
	return quickStart{e, groupmove.Open("/sys/fs/cgroup", "freezer")}, nil
}

func (b *Builder) bundles() string  { return filepath.Join(b.opts.Run, "steps") }
func (b *Builder) runcRoot() string { return filepath.Join(b.opts.Run, "runc") }

// runcWrapper writes a script that keeps runc's state under Run: BuildKit's executor has no setting for it, and in the
// default place builders of two daemons would see each other's containers. It lies under Root because /run is often
// mounted without the right to execute.
func (b *Builder) runcWrapper() (string, error) {
	path := filepath.Join(b.opts.Root, "runc.sh")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --root %s \"$@\"\n", quote(b.opts.Runc), quote(b.runcRoot()))
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "write the builder's runc wrapper")
	}
	return path, nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// gcPolicy drops what is easy to make again first, then what was used longest ago, until the cache fits.
func gcPolicy(max int64) []client.PruneInfo {
	const day = 24 * 3600 * 1e9
	return []client.PruneInfo{
		{Filter: []string{"type==source.local,type==exec.cachemount,type==source.git.checkout"}, KeepDuration: 2 * day, MaxUsedSpace: max / 8},
		{KeepDuration: 60 * day, MaxUsedSpace: max},
		{MaxUsedSpace: max},
		{All: true, MaxUsedSpace: max},
	}
}
