package peer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server/blobtrack"
)

// nowhere is a registry that nobody answers at.
const nowhere = "127.0.0.1:1/library/app:1"

// cluster is a tracker and nodes that speak to it and to each other over loopback.
type cluster struct {
	t testing.TB
	*blobtrack.Tracker
	url string

	mu    sync.Mutex
	nodes map[string]*node
}

type node struct {
	c       *cluster
	id      string
	rig     *imagetest.Rig
	images  *image.Service
	server  *httptest.Server
	served  map[string]*atomic.Int64 // bytes by path
	down    atomic.Bool
	wrapped atomic.Pointer[http.HandlerFunc] // answers in the node's place
	stop    func()
}

type nodeKey struct{}

// faults turns errors into their form on the wire, as the server does.
type faults struct{}

func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, r)
		if err != nil {
			return nil, wire.Encode(err)
		}
		return resp, nil
	}
}

func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{t: t, nodes: map[string]*node{}}
	c.Tracker = blobtrack.New(blobtrack.Options{Node: c.find})
	path, h := c.Handler(blobtrack.Access{Caller: func(ctx context.Context) (string, error) {
		return ctx.Value(nodeKey{}).(string), nil
	}}, connect.WithInterceptors(faults{}))
	mux := http.NewServeMux()
	mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, r.Header.Get("Node"))))
	}))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *cluster) find(id string) (blobtrack.Node, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.nodes[id]
	if !ok {
		return blobtrack.Node{}, false
	}
	return blobtrack.Node{Address: strings.TrimPrefix(n.server.URL, "http://"), Server: strings.HasPrefix(id, "server"), Down: n.down.Load()}, true
}

// as says which node a request is from, as a certificate would.
type as string

func (a as) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Node", string(a))
	return http.DefaultTransport.RoundTrip(r)
}

func (c *cluster) node(id string, change ...func(*peer.Options)) *node {
	c.t.Helper()
	n := &node{c: c, id: id, rig: imagetest.New(c.t), served: map[string]*atomic.Int64{}}
	n.server = httptest.NewUnstartedServer(http.HandlerFunc(n.serve))
	n.open(change...)
	c.mu.Lock()
	c.nodes[id] = n
	n.server.Start()
	c.mu.Unlock()
	c.t.Cleanup(n.server.Close)
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.images.Peers().Run(ctx) }()
	n.stop = func() { cancel(); <-ended }
	c.t.Cleanup(func() { cancel() })
	return n
}

func (n *node) open(change ...func(*peer.Options)) {
	n.c.t.Helper()
	client := gantryv1connect.NewNodeImageServiceClient(&http.Client{Transport: as(n.id)}, n.c.url)
	o := peer.Options{
		Tracker:     func(context.Context) (gantryv1connect.NodeImageServiceClient, error) { return client, nil },
		Client:      func(string) *http.Client { return http.DefaultClient },
		Scheme:      "http",
		ContentRoot: n.rig.Root + "/content",
		Patience:    2 * time.Second,
		Logger:      slog.New(slog.NewTextHandler(n.c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("on", n.id),
	}
	for _, f := range change {
		f(&o)
	}
	var err error
	n.images, err = image.New(image.Options{
		Content: n.rig.Content, Images: n.rig.Images, Leases: n.rig.Leases, Root: n.rig.Root + "/images", Peers: &o,
	})
	check(n.c.t, err)
}

// serve counts the bytes of blobs that leave the node.
func (n *node) serve(w http.ResponseWriter, r *http.Request) {
	if f := n.wrapped.Load(); f != nil {
		(*f)(w, r)
		return
	}
	n.images.Peers().Handler().ServeHTTP(n.count(w, r.URL.Path), r)
}

func (n *node) count(w http.ResponseWriter, path string) http.ResponseWriter {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.served[path] == nil {
		n.served[path] = &atomic.Int64{}
	}
	return counted{w, n.served[path]}
}

type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// sent is how much of a blob left the node.
func (n *node) sent(d v1.Descriptor) int64 {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if c := n.served[peer.Path+d.Digest.String()]; c != nil {
		return c.Load()
	}
	return 0
}

// has stores a sample on the node and makes it known.
func (n *node) has(s *imagetest.Sample) {
	n.c.t.Helper()
	n.rig.Store(n.c.t, nowhere, s)
	n.images.Changed()
	check(n.c.t, n.images.Peers().Announce(n.c.t.Context()))
}

// pull fetches a sample by its digest.
func (n *node) pull(s *imagetest.Sample) error {
	_, err := n.images.Pull(n.c.t.Context(), &gantryv1.PullRequest{Image: "127.0.0.1:1/library/app@" + s.Manifest.Digest.String()}, nil)
	return err
}

// complete checks that all of a sample is there, and that the collector leaves it.
func (n *node) complete(s *imagetest.Sample) {
	n.c.t.Helper()
	n.rig.Collect(n.c.t)
	for d, body := range s.Blobs {
		info, err := n.rig.Content.Info(n.rig.Context(n.c.t), d)
		check(n.c.t, err)
		if info.Size != int64(len(body)) {
			n.c.t.Errorf("%s: %s has %d bytes, want %d", n.id, d, info.Size, len(body))
		}
	}
	if _, writes := n.rig.Blobs(n.c.t); writes != 0 {
		n.c.t.Errorf("%s: %d unfinished writes are left", n.id, writes)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (%s)", err, fault.HintOf(err))
	}
}

// noise makes an image with layers of random bytes.
func noise(t testing.TB, sizes ...int) *imagetest.Sample {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{byte(len(sizes)), byte(sizes[0])})
	var layers [][]imagetest.File
	for i, size := range sizes {
		body := make([]byte, size)
		_, _ = rng.Read(body)
		f := imagetest.File{Body: string(body)}
		f.Header.Name = "noise" + strconv.Itoa(i)
		layers = append(layers, []imagetest.File{f})
	}
	return imagetest.NewSample(t, v1.ImageConfig{}, layers...)
}

func TestImageReachesFiveNodesAtOnce(t *testing.T) {
	c := newCluster(t)
	source := c.node("server-0")
	s := noise(t, 12<<20, 8<<20, 1<<10)
	source.has(s)
	var nodes []*node
	for i := range 5 {
		nodes = append(nodes, c.node("node-"+strconv.Itoa(i)))
	}
	errs := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() { errs <- n.pull(s) }()
	}
	for range nodes {
		check(t, <-errs)
	}
	for _, n := range nodes {
		n.complete(s)
	}
	for _, l := range s.Layers[:2] {
		if got := source.sent(l); got > l.Size*12/10 {
			t.Errorf("the source sent %d bytes of a layer of %d", got, l.Size)
		}
	}
}

