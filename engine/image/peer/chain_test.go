package peer_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/engine/image/peer"
)

// gate stops a node in the middle of a layer until it is opened.
type gate struct {
	reached, open chan struct{}
	once          sync.Once
}

// gated makes a node send half of a layer and wait.
func (n *node) gated(layer string, size int64) *gate {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	h := n.images.Peers().Handler()
	f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, layer) {
			w = &gatedWriter{ResponseWriter: n.count(w, r.URL.Path), g: g, left: size / 2}
		}
		h.ServeHTTP(w, r)
	})
	n.wrapped.Store(&f)
	return g
}

type gatedWriter struct {
	http.ResponseWriter
	g    *gate
	left int64
}

func (w *gatedWriter) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left <= 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		w.g.once.Do(func() { close(w.g.reached) })
		<-w.g.open
	}
	return w.ResponseWriter.Write(p)
}

func (w *gatedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// signals makes a node tell when it begins to send a layer, once some of it is there.
func (n *node) signals(layer string) <-chan struct{} {
	began := make(chan struct{}, 100)
	h := n.images.Peers().Handler()
	f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, layer) {
			w = &gatedWriter{ResponseWriter: n.count(w, r.URL.Path), g: &gate{reached: make(chan struct{}), open: closed()}, left: 1 << 62}
			w = signalling{w, began}
		}
		h.ServeHTTP(w, r)
	})
	n.wrapped.Store(&f)
	return began
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

type signalling struct {
	http.ResponseWriter
	began chan struct{}
}

func (s signalling) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	select {
	case s.began <- struct{}{}:
	default:
	}
	return n, err
}

func (s signalling) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// start pulls in the background.
func (n *node) start(s *imagetest.Sample) <-chan error {
	done := make(chan error, 1)
	go func() { done <- n.pull(s) }()
	return done
}

// TestDownloadsChain has a second and a third node join while the first has half of a layer: each is sent on what is there by
// the one before, and the rest as it comes.
func TestDownloadsChain(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 4<<20)
	layer := s.Layers[0]
	source := c.node("server-0")
	source.has(s)
	g := source.gated(layer.Digest.String(), layer.Size)
	a, b, d := c.node("node-a"), c.node("node-b"), c.node("node-d")
	sentOn, again := a.signals(layer.Digest.String()), b.signals(layer.Digest.String())
	first := a.start(s)
	<-g.reached
	second := b.start(s)
	<-sentOn // while the source waits
	third := d.start(s)
	<-again
	close(g.open)
	for _, done := range []<-chan error{first, second, third} {
		check(t, <-done)
	}
	for _, n := range []*node{a, b, d} {
		n.complete(s)
	}
	if f := a.images.Peers().Figures(); f.Received.Value() < layer.Size || f.Sent.Value() < layer.Size || f.Fallback.Value() != 0 {
		t.Errorf("counted: %d received, %d sent, %d from a registry", f.Received.Value(), f.Sent.Value(), f.Fallback.Value())
	}
	for _, n := range []*node{source, a, b} {
		if got := n.sent(layer); got != layer.Size {
			t.Errorf("%s sent %d bytes of a layer of %d", n.id, got, layer.Size)
		}
	}
}

// TestChainSurvivesItsMiddle stops the middle node's download: the one behind it goes on with another, at its byte.
func TestChainSurvivesItsMiddle(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 4<<20)
	layer := s.Layers[0]
	source := c.node("server-0")
	source.has(s)
	g := source.gated(layer.Digest.String(), layer.Size)
	a, b := c.node("node-a"), c.node("node-b")
	sentOn := a.signals(layer.Digest.String())
	ctx, stop := contextOf(t)
	first := make(chan error, 1)
	go func() {
		_, err := a.images.Pull(ctx, &gantryv1.PullRequest{Image: "127.0.0.1:1/library/app@" + s.Manifest.Digest.String()}, nil)
		first <- err
	}()
	<-g.reached
	second := b.start(s)
	<-sentOn
	stop()
	if err := <-first; err == nil {
		t.Fatal("the pull that was stopped went well")
	}
	close(g.open)
	check(t, <-second)
	b.complete(s)
}

// TestKilledInTheMiddle opens the store of a node whose daemon died in the middle of a layer: the rest is asked for, and
// nothing else.
func TestKilledInTheMiddle(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 4<<20)
	layer := s.Layers[0]
	source := c.node("server-0")
	source.has(s)
	g := source.gated(layer.Digest.String(), layer.Size)
	n := c.node("node-a")
	done := n.start(s)
	<-g.reached
	n.awaitStored(s, layer.Size/4)
	n.rig = n.rig.Copy(t) // what a kill leaves on the disk
	close(g.open)
	check(t, <-done)
	source.wrapped.Store(nil)
	before := source.sent(layer)
	n.open()
	check(t, n.images.Peers().Announce(t.Context()))
	check(t, n.pull(s))
	n.complete(s)
	if got := source.sent(layer) - before; got > layer.Size*3/4 || got == 0 {
		t.Errorf("%d bytes of %d were sent after the kill", got, layer.Size)
	}
}

