package embedded

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"

	"github.com/containerd/containerd/v2/core/containers"
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
		SocketDir: SocketDir(o.Run), Events: events.(*exchange.Exchange),
		Store:        ownRuntime{metadata.NewContainerStore(db.(*metadata.DB)), o.Runtime},
		SandboxStore: shimsAsSandboxes{run: o.Run},
	})
}

// SocketDir returns the directory of the shims' sockets.
func SocketDir(run string) string { return filepath.Join(run, "s") }

// Shim returns the address of the shim that a container is in, "" if it is in none.
func Shim(run, namespace, id string) string {
	var b struct {
		Address string `json:"address"`
	}
	data, err := os.ReadFile(filepath.Join(Bundle(run, namespace, id), "bootstrap.json"))
	if err != nil || json.Unmarshal(data, &b) != nil {
		return ""
	}
	return b.Address
}

// ownRuntime names the runtime of a container whose shim was not started for it: its bundle says nothing of it.
type ownRuntime struct {
	containers.Store
	runtime string
}

// Get returns a container's record.
func (s ownRuntime) Get(ctx context.Context, id string) (containers.Container, error) {
	c, err := s.Store.Get(ctx, id)
	if c.SandboxID == SandboxID {
		c.Runtime.Name = s.runtime
	}
	return c, err
}

// SandboxID is the sandbox of containers that are put into a shim which runs already: the task's creation says which.
const SandboxID = "@shim"

// shimsAsSandboxes answers the one question that the shim manager asks: is there a sandbox of this name?
type shimsAsSandboxes struct {
	sandbox.Store // its other methods are never called
	run           string
}

// Get says "not found" of a shim whose container was never made, which lets it be deleted.
func (s shimsAsSandboxes) Get(ctx context.Context, id string) (sandbox.Sandbox, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	if id == SandboxID {
		return sandbox.Sandbox{ID: id}, nil
	}
	if _, err := os.Stat(filepath.Join(Bundle(s.run, ns, id), "init.pid")); err != nil {
		return sandbox.Sandbox{}, errdefs.ErrNotFound
	}
	return sandbox.Sandbox{ID: id}, nil
}
