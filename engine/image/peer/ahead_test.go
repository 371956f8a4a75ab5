package peer_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/fault"
)

// ahead asks for a copy as the leader does.
func ahead(s *imagetest.Sample) *gantryv1.PullRequest {
	return &gantryv1.PullRequest{
		Image: "127.0.0.1:1/library/app@" + s.Manifest.Digest.String(), Policy: gantryv1.PullPolicy_PULL_POLICY_NEVER, Ahead: true,
	}
}

// TestAheadComesOnePartAtATime copies an image with several layers, and has the node offer it as a whole only then.
func TestAheadComesOnePartAtATime(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 2<<20, 2<<20, 2<<20, 2<<20)
	source, n := c.node("server-0"), c.node("node-0")
	source.has(s)
	var now, most atomic.Int64
	h := source.images.Peers().Handler()
	counting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := c.Keepers(s.Manifest.Digest.String()); !slices.Equal(got, []string{"server-0"}) {
			t.Errorf("while it arrives, %v are said to have it", got)
		}
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		h.ServeHTTP(w, r)
	})
	source.wrapped.Store(&counting)
	_, err := n.images.Pull(t.Context(), ahead(s), nil)
	check(t, err)
	n.complete(s)
	if most.Load() != 1 {
		t.Errorf("%d parts came at a time", most.Load())
	}
	check(t, n.images.Peers().Announce(t.Context()))
	if got := c.Keepers(s.Manifest.Digest.String()); !slices.Equal(got, []string{"node-0", "server-0"}) {
		t.Errorf("%v are said to have it", got)
	}
	_, err = n.images.Pull(t.Context(), ahead(s), nil) // what is there is no work
	check(t, err)
}

// TestAheadIsKeptAsLongAsItIsNeeded prunes with and without a release that needs a copy.
func TestAheadIsKeptAsLongAsItIsNeeded(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	n := c.node("node-0")
	c.node("server-0").has(s)
	_, err := n.images.Pull(t.Context(), ahead(s), nil)
	check(t, err)
	if d := c.FindName(nowhere, true); d == "" || len(c.Keepers(d)) == 0 {
		t.Error("the source's name is gone")
	}
	needed := true
	prune := func() []string {
		r, err := n.images.Prune(t.Context(), false, func(_, digest string) bool { return needed && digest == s.Manifest.Digest.String() })
		check(t, err)
		return r.Removed
	}
	if got := prune(); len(got) != 0 {
		t.Errorf("%v was removed, which a release needs", got)
	}
	n.complete(s)
	needed = false
	if got := prune(); len(got) != 1 {
		t.Errorf("%v was removed, want the copy", got)
	}
	check(t, n.images.Peers().Announce(t.Context()))
	if got := c.Keepers(s.Manifest.Digest.String()); !slices.Equal(got, []string{"server-0"}) {
		t.Errorf("%v are said to have it", got)
	}
}

// TestNameStaysAfterCopy has somebody pull by its digest what was copied ahead: it is an image of theirs then.
func TestNameStaysAfterCopy(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 100)
	n := c.node("node-0")
	c.node("server-0").has(s)
	_, err := n.images.Pull(t.Context(), ahead(s), nil)
	check(t, err)
	check(t, n.images.Tag(t.Context(), ahead(s).Image, "mine:1"))
	r, err := n.images.Prune(t.Context(), false, nil)
	check(t, err)
	if len(r.Removed) != 1 || strings.Contains(r.Removed[0], "mine") {
		t.Errorf("%v was removed", r.Removed)
	}
	n.complete(s)
}

// TestAheadGivesWay has an instance want an image that is being copied ahead of need. It goes on at the byte.
func TestAheadGivesWay(t *testing.T) {
	c := newCluster(t)
	s := noise(t, 6<<20)
	layer := s.Layers[0]
	source, n := c.node("server-0"), c.node("node-0")
	source.has(s)
	h := source.images.Peers().Handler()
	half := make(chan struct{})
	var once sync.Once
	var rest atomic.Value
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, layer.Digest.String()) {
			h.ServeHTTP(w, r)
			return
		}
		first := false
		once.Do(func() { first = true })
		if first {
			h.ServeHTTP(&stuck{ResponseWriter: w, left: int(layer.Size / 2), half: half, gone: r.Context().Done()}, r)
			return
		}
		rest.Store(r.Header.Get("Range"))
		h.ServeHTTP(w, r)
	})
	source.wrapped.Store(&slow)
	copied := make(chan error, 1)
	go func() {
		_, err := n.images.Pull(t.Context(), ahead(s), nil)
		copied <- err
	}()
	<-half
	for written(t, n) == 0 { // it is on its way
		<-time.After(time.Millisecond)
	}
	check(t, n.pull(s))
	if err := <-copied; !fault.Is(err, fault.Conflict) {
		t.Errorf("the copy ended with %v, want that it gave way", err)
	}
	n.complete(s)
	if got, _ := rest.Load().(string); got == "" || got == "bytes=0-" {
		t.Errorf("the rest was asked for with %q, want from the middle", got)
	}
}

// stuck sends a part of a blob and then nothing until the receiver has gone.
type stuck struct {
	http.ResponseWriter
	left int
	half chan struct{}
	gone <-chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	if s.left >= len(p) {
		s.left -= len(p)
		return s.ResponseWriter.Write(p)
	}
	_ = http.NewResponseController(s.ResponseWriter).Flush()
	close(s.half)
	<-s.gone
	panic(http.ErrAbortHandler)
}