func TestNodeWithoutPeersSaysBoth(t *testing.T) {
	c := newCluster(t)
	n := c.node("node-0")
	err := n.pull(noise(t, 10))
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("kind %v, want unavailable: %v", fault.KindOf(err), err)
	}
	for _, want := range []string{"127.0.0.1:1", "no other node has it"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestFirstNodeGoneInTheMiddle(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 6<<20)
	a, b := c.node("server-0"), c.node("server-1")
	a.has(s)
	b.has(s)
	// Whoever is asked first for the layer ends its connection after a third, and is not there any more.
	var died atomic.Bool
	layer := s.Layers[0]
	rest := make(chan string, 10)
	for _, n := range []*node{a, b} {
		h := n.images.Peers().Handler()
		f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, layer.Digest.String()) {
				h.ServeHTTP(w, r)
				return
			}
			if died.CompareAndSwap(false, true) {
				n.down.Store(true)
				h.ServeHTTP(&cut{ResponseWriter: w, left: int(layer.Size / 3)}, r)
				return
			}
			rest <- r.Header.Get("Range")
			h.ServeHTTP(n.count(w, r.URL.Path), r)
		})
		n.wrapped.Store(&f)
	}
	n := c.node("node-0")
	check(t, n.pull(s))
	n.complete(s)
	if got := <-rest; got == "" || got == "bytes=0-" {
		t.Errorf("the rest was asked for with %q, want from the middle", got)
	}
	if sent := a.sent(layer) + b.sent(layer); sent > layer.Size*3/4 {
		t.Errorf("%d bytes were sent again, want the rest only", sent)
	}
}

// cut ends a connection after some bytes.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	if c.left < len(p) {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// TestPullGoesOnAfterFailure stops a pull in the middle; the next one asks for the rest only.
func TestPullGoesOnAfterFailure(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 6<<20)
	layer := s.Layers[0]
	a := c.node("server-0")
	a.has(s)
	h := a.images.Peers().Handler()
	broken := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "bytes=0-" && strings.Contains(r.URL.Path, layer.Digest.String()) {
			h.ServeHTTP(&cut{ResponseWriter: w, left: int(layer.Size / 2)}, r)
			return
		}
		if strings.Contains(r.URL.Path, layer.Digest.String()) {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		h.ServeHTTP(w, r)
	})
	a.wrapped.Store(&broken)
	n := c.node("node-0", func(o *peer.Options) { o.Patience = time.Millisecond })
	if err := n.pull(s); err == nil {
		t.Fatal("the pull went well")
	}
	a.wrapped.Store(nil)
	a.images.Changed()
	check(t, n.pull(s))
	n.complete(s)
	if got := a.sent(layer); got > layer.Size*3/4 || got == 0 {
		t.Errorf("%d bytes were sent for the rest of %d", got, layer.Size)
	}
}

// TestNamesOfServersAreBelieved resolves a name that only other nodes know.
func TestNamesOfServersAreBelieved(t *testing.T) {
	c := newCluster(t)
	s, other := noise(t, 100), noise(t, 200)
	c.node("server-0").has(s)
	c.node("node-9").has(other) // younger, but who is node-9 to say
	n := c.node("node-0")
	img, err := n.images.Pull(t.Context(), &gantryv1.PullRequest{Image: nowhere}, nil)
	check(t, err)
	if img.Digest != s.Manifest.Digest.String() {
		t.Errorf("the name is %s, want the server's %s", img.Digest, s.Manifest.Digest)
	}
	n.complete(s)
}

