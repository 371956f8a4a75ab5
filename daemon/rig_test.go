package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/observe"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/machines"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/test/hostile"
)

// rig is the front of a server that leads, with its real handlers over a real store, at real sockets. Behind it are no
// containers: whatever gets as far as a node's engine is answered that it is not there.
type rig struct {
	t       *testing.T
	front   *front
	serving *serving
	server  *server.Server
	ca      *identity.Authority
	roots   []byte
	run     string
	address string // of the port for machines
	own     string // ID of the machine
	probes  atomic.Int64
	reached sync.Map // the numbers of the probes that got to a handler
}

// Machines of the rig's cluster besides its own.
const (
	aServer  = "aaaaaaaaaaaa"
	aNode    = "bbbbbbbbbbbb"
	aDemoted = "cccccccccccc" // its certificate is a server's, it is a node
	aRemoved = "dddddddddddd" // its certificate is good, it belongs to the cluster no longer
)

func newRig(t *testing.T) *rig {
	t.Helper()
	run, err := os.MkdirTemp("", "gf") // short: it holds Unix sockets
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	r := &rig{t: t, run: run}
	log := slog.New(slog.DiscardHandler)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	r.address = l.Addr().String()
	_, port, err := net.SplitHostPort(r.address)
	check(t, err)
	number, err := strconv.Atoi(port)
	check(t, err)
	d := &daemon{Config: Config{
		Root: t.TempDir(), Run: run, Logger: log, Version: &gantryv1.VersionResponse{Version: "1"}, Advertise: "127.0.0.1", Port: number,
		VirtualIPs: netip.MustParsePrefix("10.224.0.0/16"),
	}}
	d.space = cluster.NewSpace(d.Root)
	m := newMachine(t, d.Config)
	r.own = m.Node().Meta.Key
	signer, err := os.ReadFile(filepath.Join(d.Root, foundingFile))
	check(t, err)
	r.roots = m.Cluster().Roots
	r.ca, err = identity.OpenAuthority(r.roots, signer)
	check(t, err)

	nothing := r.nothing()
	role := newServerRole(d, m, newServers(m, d.innerSocket()), r.local(nothing))
	r.open(role, signer)
	f := newFront(m, role, r.watched(nothing), nil, http.NotFoundHandler())
	f.gate.now = func() time.Time { return time.Now().Add(time.Duration(r.probes.Load()) * time.Minute) } // it has a test of its own
	silent := r.watched(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	f.blobs, f.recovery, f.metrics, f.alone = silent, silent, silent, r.watched(f.alone)
	r.front = f
	r.listen(l)
	return r
}

// nothing is the node role of a machine without an engine.
func (r *rig) nothing() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewNodeServiceHandler(gantryv1connect.UnimplementedNodeServiceHandler{}))
	mux.Handle(gantryv1connect.NewImageServiceHandler(gantryv1connect.UnimplementedImageServiceHandler{}))
	return mux
}

func (r *rig) local(h http.Handler) server.Node {
	path := filepath.Join(r.run, "local.sock")
	l, err := net.Listen("unix", path)
	check(r.t, err)
	r.serve(l, h)
	return localNode(path, h)
}

