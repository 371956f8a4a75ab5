package embedded

import (
	"context"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"

	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	runtimev2 "github.com/containerd/containerd/v2/core/runtime/v2"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
)

// taskPlugin is the plug-in that keeps the bundles of running containers below its state directory.
const taskPlugin = string(plugins.RuntimePluginV2) + ".task"

// Bundle returns the directory in which a container's shim works.
func Bundle(run, namespace, id string) string { return filepath.Join(run, taskPlugin, namespace, id) }

// withOwnShims replaces the shim manager's start. containerd takes a shim whose container ended while no daemon ran for
// a leaked one and deletes it, and with it the exit code. It spares those of sandboxes; so a shim that has a container
// is passed off as one when asked.
func withOwnShims(list []plugin.Registration, o Options) []plugin.Registration {
	for i, r := range list {
		if r.Type == plugins.ShimPlugin {
			list[i].InitFn = func(ic *plugin.InitContext) (any, error) { return shimManager(ic, o) }
		}
	}
	return list
}

func shimManager(ic *plugin.InitContext, o Options) (any, error) {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	events, err := ic.GetByID(plugins.EventPlugin, "exchange")
	if err != nil {
		return nil, err
	}
	return runtimev2.NewShimManager(&runtimev2.ManagerConfig{
		Address: ic.Properties[plugins.PropertyGRPCAddress], TTRPCAddress: ic.Properties[plugins.PropertyTTRPCAddress],
		SocketDir: socketDir(o), Events: events.(*exchange.Exchange),
		Store:        metadata.NewContainerStore(db.(*metadata.DB)),
		SandboxStore: shimsAsSandboxes{run: o.Run},
	})
}

func socketDir(o Options) string { return filepath.Join(o.Run, "s") }

// shimsAsSandboxes answers the one question that the shim manager asks: is there a sandbox of this name?
type shimsAsSandboxes struct {
	sandbox.Store // its other methods are never called: no container of ours has a sandbox
	run           string
}

// Get says "not found" of a shim whose container was never made, which lets it be deleted.
func (s shimsAsSandboxes) Get(ctx context.Context, id string) (sandbox.Sandbox, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	if _, err := os.Stat(filepath.Join(Bundle(s.run, ns, id), "init.pid")); err != nil {
		return sandbox.Sandbox{}, errdefs.ErrNotFound
	}
	return sandbox.Sandbox{ID: id}, nil
}
