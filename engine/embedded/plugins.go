package embedded

import (
	"context"
	"path/filepath"
	"reflect"
	"slices"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	services "github.com/containerd/containerd/v2/plugins/services"

	// These register themselves; pluginURIs below picks the ones that are started.
	_ "github.com/containerd/containerd/api/types/runc/options"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
)

// pluginTypes are the kinds that are started. Other packages of the program may register more; those stay off. So does
// the mount manager: overlay and bind mounts need none, and with it every start asks the shim for what it can mount.
func pluginTypes() []plugin.Type {
	return []plugin.Type{
		plugins.ContentPlugin, plugins.DiffPlugin, plugins.EventPlugin, plugins.GCPlugin, plugins.GRPCPlugin,
		plugins.LeasePlugin, plugins.MetadataPlugin,
		plugins.RuntimePluginV2, plugins.ServicePlugin, plugins.ShimPlugin, plugins.SnapshotPlugin,
		plugins.TTRPCPlugin, plugins.WarningPlugin,
	}
}

type grpcService interface{ Register(*grpc.Server) error }

type ttrpcService interface{ RegisterTTRPC(*ttrpc.Server) error }

func (s *Server) loadPlugins(ctx context.Context, o Options) error {
	s.plugins = plugin.NewPluginSet()
	wanted := pluginTypes()
	skip := func(r *plugin.Registration) bool { return !slices.Contains(wanted, r.Type) }
	var last *plugin.InitContext
	for _, r := range withOwnShims(registry.Graph(skip), o) {
		last = plugin.NewContext(ctx, s.plugins, map[string]string{
			plugins.PropertyRootDir:      filepath.Join(o.Root, r.URI()),
			plugins.PropertyStateDir:     filepath.Join(o.Run, r.URI()),
			plugins.PropertyGRPCAddress:  s.address,
			plugins.PropertyTTRPCAddress: s.address + ".ttrpc",
		})
		last.Config = configFor(r)
		last.RegisterReadiness = func() func() { return func() {} }
		if err := s.load(last, r); err != nil {
			return err
		}
	}
	return s.connect(last)
}

func (s *Server) load(ic *plugin.InitContext, r plugin.Registration) error {
	p := r.Init(ic)
	if err := s.plugins.Add(p); err != nil {
		return pluginError(r.URI(), err)
	}
	instance, err := p.Instance()
	if plugin.IsSkipPlugin(err) {
		return nil
	}
	if err != nil {
		return pluginError(r.URI(), err)
	}
	if g, ok := instance.(grpcService); ok {
		if err := g.Register(s.grpc); err != nil {
			return pluginError(r.URI(), err)
		}
	}
	if t, ok := instance.(ttrpcService); ok {
		if err := t.RegisterTTRPC(s.ttrpc); err != nil {
			return pluginError(r.URI(), err)
		}
	}
	if c, ok := instance.(interface{ Close() error }); ok {
		s.closers = append(s.closers, c)
	}
	return nil
}

// configFor copies a registration's configuration, which is shared by all servers of the process.
func configFor(r plugin.Registration) any {
	if r.Config == nil {
		return nil
	}
	v := reflect.ValueOf(r.Config)
	if v.Kind() != reflect.Pointer {
		return r.Config
	}
	c := reflect.New(v.Elem().Type())
	c.Elem().Set(v.Elem())
	if r.ID == services.DiffService {
		// A layer that is recorded as unpacked is never unpacked again: it has to be on disk before it is. The setting's type is
		// containerd's own.
		c.Elem().FieldByName("SyncFs").SetBool(true)
	}
	return c.Interface()
}

// connect makes the client on the started services.
func (s *Server) connect(ic *plugin.InitContext) error {
	byID, err := ic.GetByType(plugins.ServicePlugin)
	if err != nil {
		return pluginError("services", err)
	}
	single := map[plugin.Type]any{}
	for _, t := range []plugin.Type{plugins.EventPlugin, plugins.LeasePlugin} {
		if single[t], err = ic.GetSingle(t); err != nil {
			return pluginError(string(t), err)
		}
	}
	s.client, err = containerd.New("", containerd.WithServices(
		containerd.WithEventService(single[plugins.EventPlugin].(containerd.EventService)),
		containerd.WithLeasesService(single[plugins.LeasePlugin].(leases.Manager)),
		containerd.WithContentStore(byID[services.ContentService].(content.Store)),
		containerd.WithImageClient(byID[services.ImagesService].(imagesapi.ImagesClient)),
		containerd.WithSnapshotters(byID[services.SnapshotsService].(map[string]snapshots.Snapshotter)),
		containerd.WithContainerClient(byID[services.ContainersService].(containersapi.ContainersClient)),
		containerd.WithTaskClient(byID[services.TasksService].(tasksapi.TasksClient)),
		containerd.WithDiffClient(byID[services.DiffService].(diffapi.DiffClient)),
		containerd.WithNamespaceClient(byID[services.NamespacesService].(namespacesapi.NamespacesClient)),
		containerd.WithIntrospectionService(byID[services.IntrospectionService].(introspection.Service)),
	))
	if err != nil {
		return pluginError("client", err)
	}
	return nil
}
