package blobtrack_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/server/blobtrack"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

var layer = "sha256:" + strings.Repeat("a", 64)

// world is a tracker with nodes whose state the test changes.
type world struct {
	*blobtrack.Tracker
	nodes map[string]blobtrack.Node
	now   time.Time
}

func newWorld(nodes ...string) *world {
	w := &world{nodes: map[string]blobtrack.Node{}, now: time.Unix(1e9, 0)}
	for _, n := range nodes {
		w.nodes[n] = blobtrack.Node{Address: n + ":7450", Server: strings.HasPrefix(n, "s")}
	}
	w.Tracker = blobtrack.New(blobtrack.Options{
		Node: func(id string) (blobtrack.Node, bool) { n, ok := w.nodes[id]; return n, ok },
		Now:  func() time.Time { return w.now },
	})
	return w
}

func (w *world) has(nodes ...string) {
	for _, n := range nodes {
		w.Announce(n, &gantryv1.AnnounceRequest{Boot: n, Have: []string{layer}})
	}
}

// ask returns whom a node is sent to first, with the depth.
func (w *world) ask(node string, exclude ...string) (string, int32) {
	r := w.Locate(node, &gantryv1.LocateRequest{Digest: layer, Exclude: exclude})
	if len(r.Peers) == 0 {
		return "", 0
	}
	if want := r.Peers[0].Node + ":7450"; r.Peers[0].Address != want {
		panic("address " + r.Peers[0].Address)
	}
	return r.Peers[0].Node, r.Peers[0].Depth
}

func (w *world) wants(t *testing.T, node, from string, exclude ...string) {
	t.Helper()
	if got, _ := w.ask(node, exclude...); got != from {
		t.Errorf("%s is sent to %q, want %q", node, got, from)
	}
}

func TestDownloadsChain(t *testing.T) {
	w := newWorld("s", "a", "b", "c")
	w.has("s")
	for i, want := range []string{"s", "a", "b"} {
		node := string(rune('a' + i))
		got, depth := w.ask(node)
		if got != want || depth != int32(i) {
			t.Errorf("%s is sent to %s at depth %d, want %s at %d", node, got, depth, want, i)
		}
	}
}

func TestHoldersHaveAllOfIt(t *testing.T) {
	w := newWorld("s", "a", "b", "c")
	w.has("a") // the manifest, without the rest
	for _, n := range []string{"c", "s", "b"} {
		w.Announce(n, &gantryv1.AnnounceRequest{Boot: n, Images: []string{layer}})
	}
	w.nodes["b"] = blobtrack.Node{Down: true}
	delete(w.nodes, "c")
	if got := w.Holders(layer); !slices.Equal(got, []string{"s"}) {
		t.Errorf("%v", got)
	}
	if got := w.Keepers(layer); !slices.Equal(got, []string{"b", "c", "s"}) {
		t.Errorf("%v, want also those that are not there now", got)
	}
}

// TestImagesComeAndGo follows what one node says of its images, and who waits for news.
func TestImagesComeAndGo(t *testing.T) {
	other := "sha256:" + strings.Repeat("b", 64)
	w := newWorld("a")
	for i, step := range []struct {
		req         *gantryv1.AnnounceRequest
		told, moved bool
		want        []string // digests that a has
	}{
		{&gantryv1.AnnounceRequest{Images: []string{layer}}, false, true, []string{layer}},
		{&gantryv1.AnnounceRequest{Images: []string{layer}}, false, false, []string{layer}},
		{&gantryv1.AnnounceRequest{Full: true, Images: []string{layer, other}}, true, true, []string{layer, other}},
		{&gantryv1.AnnounceRequest{Full: true, Images: []string{layer, other}}, true, false, []string{layer, other}},
		{&gantryv1.AnnounceRequest{ImagesGone: []string{layer}}, true, true, []string{other}},
		{&gantryv1.AnnounceRequest{ImagesGone: []string{layer}}, true, false, []string{other}},
		{&gantryv1.AnnounceRequest{Full: true}, true, true, nil},
	} {
		news := w.Moved()
		w.Announce("a", step.req)
		moved := false
		select {
		case <-news:
			moved = true
		default:
		}
		if moved != step.moved || w.Told("a") != step.told {
			t.Errorf("step %d: news %v, told %v, want %v and %v", i, moved, w.Told("a"), step.moved, step.told)
		}
		for _, d := range []string{layer, other} {
			if got := len(w.Keepers(d)) == 1; got != slices.Contains(step.want, d) {
				t.Errorf("step %d: it has %.10s: %v", i, d, got)
			}
		}
	}
	w.Announce("a", &gantryv1.AnnounceRequest{Full: true, Images: []string{layer}})
	news := w.Moved()
	w.Reset()
	<-news
	if w.Told("a") || w.Keepers(layer) != nil {
		t.Error("a tracker that begins anew remembers")
	}
}

