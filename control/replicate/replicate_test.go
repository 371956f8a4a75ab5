package replicate_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/replicate"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
	"github.com/gantryd/gantry/store/storetest"
)

const service = "production/shop/web"

// cluster is a real store, a controller and machines that are made up.
type cluster struct {
	t     *testing.T
	store *store.Store
	*replicate.Controller

	mu     sync.Mutex
	has    map[string][]string // nodes by digest
	silent map[string]bool     // nodes that have told nothing
	moved  chan struct{}
	copies chan string // "digest>node", of each that begins
	answer func(ctx context.Context, node, digest string) error
}

// newCluster starts a controller over machines that are all servers and up.
func newCluster(t *testing.T, nodes ...string) *cluster {
	t.Helper()
	c := &cluster{
		t: t, store: storetest.New(t), has: map[string][]string{}, silent: map[string]bool{}, moved: make(chan struct{}),
		copies: make(chan string, 100), answer: func(context.Context, string, string) error { return nil },
	}
	for _, n := range nodes {
		c.put(&gantryv1.Node{Meta: store.NewMeta(n), Name: "name-" + n, Role: "server"})
		c.is(n, "ready", time.Now())
	}
	return c
}

func (c *cluster) start(o replicate.Options) {
	c.t.Helper()
	o.Tracker, o.Copy, o.Settle = c, c.copy, time.Millisecond
	c.Controller = replicate.New(c.store, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("the controller ended: %v", err)
		}
		if got := c.Findings(); got != nil {
			c.t.Errorf("who leads no longer says %v", got)
		}
	})
}

func (c *cluster) put(objects ...store.Object) {
	c.t.Helper()
	err := c.store.Update(c.t.Context(), func(tx *store.Tx) error {
		for _, o := range objects {
			store.Put(tx, o)
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// is has the cluster think so of a node.
func (c *cluster) is(node, state string, seen time.Time) {
	c.store.Observe([]store.Object{&gantryv1.NodeStatus{
		Meta: store.NewMeta(node), State: state, LastSeen: timestamppb.New(seen), Architecture: "amd64",
	}}, nil)
}

// release makes the service run by an image.
func (c *cluster) release(number int64, image, digest string) {
	c.t.Helper()
	c.put(&gantryv1.Service{
		Meta: store.NewMeta(service), Environment: "production", App: "shop", Name: "web", Release: number, PreviousRelease: number - 1,
	}, &gantryv1.Release{
		Meta: store.NewMeta(progress.ReleaseKey(service, number)), Service: service, Number: number,
		Spec: &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Image: image, ImageDigest: digest}},
	})
}

// holds has a node say that it has an image.
func (c *cluster) holds(node, digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.has[digest], node) {
		c.has[digest] = append(c.has[digest], node)
	}
	close(c.moved)
	c.moved = make(chan struct{})
}

func (c *cluster) Told(node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.silent[node]
}

func (c *cluster) Keepers(digest string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.has[digest])
}

func (c *cluster) Moved() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moved
}

func (c *cluster) copy(ctx context.Context, node string, i replicate.Image) error {
	c.copies <- i.Reference + ">" + node
	if err := c.answer(ctx, node, i.Digest); err != nil {
		return err
	}
	c.holds(node, i.Digest)
	return nil
}

// begins waits for the next copy.
func (c *cluster) begins(want string) {
	c.t.Helper()
	select {
	case got := <-c.copies:
		if got != want {
			c.t.Fatalf("%s is copied, want %s", got, want)
		}
	case <-time.After(20 * time.Second):
		c.t.Fatalf("%s is not copied", want)
	}
}

// eventually waits for what the controller comes to by itself.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	end := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			c.t.Fatalf("not %s", what)
		}
	}
}

