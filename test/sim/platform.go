package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/control/job"
	"github.com/gantryd/gantry/control/replicate"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/blobtrack"
	"github.com/gantryd/gantry/store"
)

// platform is a real server, with the real store on etcd and all the real controllers, and simulated nodes.
type platform struct {
	dir       string
	member    *cluster.Member
	store     *store.Store
	apps      gantryv1connect.AppServiceClient
	instances gantryv1connect.InstanceServiceClient
	tracker   *blobtrack.Tracker
	copies    *replicate.Controller
	machines  *machines
	address   string
	cancel    context.CancelFunc
	group     *errgroup.Group
	watch     *watcher
}

// startPlatform starts a server with so many nodes and returns when all of them are ready.
func startPlatform(ctx context.Context, o options, nodes int) (p *platform, err error) {
	p = &platform{}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	if p.dir, err = os.MkdirTemp(o.dir, "gantry-sim-"); err != nil {
		return p, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if p.member, err = cluster.Start(ctx, cluster.Options{Root: p.dir + "/etcd", Run: p.dir + "/run", Logger: log}); err != nil {
		return p, err
	}
	if p.store, err = store.New(ctx, p.member.Client(), log); err != nil {
		return p, err
	}
	if err := p.serve(log); err != nil {
		return p, err
	}
	if err := p.addNodes(ctx, nodes); err != nil {
		return p, err
	}
	if p.machines, err = startMachines(); err != nil {
		return p, err
	}
	if _, err := p.machines.do(command{Do: "begin", Nodes: nodes, At: p.address, Delay: o.delay}); err != nil {
		return p, err
	}
	return p, p.watch.await(ctx, "all nodes to be ready", func(w *watcher) bool { return w.ready == nodes })
}

// serve starts the parts of a server that leads, as the daemon does.
func (p *platform) serve(log *slog.Logger) error {
	box, err := seal.Open(filepath.Join(p.dir, "key"), true)
	if err != nil {
		return err
	}
	p.tracker = blobtrack.New(blobtrack.Options{Node: blobtrack.InStore(p.store), Released: blobtrack.ReleasedIn(p.store), Logger: log})
	srv := server.New(p.store, server.Node{ImageHandler: http.NotFoundHandler()}, server.Options{
		Node: nodeID(0), VirtualIPs: netip.MustParsePrefix("10.240.0.0/16"), Sealer: box, Logger: log,
		ImageDigest: p.tracker.Digest, Holders: p.tracker.Holders,
	})
	p.copies = replicate.New(p.store, replicate.Options{Tracker: p.tracker, Copy: noCopy, Logger: log})
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.group, ctx = errgroup.WithContext(ctx)
	p.watch = newWatcher(p.store)
	for _, run := range []func(context.Context) error{
		p.store.Run, srv.Run, srv.Lead, p.watch.run,
		as("rollout", rollout.New(p.store, log).Run), as("jobs", job.New(p.store, log).Run),
		as("scheduler", schedule.New(p.store, log).Run), p.copies.Run,
	} {
		p.group.Go(func() error { return run(ctx) })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p.address = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle("/"+gantryv1connect.NodeSessionServiceName+"/", srv.NodeHandler())
	path, images := p.tracker.Handler(blobtrack.Access{Caller: callerNode}, server.HandlerOptions()...)
	mux.Handle(path, named(images))
	mux.Handle("/", srv.Handler())
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := &http.Server{Handler: mux, Protocols: protocols, BaseContext: func(net.Listener) context.Context { return ctx }}
	p.group.Go(func() error {
		stop := context.AfterFunc(ctx, func() { _ = h.Close() })
		defer stop()
		if err := h.Serve(l); ctx.Err() == nil {
			return err
		}
		return nil
	})
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	p.apps = gantryv1connect.NewAppServiceClient(client, "http://"+p.address)
	p.instances = gantryv1connect.NewInstanceServiceClient(client, "http://"+p.address)
	return nil
}

// as has what a controller changes say so.
func as(controller string, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return run(store.WithOrigin(ctx, store.Origin{By: controller})) }
}

// noCopy has no node fetch an image. None has to: whatever services run by is on many nodes, as in a real cluster of this size,
// and the figures of the controller, which a row prints, say that none lacks copies.
func noCopy(_ context.Context, node string, image replicate.Image) error {
	return fault.New(fault.Unsupported, "%s is simulated and fetches no %s", node, image.Reference)
}

// callerKey is of the context's value that names the node which calls.
type callerKey struct{}

// named tells a handler which node calls: by its header, where a real one has a certificate.
func named(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, r.Header.Get(nodeHeader))))
	})
}

func callerNode(ctx context.Context) (string, error) {
	node, _ := ctx.Value(callerKey{}).(string)
	return node, nil // one that is not of the cluster is refused
}

func (p *platform) addNodes(ctx context.Context, nodes int) error {
	return p.store.Update(ctx, func(tx *store.Tx) error {
		for n := range nodes {
			store.Put(tx, &gantryv1.Node{
				Meta: store.NewMeta(nodeID(n)), Name: nodeID(n), Subnet: subnetOf(n).String(), Availability: "active",
				Role: "node", Address: fmt.Sprintf("192.0.2.%d", n%250), ApiAddress: fmt.Sprintf("192.0.2.%d:7450", n%250),
			})
		}
		return nil
	})
}

func (p *platform) stop() {
	if p.machines != nil {
		p.machines.stop()
	}
	if p.cancel != nil {
		p.cancel()
		if err := p.group.Wait(); err != nil {
			fmt.Fprintln(os.Stderr, "sim: a part of the server ended:", err)
		}
	}
	if p.member != nil {
		p.member.Stop()
	}
	_ = os.RemoveAll(p.dir)
}

// apply puts an app in place whose services all have the image and the number of replicas.
func (p *platform) apply(ctx context.Context, app, image string, services, replicas int, update *gantryv1.UpdateConfig) error {
	spec := &gantryv1.AppSpec{
		Services: map[string]*gantryv1.ServiceSpec{},
		Networks: map[string]*gantryv1.NetworkSpec{"default": {Key: "production/" + app + "/default"}},
	}
	for n := range services {
		spec.Services[fmt.Sprintf("s%d", n)] = &gantryv1.ServiceSpec{
			Replicas: int32(replicas), Update: update, Container: &gantryv1.ContainerSpec{
				Image: image, ImageDigest: digestOf(image),
				Env: []string{"MODE=simulated", "LISTEN=:8080"}, Network: &gantryv1.NetworkMode{
					Attachments: []*gantryv1.NetworkAttachment{{Network: "production/" + app + "/default"}},
				},
			},
		}
	}
	_, err := p.apps.Apply(ctx, connect.NewRequest(&gantryv1.ApplyRequest{Environment: "production", App: app, Spec: spec}))
	return err
}

func digestOf(image string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(image))) }

// scale sets the instances of an app's services, alike, in one call.
func (p *platform) scale(ctx context.Context, app string, services, instances int) error {
	replicas := map[string]int32{}
	for n := range services {
		replicas[fmt.Sprintf("s%d", n)] = int32(instances / services)
	}
	_, err := p.apps.Scale(ctx, connect.NewRequest(&gantryv1.ScaleRequest{Environment: "production", App: app, Replicas: replicas}))
	return err
}