// TestNameOutlivesItsServer has the only server that knows a name go down. What releases mean by the name holds, as long as
// somebody has it, and is believed before a node that is no server.
func TestNameOutlivesItsServer(t *testing.T) {
	const name, other = "docker.io/library/app:1", "sha256:0b0b"
	st := storetest.New(t)
	err := st.Update(t.Context(), func(tx *store.Tx) error {
		for key, image := range map[string]string{"p/a/w/00000001": "app:1", "p/a/w/00000002": "tool", "p/a/w/00000003": "tool@" + layer, "p/a/w/00000004": "no name"} {
			store.Put(tx, &gantryv1.Release{Meta: store.NewMeta(key), Service: "p/a/w", Spec: &gantryv1.ServiceSpec{
				Container: &gantryv1.ContainerSpec{Image: image, ImageDigest: layer},
			}})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]blobtrack.Node{"s": {Server: true}, "a": {}}
	w := blobtrack.New(blobtrack.Options{
		Node: func(id string) (blobtrack.Node, bool) { n, ok := nodes[id]; return n, ok }, Released: blobtrack.ReleasedIn(st),
	})
	named := func(digest string) []*gantryv1.ImageName { return []*gantryv1.ImageName{{Name: name, Digest: digest}} }
	w.Announce("s", &gantryv1.AnnounceRequest{Images: []string{layer}, Names: named(layer)})
	w.Announce("a", &gantryv1.AnnounceRequest{Names: named(other)})
	want := func(what, digest string, any bool) {
		t.Helper()
		if got := w.FindName(name, any); got != digest {
			t.Errorf("%s: %q, want %q", what, got, digest)
		}
	}
	want("a server knows it", layer, false)
	nodes["s"] = blobtrack.Node{Server: true, Down: true}
	want("nobody has what the release means", "", false)
	want("a node knows the name", other, true)
	w.Announce("a", &gantryv1.AnnounceRequest{Images: []string{layer}})
	want("a node has what the release means", layer, false)
	want("it is believed first", layer, true)
	if got := w.FindName("docker.io/library/tool:latest", false); got != layer {
		t.Errorf("a name without a tag: %q", got)
	}
	err = st.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.Release{Meta: store.NewMeta("p/a/w/00000005"), Service: "p/a/w", Spec: &gantryv1.ServiceSpec{
			Container: &gantryv1.ContainerSpec{Image: name, ImageDigest: other},
		}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want("a later release means another, which nobody has", "", false)
}

// TestImagesOfRemovedNodesAreForgotten has a node leave the cluster.
func TestImagesOfRemovedNodesAreForgotten(t *testing.T) {
	w := newWorld("a", "b")
	w.Announce("a", &gantryv1.AnnounceRequest{Full: true, Images: []string{layer}})
	delete(w.nodes, "a")
	w.now = w.now.Add(2 * time.Minute)
	w.Announce("b", &gantryv1.AnnounceRequest{})
	if got := w.Keepers(layer); len(got) != 0 || w.Told("a") {
		t.Errorf("%v have it, told %v", got, w.Told("a"))
	}
}

func TestLoadIsSpread(t *testing.T) {
	w := newWorld("s", "t", "u", "a", "b", "c", "d", "e", "f")
	w.has("s", "t", "u")
	sent := map[string]int{}
	for _, n := range []string{"a", "b", "c"} {
		from, depth := w.ask(n)
		sent[from]++
		if depth != 0 {
			t.Errorf("%s waits for another, though three have all", n)
		}
	}
	if len(sent) != 3 {
		t.Errorf("three nodes were sent to %v", sent)
	}
}

func TestChainIsBounded(t *testing.T) {
	w := newWorld("s")
	w.has("s")
	deepest, sent := int32(0), 0
	for i := range 100 {
		n := fmt.Sprintf("n%02d", i)
		w.nodes[n] = blobtrack.Node{Address: n + ":7450"}
		from, depth := w.ask(n)
		deepest = max(deepest, depth)
		if from == "s" {
			sent++
		}
		if from == "" {
			t.Errorf("%s is sent to nobody", n)
		}
	}
	if deepest > 16 || sent > 3 {
		t.Errorf("at most %d wait for one another, the source sends %d times", deepest, sent)
	}
}

func TestRegistryIsTheFirstSource(t *testing.T) {
	w := newWorld("a", "b")
	w.wants(t, "a", "")
	w.wants(t, "b", "a") // what a fetches from a registry, b gets from a
	w.Announce("a", &gantryv1.AnnounceRequest{Gone: []string{layer}})
	w.wants(t, "b", "")
	w.wants(t, "a", "b")
}

func TestWhoFailsIsLeft(t *testing.T) {
	w := newWorld("s", "t", "a", "b")
	w.has("s")
	w.wants(t, "a", "s")
	w.wants(t, "b", "a")
	w.wants(t, "a", "", "s") // it must not be sent to b, who waits for it
	w.has("t")
	w.wants(t, "a", "t", "s")
	w.wants(t, "b", "s", "a", "t")
}

func TestWhoIsDownIsLeft(t *testing.T) {
	w := newWorld("s", "a", "b")
	w.has("s")
	w.nodes["s"] = blobtrack.Node{Address: "s:7450", Down: true}
	w.wants(t, "a", "")
	delete(w.nodes, "s")
	w.wants(t, "b", "a")
}

func TestSilentDownloadIsLeft(t *testing.T) {
	w := newWorld("s", "a", "b", "c")
	w.has("s")
	w.wants(t, "a", "s")
	w.now = w.now.Add(time.Minute)
	w.wants(t, "b", "s")
	w.Announce("a", &gantryv1.AnnounceRequest{}) // it lives
	w.wants(t, "c", "a", "b")
}

func TestRestartEndsDownloads(t *testing.T) {
	w := newWorld("a", "b")
	w.Announce("a", &gantryv1.AnnounceRequest{Boot: "1"})
	w.wants(t, "a", "")
	w.Announce("a", &gantryv1.AnnounceRequest{Boot: "2", Full: true})
	w.wants(t, "b", "")
}

func TestAccusations(t *testing.T) {
	w := newWorld("s", "a", "b", "c", "d")
	accuse := func(by, of string, kind gantryv1.BlobFault_Kind) {
		w.Announce(by, &gantryv1.AnnounceRequest{Faults: []*gantryv1.BlobFault{{Node: of, Digest: layer, Kind: kind}}})
	}
	w.has("s")
	accuse("a", "s", gantryv1.BlobFault_KIND_BROKEN) // passes by itself
	accuse("a", "s", gantryv1.BlobFault_KIND_BUSY)
	w.wants(t, "a", "s")
	accuse("b", "a", gantryv1.BlobFault_KIND_CORRUPT) // a is still fetching: no fault of its own
	w.wants(t, "b", "a")
	accuse("a", "s", gantryv1.BlobFault_KIND_CORRUPT)
	w.wants(t, "a", "")
	w.wants(t, "c", "b") // one voice is not enough for all: the way over b and a still ends at s or a registry
	accuse("a", "s", gantryv1.BlobFault_KIND_CORRUPT)
	w.Announce("a", &gantryv1.AnnounceRequest{Gone: []string{layer}})
	w.Announce("b", &gantryv1.AnnounceRequest{Gone: []string{layer}})
	w.Announce("c", &gantryv1.AnnounceRequest{Gone: []string{layer}})
	w.wants(t, "d", "s")
	accuse("b", "s", gantryv1.BlobFault_KIND_MISSING)
	w.wants(t, "d", "")
	w.has("s") // to say it again changes nothing
	w.wants(t, "d", "")
	w.Announce("s", &gantryv1.AnnounceRequest{Boot: "2", Full: true, Have: []string{layer}}) // to start again does
	w.Announce("d", &gantryv1.AnnounceRequest{Gone: []string{layer}})
	w.wants(t, "a", "s")
}

func TestSmallBlobsComeFromWhoHasThem(t *testing.T) {
	w := newWorld("s", "a", "b")
	w.has("s")
	for _, n := range []string{"a", "b"} {
		r := w.Locate(n, &gantryv1.LocateRequest{Digest: layer, Complete: true})
		if len(r.Peers) != 1 || r.Peers[0].Node != "s" {
			t.Errorf("%s is sent to %v", n, r.Peers)
		}
	}
}

func TestFullAnnouncementReplaces(t *testing.T) {
	w := newWorld("s", "a", "b")
	other := "sha256:" + strings.Repeat("b", 64)
	name := []*gantryv1.ImageName{{Name: "docker.io/library/x:1", Digest: layer, UpdatedAt: timestamppb.New(w.now)}}
	w.Announce("s", &gantryv1.AnnounceRequest{Boot: "1", Full: true, Have: []string{layer, other}, Names: name})
	if got := w.Digest("x:1"); got != layer {
		t.Errorf("x:1 is %q", got)
	}
	w.Announce("s", &gantryv1.AnnounceRequest{Boot: "1", Full: true, Have: []string{other}})
	w.wants(t, "a", "")
	if got := w.FindName("docker.io/library/x:1", true); got != "" {
		t.Errorf("x:1 is still %q", got)
	}
}

func TestNames(t *testing.T) {
	w := newWorld("s1", "s2", "n1", "n2")
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	say := func(node, c string, age int) {
		w.Announce(node, &gantryv1.AnnounceRequest{Names: []*gantryv1.ImageName{{
			Name: "docker.io/library/x:latest", Digest: digest(c), UpdatedAt: timestamppb.New(w.now.Add(-time.Duration(age) * time.Hour)),
		}}})
	}
	find := func(want string, any bool) {
		t.Helper()
		if want != "" {
			want = digest(want)
		}
		if got := w.FindName("docker.io/library/x:latest", any); got != want {
			t.Errorf("any %t: %q, want %q", any, got, want)
		}
	}
	find("", true)
	say("n1", "1", 5)
	say("n2", "2", 4)
	find("", false)
	find("2", true)
	say("s1", "3", 9)
	find("3", false)
	find("3", true)
	say("s2", "4", 8)
	find("4", false)
	w.nodes["s2"] = blobtrack.Node{Server: true, Down: true}
	find("3", false)
	if got := w.Digest("x"); got != digest("3") {
		t.Errorf("x is %q", got)
	}
	if got := w.Digest("x@" + digest("7")); got != digest("7") {
		t.Errorf("a digest stands for %q", got)
	}
	if got := w.Digest("Not A Name"); got != "" {
		t.Errorf("no name stands for %q", got)
	}
}

func TestRemovedMachinesAreForgotten(t *testing.T) {
	w := newWorld("s", "a", "b")
	w.has("s", "a")
	delete(w.nodes, "s")
	w.now = w.now.Add(2 * time.Minute)
	w.has("a")
	w.nodes["s"] = blobtrack.Node{Address: "s:7450"} // back, without its images
	w.wants(t, "b", "a")
	w.wants(t, "b", "", "a")
}

// TestNobodyWaitsForItself lets nodes ask, finish, fail and leave in any order: whoever is sent to another is never on that one's
// own way, and a way ends at a node that has all or that asked a registry.
func TestNobodyWaitsForItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := []string{"a", "b", "c", "d", "e", "f"}
		w := newWorld(nodes...)
		from := map[string]string{} // as the test sees it; "" for a registry, no entry for none
		whole := map[string]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := rapid.SampledFrom(nodes).Draw(t, "node")
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				peer, _ := w.ask(n, rapid.SliceOfN(rapid.SampledFrom(nodes), 0, 3).Draw(t, "exclude")...)
				delete(whole, n)
				from[n] = peer
				for at, steps := peer, 0; at != "" && !whole[at]; at = from[at] {
					if at == n {
						t.Fatalf("%s waits for itself: %v", n, from)
					}
					if steps++; steps > len(nodes) {
						t.Fatalf("a circle: %v", from)
					}
				}
			case 2:
				w.has(n)
				whole[n] = true
				delete(from, n)
			case 3:
				w.Announce(n, &gantryv1.AnnounceRequest{Boot: n, Gone: []string{layer}})
				delete(whole, n)
				delete(from, n)
				for other, f := range from {
					if f == n {
						from[other] = ""
					}
				}
			}
		}
	})
}