// TestReleasesAreCopied follows a service through two releases: what it ran by before is copied too, after what it runs by.
func TestReleasesAreCopied(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.holds("a", "sha256:1")
	c.start(replicate.Options{})
	c.release(1, "app:1", "sha256:1")
	c.begins("app:1@sha256:1>b")
	c.holds("b", "sha256:2")
	c.release(2, "app@sha256:2", "sha256:2")
	c.begins("app@sha256:2>a")
	c.eventually("all is well", func() bool {
		return c.Figures().Made.Value() == 2 && c.Figures().Lacking.Value() == 0 && c.Figures().Running.Value() == 0
	})
	if got := c.Findings(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// TestDeadHolderIsReplaced gives up a machine that stays away, and takes one that was removed off at once.
func TestDeadHolderIsReplaced(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	c.holds("a", "sha256:1")
	c.holds("b", "sha256:1")
	c.release(1, "app:1", "sha256:1")
	c.start(replicate.Options{Grace: time.Hour})
	c.is("b", "down", time.Now())
	c.eventually("the single copy is said", func() bool { return len(c.Findings()) == 1 })
	if f := c.Findings()[0]; !strings.Contains(f.Message, "name-a alone") || !strings.Contains(f.Hint, "name-b had it too and is down") {
		t.Errorf("%s\nhint: %s", f.Message, f.Hint)
	}
	if len(c.copies) > 0 {
		t.Error("it was copied though the machine is expected back")
	}
	c.is("b", "ready", time.Now())
	c.eventually("the finding is gone", func() bool { return len(c.Findings()) == 0 })
	c.is("b", "down", time.Now().Add(-2*time.Hour))
	c.begins("app:1@sha256:1>c")
}

// TestCopyThatFailsIsSaidAndTriedAgain has the only other machine refuse at first.
func TestCopyThatFailsIsSaidAndTriedAgain(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.holds("a", "sha256:1")
	failures := make(chan error, 1)
	failures <- errors.New("no space left")
	c.answer = func(context.Context, string, string) error {
		select {
		case err := <-failures:
			return err
		default:
			return nil
		}
	}
	c.release(1, "app:1", "sha256:1")
	c.start(replicate.Options{})
	c.begins("app:1@sha256:1>b")
	c.eventually("the failure is said", func() bool {
		f := c.Findings()
		return len(f) == 1 && strings.Contains(f[0].Hint, "name-b: no space left")
	})
	c.begins("app:1@sha256:1>b")
	c.eventually("it is there", func() bool {
		return c.Figures().Made.Value() == 1 && c.Figures().Failed.Value() == 1 && len(c.Findings()) == 0
	})
}

// TestCopyIsGivenUp removes the service while its image is copied.
func TestCopyIsGivenUp(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.holds("a", "sha256:1")
	ended := make(chan struct{})
	c.answer = func(ctx context.Context, _, _ string) error {
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	c.release(1, "app:1", "sha256:1")
	c.start(replicate.Options{})
	c.begins("app:1@sha256:1>b")
	err := c.store.Update(t.Context(), func(tx *store.Tx) error {
		store.Delete[*gantryv1.Service](tx, service)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	<-ended
	c.eventually("nothing is under way", func() bool { return c.Figures().Running.Value() == 0 })
	if got := c.Figures().Failed.Value(); got != 0 {
		t.Errorf("%d copies failed, want none: it was given up", got)
	}
}

// TestNewLeaderWaits decides nothing before every machine has told what it has, or had the time.
func TestNewLeaderWaits(t *testing.T) {
	for name, c := range map[string]struct {
		patience time.Duration
		tells    bool
		want     string
	}{
		"it tells":       {time.Hour, true, "app:1@sha256:1>c"},
		"it never tells": {time.Second, false, "app:1@sha256:1>b"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCluster(t, "a", "b", "c")
			w.holds("a", "sha256:1")
			w.silent["c"] = !c.tells
			if c.tells {
				w.silent["b"] = true
			}
			w.release(1, "app:1", "sha256:1")
			w.start(replicate.Options{Patience: c.patience})
			if c.tells { // b is the better machine until it says that it is no help
				w.put(&gantryv1.Node{Meta: store.NewMeta("b"), Name: "name-b", Role: "server", Availability: "drain"})
				w.mu.Lock()
				w.silent["b"] = false
				w.mu.Unlock()
				w.holds("a", "sha256:1")
			}
			w.begins(c.want)
		})
	}
}