// TestNamesOfNodesAreTheLastChoice resolves a name that neither a server nor the registry knows.
func TestNamesOfNodesAreTheLastChoice(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	c.node("node-9").has(s)
	if d := c.FindName(nowhere, false); d != "" {
		t.Errorf("%s is believed", d)
	}
	n := c.node("node-0")
	_, err := n.images.Pull(t.Context(), &gantryv1.PullRequest{Image: nowhere}, nil)
	check(t, err)
	n.complete(s)
	_, err = n.images.Pull(t.Context(), &gantryv1.PullRequest{Image: nowhere, Policy: gantryv1.PullPolicy_PULL_POLICY_ALWAYS}, nil)
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v, want the registry's failure: it was to be asked", err)
	}
}

// TestPolicyNeverMeansNoRegistry pulls from a node what no registry may be asked for, as services that are built are.
func TestPolicyNeverMeansNoRegistry(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	n := c.node("node-0")
	req := &gantryv1.PullRequest{Image: nowhere, Policy: gantryv1.PullPolicy_PULL_POLICY_NEVER}
	_, err := n.images.Pull(t.Context(), req, nil)
	if !fault.Is(err, fault.NotFound) || strings.Contains(err.Error(), "dial") {
		t.Errorf("%v, want that it is not here and no dial", err)
	}
	c.node("server-0").has(s)
	_, err = n.images.Pull(t.Context(), req, nil)
	check(t, err)
	n.complete(s)
}

// TestNewTrackerIsToldAgain has the leader change.
func TestNewTrackerIsToldAgain(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	source, n := c.node("server-0"), c.node("node-0")
	source.has(s)
	c.Reset()
	if c.FindName(nowhere, true) != "" {
		t.Fatal("the tracker remembers")
	}
	check(t, source.images.Peers().Announce(t.Context())) // with nothing to tell but itself
	check(t, n.pull(s))
	n.complete(s)
}

// TestNewLeaderIsToldAtOnce has the leader fall silent in the middle of a call. Its calls end with the news that another leads.
func TestNewLeaderIsToldAtOnce(t *testing.T) {
	c := newCluster(t)
	asked := make(chan struct{}, 10)
	dead := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(dead.Close)
	var calls atomic.Int64
	n := c.node("node-0", func(o *peer.Options) {
		next := o.Tracker
		o.Tracker = func(ctx context.Context) (gantryv1connect.NodeImageServiceClient, error) {
			if calls.Add(1) == 1 {
				return gantryv1connect.NewNodeImageServiceClient(http.DefaultClient, dead.URL), nil
			}
			return next(ctx)
		}
	})
	<-asked
	begin := time.Now()
	n.images.Moved()
	for news := c.Moved(); !c.Told("node-0"); news = c.Moved() {
		<-news
	}
	// A call ends by itself after 10 s.
	if got := calls.Load(); got != 2 || time.Since(begin) > 8*time.Second {
		t.Errorf("%d ways were taken in %s, want the new leader's after the dead one's", got, time.Since(begin))
	}
}

// TestRemovedImageIsNotOffered removes an image on the only node that has it.
func TestRemovedImageIsNotOffered(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	source, n := c.node("server-0"), c.node("node-0")
	source.has(s)
	_, err := source.images.Remove(t.Context(), nowhere, true, nil)
	check(t, err)
	check(t, source.images.Peers().Announce(t.Context()))
	if d := c.FindName(nowhere, true); d != "" {
		t.Errorf("the name is still %s", d)
	}
	if err := n.pull(s); err == nil || !strings.Contains(err.Error(), "no other node has it") {
		t.Errorf("%v, want that nobody has it", err)
	}
}

var errNoLeader = errors.New("nobody leads")

// TestWithoutLeaderTheRegistryIsAsked has no tracker at all.
func TestWithoutLeaderTheRegistryIsAsked(t *testing.T) {
	c := newCluster(t)
	n := c.node("node-0", func(o *peer.Options) {
		o.Patience = time.Millisecond
		o.Tracker = func(context.Context) (gantryv1connect.NodeImageServiceClient, error) { return nil, errNoLeader }
	})
	err := n.pull(noise(t, 10))
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), errNoLeader.Error()) {
		t.Errorf("%v names not both the registry and the leader", err)
	}
}

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

// TestImageIsBroughtForTagAndExport works on an image that only another server has.
func TestImageIsBroughtForTagAndExport(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	n := c.node("server-1")
	if err := n.images.Tag(t.Context(), nowhere, "app:2"); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v, want that nobody has it", err)
	}
	c.node("node-9").has(s)
	check(t, n.images.Bring(t.Context(), nowhere, ""))
	if _, err := n.images.Lookup(t.Context(), nowhere, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v: a name that only a node knows was believed", err)
	}
	c.node("server-0").has(s)
	check(t, n.images.Tag(t.Context(), nowhere, "app:2"))
	check(t, n.images.Export(t.Context(), io.Discard, []string{"app:2"}, ""))
	n.complete(s)
	if got := c.Digest("app:2"); got != s.Manifest.Digest.String() {
		t.Errorf("the new name is %q in the cluster", got)
	}
}
