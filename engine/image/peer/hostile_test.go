package peer_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/engine/image/peer"
)

// hostile is a node that says it has a sample and sends what it likes of the layer.
func (c *cluster) hostile(id string, s *imagetest.Sample, send http.HandlerFunc) *node {
	c.t.Helper()
	n := c.node(id)
	n.has(s)
	h := n.images.Peers().Handler()
	f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, s.Layers[0].Digest.String()) {
			send(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
	n.wrapped.Store(&f)
	return n
}

// zeros sends that many bytes that are wrong.
func zeros(w http.ResponseWriter, n int64) {
	_, _ = io.CopyN(w, zeroReader{}, n)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// liars are what a node can do to another, for a layer of some size.
func liars(size int64) map[string]http.HandlerFunc {
	declare := func(w http.ResponseWriter, n int64) { w.Header().Set("Content-Length", strconv.FormatInt(n, 10)) }
	return map[string]http.HandlerFunc{
		"wrong bytes": func(w http.ResponseWriter, _ *http.Request) { declare(w, size); zeros(w, size) },
		"right size and wrong bytes from the middle": func(w http.ResponseWriter, r *http.Request) {
			var from int64
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			declare(w, size-from)
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
				w.WriteHeader(http.StatusPartialContent)
			}
			zeros(w, size-from)
		},
		"short":              func(w http.ResponseWriter, _ *http.Request) { declare(w, size); zeros(w, size/2) },
		"short and says so":  func(w http.ResponseWriter, _ *http.Request) { declare(w, size/2); zeros(w, size/2) },
		"longer and says so": func(w http.ResponseWriter, _ *http.Request) { declare(w, size+1); zeros(w, size+1) },
		"endless":            func(w http.ResponseWriter, _ *http.Request) { zeros(w, 1<<40) },
		"nothing":            func(w http.ResponseWriter, r *http.Request) { declare(w, size); <-r.Context().Done() },
		"nothing after a part": func(w http.ResponseWriter, r *http.Request) {
			declare(w, size)
			zeros(w, size/2)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
		"a byte now and then": func(w http.ResponseWriter, r *http.Request) {
			declare(w, size)
			for tick := time.NewTicker(5 * time.Millisecond); ; {
				zeros(w, 1)
				_ = http.NewResponseController(w).Flush()
				select {
				case <-tick.C:
				case <-r.Context().Done():
					return
				}
			}
		},
		"no answer": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:2/", http.StatusFound)
		},
		"missing":      func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"failure":      func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "x", http.StatusInternalServerError) },
		"hangs up":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"another part": func(w http.ResponseWriter, _ *http.Request) { partial(w, size, 1) },
		"another size": func(w http.ResponseWriter, _ *http.Request) { partial(w, size+5, 0) },
	}
}

func partial(w http.ResponseWriter, size, from int64) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
	w.WriteHeader(http.StatusPartialContent)
	zeros(w, size-from)
}

func impatient(o *peer.Options) {
	o.Stall, o.Patience, o.RateAfter, o.MinRate = 50*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond, 4<<10
}

// TestHostileNodeIsLeft has one node that lies and one that does not: the image arrives whole, from the honest one.
func TestHostileNodeIsLeft(t *testing.T) {
	s := noise(t, 3<<20)
	for name, lie := range liars(s.Layers[0].Size) {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.hostile("server-1", s, lie)
			n := c.node("node-0", impatient)
			// The liar is the only one at first, so that it is asked.
			err := n.pull(s)
			if err == nil {
				t.Fatal("the pull went well with a liar alone")
			}
			honest := c.node("server-0")
			honest.has(s)
			check(t, n.pull(s))
			n.complete(s)
			if honest.sent(s.Layers[0]) == 0 {
				t.Error("the honest node sent nothing of the layer")
			}
		})
	}
}

// TestHostileNodeFillsNoDisk counts what is kept of a node that sends without end.
func TestHostileNodeFillsNoDisk(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 2<<20)
	size := s.Layers[0].Size
	var sent atomic.Int64
	c.hostile("server-1", s, func(w http.ResponseWriter, _ *http.Request) {
		zeros(counted{w, &sent}, 1<<40)
	})
	n := c.node("node-0", impatient)
	if err := n.pull(s); err == nil {
		t.Fatal("the pull went well")
	}
	if got := sent.Load(); got > 20*size {
		t.Errorf("%d bytes were taken of a layer of %d", got, size)
	}
	n.rig.Collect(t)
	if kept := written(t, n); kept > 2*size {
		t.Errorf("%d bytes are kept of a layer of %d", kept, size)
	}
}

func written(t *testing.T, n *node) (total int64) {
	t.Helper()
	sts, err := n.rig.Content.ListStatuses(n.rig.Context(t))
	check(t, err)
	for _, st := range sts {
		total += st.Offset
	}
	return total
}

// TestHostileDocument has a node lie about the manifest itself, of which not even the size is known.
func TestHostileDocument(t *testing.T) {
	s := noise(t, 10)
	other := noise(t, 20)
	for name, body := range map[string]io.Reader{
		"endless":        io.LimitReader(zeroReader{}, 1<<40),
		"another image":  bytes.NewReader(other.Blobs[other.Manifest.Digest]),
		"nothing":        bytes.NewReader(nil),
		"what is not it": strings.NewReader("{}"),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			liar := c.node("server-1")
			liar.has(s)
			var sent atomic.Int64
			f := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(counted{w, &sent}, body) })
			liar.wrapped.Store(&f)
			n := c.node("node-0", impatient)
			if err := n.pull(s); err == nil {
				t.Fatal("the pull went well")
			}
			if sent.Load() > 64<<20 {
				t.Errorf("%d bytes were taken for a manifest", sent.Load())
			}
			c.node("server-0").has(s)
			check(t, n.pull(s))
			n.complete(s)
		})
	}
}

// TestCorruptSourceIsFoundOut has a chain behind a node whose copy is damaged: those behind it blame it, not each other.
func TestCorruptSourceIsFoundOut(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 4<<20)
	size := s.Layers[0].Size
	var asked atomic.Int64
	c.hostile("server-1", s, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		liars(size)["right size and wrong bytes from the middle"](w, r)
	})
	c.node("server-0").has(s)
	errs := make(chan error)
	const nodes = 4
	for i := range nodes {
		n := c.node("node-" + strconv.Itoa(i))
		go func() {
			var err error
			for range 3 { // as the agent does
				if err = n.pull(s); err == nil {
					break
				}
			}
			errs <- err
		}()
	}
	for range nodes {
		check(t, <-errs)
	}
	if got := asked.Load(); got > 3 {
		t.Errorf("the damaged copy was asked for %d times by %d nodes", got, nodes)
	}
}