func TestHandler(t *testing.T) {
	w := newWorld("s", "a")
	caller, ready := "s", error(nil)
	_, h := w.Handler(blobtrack.Access{
		Caller: func(context.Context) (string, error) { return caller, nil },
		Ready:  func() error { return ready },
	}, connect.WithInterceptors(plain{}))
	srv := httptest.NewServer(h)
	defer srv.Close()
	c := gantryv1connect.NewNodeImageServiceClient(srv.Client(), srv.URL)
	announce := func(req *gantryv1.AnnounceRequest) error {
		_, err := c.Announce(t.Context(), connect.NewRequest(req))
		return err
	}
	if err := announce(&gantryv1.AnnounceRequest{Have: []string{layer}}); err != nil {
		t.Fatal(err)
	}
	for what, req := range map[string]*gantryv1.AnnounceRequest{
		"a digest that is none":   {Have: []string{layer, "x"}},
		"a name without a digest": {Names: []*gantryv1.ImageName{{Name: "x"}}},
		"a long name":             {Names: []*gantryv1.ImageName{{Name: strings.Repeat("x", 5000), Digest: layer}}},
	} {
		if err := announce(req); err == nil || !strings.Contains(err.Error(), "invalid") {
			t.Errorf("%s: %v", what, err)
		}
	}
	caller = "a"
	resp, err := c.Locate(t.Context(), connect.NewRequest(&gantryv1.LocateRequest{Digest: layer}))
	if err != nil || !slices.ContainsFunc(resp.Msg.Peers, func(p *gantryv1.BlobPeer) bool { return p.Address == "s:7450" }) {
		t.Errorf("%v, %v", resp, err)
	}
	if _, err := c.Locate(t.Context(), connect.NewRequest(&gantryv1.LocateRequest{Digest: "../x"})); err == nil {
		t.Error("a digest that is none was looked for")
	}
	caller = "stranger"
	if err := announce(&gantryv1.AnnounceRequest{}); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("a stranger: %v", err)
	}
	caller, ready = "s", fault.New(fault.Unavailable, "another leads")
	if _, err := c.FindName(t.Context(), connect.NewRequest(&gantryv1.FindNameRequest{Name: "x"})); err == nil || !strings.Contains(err.Error(), "another leads") {
		t.Errorf("not leading: %v", err)
	}
}

// plain puts the kind of a fault into its text.
type plain struct{}

func (plain) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", fault.KindOf(err), err)
		}
		return resp, nil
	}
}

func (plain) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (plain) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func BenchmarkLocate(b *testing.B) {
	w := newWorld()
	for i := range 1000 {
		n := fmt.Sprintf("n%03d", i)
		w.nodes[n] = blobtrack.Node{Address: n}
		w.has(n)
	}
	w.nodes["x"] = blobtrack.Node{Address: "x"}
	for b.Loop() {
		w.Locate("x", &gantryv1.LocateRequest{Digest: layer})
	}
}
