package daemon

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/store"
)

// visit is a port for machines whose handlers do what streams do that last.
type visit struct {
	t     *testing.T
	front *front
	ca    *identity.Authority
	roots []byte
	url   string
	next  chan struct{} // for each, all that wait say one byte more
	mu    sync.Mutex
}

func newVisit(t *testing.T, f *front, ca *identity.Authority, roots []byte) *visit {
	v := &visit{t: t, front: f, ca: ca, roots: roots, next: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("/waits", f.from(anyRole, v.waits))
	mux.Handle("/writes", f.from(anyRole, v.writes))
	mux.Handle("/reads", f.from(anyRole, v.reads))
	s := httptest.NewUnstartedServer(mux)
	s.TLS, s.EnableHTTP2 = f.machine.keeper.ServerTLS(), true
	s.StartTLS()
	t.Cleanup(s.Close)
	v.url = s.URL
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.guests.watch(ctx, f.removed, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() { cancel(); <-done })
	return v
}

// waits is as a watch: it says something when there is something to say, and looks at its context.
func (v *visit) waits(w http.ResponseWriter, r *http.Request) {
	for {
		_, _ = w.Write([]byte("."))
		_ = http.NewResponseController(w).Flush()
		v.mu.Lock()
		next := v.next
		v.mu.Unlock()
		select {
		case <-next:
		case <-r.Context().Done():
			return
		}
	}
}

// writes is as the parts of images: it writes for as long as the other side takes it.
func (v *visit) writes(w http.ResponseWriter, _ *http.Request) {
	for b := make([]byte, 64<<10); ; {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// reads is as what is copied into a container: it waits for what the other side has to say.
func (v *visit) reads(w http.ResponseWriter, r *http.Request) {
	_, _ = w.Write([]byte("."))
	_ = http.NewResponseController(w).Flush()
	_, _ = io.Copy(io.Discard, r.Body)
}

// open begins a call that goes on.
func (v *visit) open(path, as, on string, config func(*tls.Config)) io.Reader {
	v.t.Helper()
	c := keeper(v.t, v.ca, v.roots, as, identity.Server).ClientTLS(identity.AnyMachine)
	config(c)
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: len(c.NextProtos) > 0}}
	body, more := io.Pipe() // nothing more is said
	req, err := http.NewRequestWithContext(v.t.Context(), http.MethodPost, v.url+path, body)
	check(v.t, err)
	if path != "/reads" {
		req.Body = nil
	}
	req.Header.Set(callerHeader, on)
	resp, err := hc.Do(req)
	check(v.t, err)
	v.t.Cleanup(func() { _ = more.Close(); _ = resp.Body.Close(); hc.CloseIdleConnections() })
	if resp.StatusCode != http.StatusOK {
		v.t.Fatalf("%s for %s: %s", path, as, resp.Status)
	}
	_, err = io.ReadFull(resp.Body, make([]byte, 1))
	check(v.t, err)
	return resp.Body
}

// endsAfter has calls of all kinds, and wants those of a machine that is removed to end, and no others.
func (v *visit) endsAfter(gone, stays, server string, remove func()) {
	v.t.Helper()
	http2 := func(*tls.Config) {}
	http1 := func(c *tls.Config) { c.NextProtos = nil }
	other := v.open("/waits", stays, "", http2)
	ends := map[string]io.Reader{"passed on by a server": v.open("/waits", server, gone, http2)}
	for _, path := range []string{"/waits", "/writes", "/reads"} {
		ends[path] = v.open(path, gone, "", http2)
	}
	ends["/waits, HTTP/1"], ends["/writes, HTTP/1"] = v.open("/waits", gone, "", http1), v.open("/writes", gone, "", http1)
	awaitCalls(v.t, v.front, len(ends)+1)
	remove()
	awaitCalls(v.t, v.front, 1) // the handlers are through
	for what, body := range ends {
		if _, err := io.Copy(io.Discard, body); err == nil && what != "/waits, HTTP/1" && what != "/waits" && what != "passed on by a server" {
			v.t.Errorf("%s: the other side takes it for a whole answer", what)
		}
	}
	v.mu.Lock()
	close(v.next)
	v.next = make(chan struct{})
	v.mu.Unlock()
	if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
		v.t.Errorf("the call of another machine has ended: %v", err)
	}
}