// open makes the server that leads.
func (r *rig) open(role *serverRole, signer []byte) {
	t := r.t
	member, err := cluster.Start(t.Context(), cluster.Options{Root: t.TempDir(), Run: filepath.Join(r.run, "etcd"), Logger: role.d.Logger})
	check(t, err)
	t.Cleanup(member.Stop)
	ctx, cancel := context.WithCancel(context.Background())
	st, err := store.New(ctx, member.Client(), role.d.Logger)
	check(t, err)
	sealer, err := seal.Open(filepath.Join(role.d.Root, sealFile), true)
	check(t, err)
	n := role.machine.Record().Node
	n.Member = member.ID()
	s, srv := role.assemble(member, st, sealer)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{st.Run, srv.Run, srv.Lead} {
		wg.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	check(t, machines.Found(ctx, st, sealer, role.machine.Record().Cluster, signer, n))
	check(t, st.Update(ctx, func(tx *store.Tx) error {
		for i, o := range []*gantryv1.Node{{Meta: store.NewMeta(aServer), Role: "server"}, {Meta: store.NewMeta(aNode), Role: "node"}, {Meta: store.NewMeta(aDemoted), Role: "node"}} {
			o.Name, o.Address = fmt.Sprint("other", i), fmt.Sprint("127.0.1.", i+1)
			o.ApiAddress, o.Subnet = o.Address+":1", fmt.Sprintf("10.192.%d.0/22", 4*(i+1))
			store.Put(tx, o)
		}
		return nil
	}))
	for _, h := range []*http.Handler{&s.api, &s.between, &s.sessions} {
		*h = r.watched(*h)
	}
	s.metrics = observe.New()
	s.reigns.Store(true)
	role.set(s)
	r.serving, r.server = s, srv
}

// watched notes which probes come to a handler, and that it does not panic.
func (r *rig) watched(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				r.t.Errorf("%s panics: %v\n%s", req.URL.Path, p, debug.Stack())
				panic(http.ErrAbortHandler)
			}
		}()
		if n := req.Header.Get("Probe"); n != "" {
			r.reached.Store(n, true)
		}
		h.ServeHTTP(w, req)
	})
}

func (r *rig) serve(l net.Listener, h http.Handler) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	r.t.Cleanup(func() { cancel(); <-done })
}

func (r *rig) listen(machines net.Listener) {
	for name, h := range map[string]http.Handler{"api.sock": r.front.Operators(), "inner.sock": r.front.Local()} {
		l, err := net.Listen("unix", filepath.Join(r.run, name))
		check(r.t, err)
		r.serve(l, h)
	}
	r.serve(tls.NewListener(machines, r.front.machine.keeper.ServerTLS()), r.front.Machines())
}

// door is a way to the front.
type door struct{ hostile.Way }

func (r *rig) socket(name string) door {
	return door{hostile.Way{Client: unixClient("unix://" + filepath.Join(r.run, name)), Base: "http://gantryd"}}
}

// as is the port for machines, with a certificate.
func (r *rig) as(node string, role identity.Role) door {
	return r.with(keeper(r.t, r.ca, r.roots, node, role).Client(identity.AnyServer))
}

func (r *rig) with(c *http.Client) door {
	r.t.Cleanup(c.CloseIdleConnections)
	return door{hostile.Way{Client: c, Base: "https://" + r.address}}
}

// anonymous is the port for machines, without a certificate.
func (r *rig) anonymous() door {
	token := identity.NewToken(identity.Node, r.ca.RootHash())
	return r.with(identity.JoinClient(token))
}

func (d door) under(prefix string) door {
	d.Base += prefix
	return d
}

func (d door) saying(header, value string) door {
	d.Headers = map[string]string{header: value}
	return d
}

// outcome of a probe.
type outcome struct {
	hostile.Answer
	reached bool // a handler had it
}

// streamPatience is for streams that go on.
const streamPatience = 2 * time.Second

// call sends one message to a method.
func (r *rig) call(d door, procedure string, m protoreflect.MethodDescriptor, patience time.Duration, msg proto.Message) outcome {
	return r.probe(d, patience, func(ctx context.Context, w hostile.Way) hostile.Answer { return w.Call(ctx, procedure, m, msg) })
}

// post sends a body to a path.
func (r *rig) post(d door, path string, body []byte) outcome {
	return r.probe(d, time.Minute, func(ctx context.Context, w hostile.Way) hostile.Answer {
		return w.Post(ctx, path, "application/proto", body)
	})
}

func (r *rig) probe(d door, patience time.Duration, send func(context.Context, hostile.Way) hostile.Answer) (out outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	number := strconv.FormatInt(r.probes.Add(1), 10)
	w := d.Way
	w.Headers = maps.Clone(d.Headers)
	if w.Headers == nil {
		w.Headers = map[string]string{}
	}
	w.Headers["Probe"] = number
	out.Answer = send(ctx, w)
	_, out.reached = r.reached.Load(number)
	return out
}