// awaitStored waits until the layer has come that far, and all else is there.
func (n *node) awaitStored(s *imagetest.Sample, size int64) {
	n.c.t.Helper()
	for {
		sts, err := n.rig.Content.ListStatuses(n.rig.Context(n.c.t))
		check(n.c.t, err)
		_, err = n.rig.Content.Info(n.rig.Context(n.c.t), s.Config.Digest)
		if len(sts) == 1 && sts[0].Offset >= size && err == nil {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-n.c.t.Context().Done():
			n.c.t.Fatal("the layer does not come")
		}
	}
}

// TestUploadsAreBounded asks for more than a node sends at a time.
func TestUploadsAreBounded(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 2<<20)
	layer := s.Layers[0]
	n := c.node("server-0", func(o *peer.Options) { o.MaxUploads = 2 })
	n.has(s)
	g := n.gated(layer.Digest.String(), layer.Size)
	get := func() *http.Response {
		resp, err := http.Get(n.server.URL + peer.Path + layer.Digest.String())
		check(t, err)
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	first, second, third := get(), get(), get()
	if first.StatusCode != http.StatusOK || second.StatusCode != http.StatusOK {
		t.Fatalf("%d and %d", first.StatusCode, second.StatusCode)
	}
	if third.StatusCode != http.StatusServiceUnavailable || third.Header.Get("Retry-After") == "" {
		t.Errorf("the third is answered %d", third.StatusCode)
	}
	close(g.open)
	for _, resp := range []*http.Response{first, second} {
		got, err := io.Copy(io.Discard, resp.Body)
		check(t, err)
		if got != layer.Size {
			t.Errorf("%d bytes came of %d", got, layer.Size)
		}
	}
	for resp := get(); resp.StatusCode != http.StatusOK; resp = get() { // their handlers end a moment later
		check(t, resp.Body.Close())
	}
}

// TestHandlerRefuses asks for what there is not.
func TestHandlerRefuses(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	n := c.node("server-0")
	n.has(s)
	layer := peer.Path + s.Layers[0].Digest.String()
	for _, q := range []struct {
		method, path, ranges string
		want                 int
	}{
		{"GET", layer, "", http.StatusOK},
		{"HEAD", layer, "", http.StatusOK},
		{"GET", layer, "bytes=1-", http.StatusPartialContent},
		{"GET", layer, "bytes=1-5", http.StatusRequestedRangeNotSatisfiable},
		{"GET", layer, "bytes=-1", http.StatusRequestedRangeNotSatisfiable},
		{"GET", layer, "bytes=9999999-", http.StatusRequestedRangeNotSatisfiable},
		{"GET", layer, "bytes=99999999999999999999-", http.StatusRequestedRangeNotSatisfiable},
		{"PUT", layer, "", http.StatusMethodNotAllowed},
		{"DELETE", layer, "", http.StatusMethodNotAllowed},
		{"GET", peer.Path + "sha256:" + strings.Repeat("0", 64), "", http.StatusNotFound},
		{"GET", peer.Path + "sha256:..%2f..%2fmeta.db", "", http.StatusBadRequest},
		{"GET", peer.Path + "meta.db", "", http.StatusBadRequest},
		{"GET", peer.Path, "", http.StatusNotFound},
	} {
		r := httptest.NewRequest(q.method, q.path, nil)
		if q.ranges != "" {
			r.Header.Set("Range", q.ranges)
		}
		w := httptest.NewRecorder()
		n.images.Peers().Handler().ServeHTTP(w, r)
		if w.Code != q.want {
			t.Errorf("%s %s %s: %d, want %d", q.method, q.path, q.ranges, w.Code, q.want)
		}
	}
}

// TestWhatCannotBeReadYetIsWaitedFor asks a node for a layer whose file it does not find while it arrives: so it is between its
// last byte and its record.
func TestWhatCannotBeReadYetIsWaitedFor(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 2<<20)
	layer := s.Layers[0]
	source := c.node("server-0")
	source.has(s)
	g := source.gated(layer.Digest.String(), layer.Size)
	a := c.node("node-a", func(o *peer.Options) { o.ContentRoot = t.TempDir() })
	b := c.node("node-b")
	asked := make(chan struct{}, 10)
	h := a.images.Peers().Handler()
	f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, layer.Digest.String()) {
			asked <- struct{}{}
		}
		h.ServeHTTP(a.count(w, r.URL.Path), r)
	})
	a.wrapped.Store(&f)
	first := a.start(s)
	<-g.reached
	second := b.start(s)
	<-asked
	close(g.open)
	check(t, <-first)
	check(t, <-second)
	b.complete(s)
	if got := a.sent(layer); got != layer.Size {
		t.Errorf("it sent %d bytes of a layer of %d", got, layer.Size)
	}
}