// awaitCalls waits until so many calls of machines are under way.
func awaitCalls(t *testing.T, f *front, want int) {
	t.Helper()
	tick, late := time.NewTicker(10*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for {
		f.guests.mu.Lock()
		n := len(f.guests.calls)
		f.guests.mu.Unlock()
		if n == want {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d calls are under way, not %d", n, want)
		}
	}
}

// TestWhatARemovedMachineHasOpenEndsOnANode: a plain node knows from the leader who was removed.
func TestWhatARemovedMachineHasOpenEndsOnANode(t *testing.T) {
	ca, roots, _, err := identity.NewAuthority("test")
	check(t, err)
	m := newMachine(t, Config{Root: t.TempDir()})
	m.keeper = keeper(t, ca, roots, "own", identity.Node)
	check(t, m.heard(&gantryv1.NodeUpdate{Full: true, Nodes: []*gantryv1.Node{
		{Meta: &gantryv1.Meta{Key: "s"}, Role: "server"}, {Meta: &gantryv1.Meta{Key: "n"}, Role: "node"}, {Meta: &gantryv1.Meta{Key: "x"}, Role: "node"},
	}}))
	f := &front{machine: m, role: &serverRole{moved: make(chan struct{})}, errors: connect.NewErrorWriter()}
	newVisit(t, f, ca, roots).endsAfter("n", "x", "s", func() { check(t, m.heard(&gantryv1.NodeUpdate{RemovedNodes: []string{"n"}})) })
}

// TestWhatARemovedMachineHasOpenEndsOnAServer: one that does not lead has the state too.
func TestWhatARemovedMachineHasOpenEndsOnAServer(t *testing.T) {
	r := newRig(t)
	r.serving.reigns.Store(false)
	newVisit(t, r.front, r.ca, r.roots).endsAfter(aNode, aDemoted, aServer, func() {
		check(t, r.serving.store.Update(t.Context(), func(tx *store.Tx) error { store.Delete[*gantryv1.Node](tx, aNode); return nil }))
	})
}

// TestWhatARemovedServerWatchesEnds has a stream of the API at the leader, through its real handlers.
func TestWhatARemovedServerWatchesEnds(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	done, ended := make(chan error, 1), make(chan error, 1)
	go func() { done <- r.front.watchCallers(ctx) }()
	defer func() { cancel(); <-done }()
	d := r.as(aServer, identity.Server).under(proxied)
	go func() {
		s, err := gantryv1connect.NewInstanceServiceClient(d.Client, d.Base).Events(ctx, connect.NewRequest(&gantryv1.EventsRequest{}))
		for err == nil && s.Receive() {
		}
		if err == nil {
			err = s.Err()
		}
		ended <- err
	}()
	awaitCalls(t, r.front, 1)
	check(t, r.serving.store.Update(t.Context(), func(tx *store.Tx) error { store.Delete[*gantryv1.Node](tx, aServer); return nil }))
	if err := <-ended; err == nil {
		t.Error("the stream has ended as if all were said")
	}
	awaitCalls(t, r.front, 0)
}

// TestNobodyIsShownOutByOneWhoKnowsNobody: a server whose member starts anew asks this machine's own session, and that may have
// said nothing yet.
func TestNobodyIsShownOutByOneWhoKnowsNobody(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir()})
	f := &front{machine: m, role: &serverRole{moved: make(chan struct{})}}
	if f.removed("n") {
		t.Error("a machine that has heard nothing takes another one for removed")
	}
	check(t, m.heard(&gantryv1.NodeUpdate{Full: true, Nodes: []*gantryv1.Node{{Meta: &gantryv1.Meta{Key: "s"}, Role: "server"}}}))
	if !f.removed("n") || f.removed("s") {
		t.Error("it does not go by what it has heard")
	}
}

func BenchmarkGuests(b *testing.B) {
	var g guests
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
	for b.Loop() {
		_, leave := g.enter(w, r, "a", "b")
		leave()
	}
}
