package e2e_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/gantryd/gantry/test/lab"
)

// login gives the command line of this test a Docker config with one registry's user and password; none if that is empty.
func login(t *testing.T, registry, password string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if password == "" {
		return
	}
	text := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, registry, base64.StdEncoding.EncodeToString([]byte("gantry:"+password)))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// blobs lists what a machine keeps of images besides what it has unpacked: size by path, of its registry too.
func blobs(t *testing.T, n *lab.Node) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	err := filepath.WalkDir(n.Root(), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(path, "/blobs/") && !strings.HasPrefix(path, n.Root()+"/registry/") {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			found[path] = info.Size()
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("the content store: %d blobs, %v", len(found), err)
	}
	return found
}

// larger names what is there now and was not before, or was smaller. The layer has a megabyte; who pushed what is noted in far less.
func larger(now, before map[string]int64) (more []string) {
	for path, size := range now {
		if size > before[path]+256<<10 {
			more = append(more, fmt.Sprintf("%s: %d bytes, before %d", path, size, before[path]))
		}
	}
	return more
}

// TestEmbeddedRegistry pushes to the daemon's own registry with the password that lies in its root, and runs what it pulls back.
func TestEmbeddedRegistry(t *testing.T) {
	const image = "localhost:5050/team/app:1"
	n := machine(t)
	password, err := os.ReadFile(filepath.Join(n.Root(), "registry.password"))
	if err != nil {
		t.Fatal(err)
	}
	n.Gantry(t, "image", "tag", lab.Busybox, image)
	before := blobs(t, n)

	login(t, "localhost:5050", "")
	refused(t, n, "", 30*time.Second, []string{"localhost:5050", "hint: the registry wants other credentials: docker login"}, "image", "push", image)
	login(t, "localhost:5050", "wrong")
	refused(t, n, "", 30*time.Second, []string{"localhost:5050", "hint: the registry wants other credentials: docker login"}, "image", "push", image)

	login(t, "localhost:5050", strings.TrimSpace(string(password)))
	pushed := strings.TrimSpace(n.Gantry(t, "image", "push", image))
	_, digest, found := strings.Cut(pushed, "@")
	if !found || !strings.HasPrefix(pushed, image+"@sha256:") {
		t.Fatalf("push says %q", pushed)
	}
	if more := larger(blobs(t, n), before); len(more) > 0 {
		t.Errorf("the push stored a second copy: %s", more)
	}

	n.Gantry(t, "image", "rm", image, lab.Busybox)
	refused(t, n, "", 30*time.Second, []string{image}, "run", "--rm", "--pull", "never", image, "true")
	n.Gantry(t, "image", "pull", image)
	if got := n.Gantry(t, "run", "--rm", "--pull", "never", image, "echo", "pulled"); got != "pulled\n" {
		t.Errorf("run says %q", got)
	}
	if more := larger(blobs(t, n), before); len(more) > 0 {
		t.Errorf("the pull stored a second copy: %s", more)
	}

	awaitNothing(t, n)
	n.Gantry(t, "image", "rm", image)
	byDigest := "localhost:5050/team/app@" + digest
	if got := strings.TrimSpace(n.Gantry(t, "image", "pull", byDigest)); !strings.HasSuffix(got, "@"+digest) {
		t.Errorf("pull by digest says %q, want %s", got, digest)
	}
	n.Gantry(t, "run", "--rm", byDigest, "true")

	awaitNothing(t, n)
	n.Gantry(t, "image", "rm", byDigest)
	dir := lab.Project(t, appOf(image, "missing"))
	login(t, "localhost:5050", "")
	refused(t, n, dir, 30*time.Second, []string{image, "hint: the registry wants other credentials: docker login"}, "up")
	login(t, "localhost:5050", strings.TrimSpace(string(password)))
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	n.AwaitReady(t, "web", 1)
}

const cached = `
name: cached
services:
  web:
    image: cached:1
    build: {context: ., cache_from: ["type=registry,ref=CACHE"], cache_to: ["type=registry,mode=max,ref=CACHE"]}
    command: sleep 100000
    stop_grace_period: 100ms
`

// TestBuildFromARegistry builds on an image of a registry without TLS, forgets all that was built, and builds the same from the cache that lies in a registry.
func TestBuildFromARegistry(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	login(t, "", "")
	other := startOutside(t, n)
	configure(t, n, other.host, fmt.Sprintf("server = \"http://%s\"\n", other.host))
	dir := lab.Project(t, strings.ReplaceAll(cached, "CACHE", other.host+"/team/cache:1"))
	other.put(t, "base")
	dockerfile := "FROM " + other.host + "/team/app:1\nRUN head -c 16 /dev/urandom | md5sum >/chance\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	chance := func() string {
		t.Helper()
		n.GantryIn(t, dir, "up", "--timeout", "2m")
		return n.GantryIn(t, dir, "exec", "web", "cat", "/chance")
	}
	forget := func() {
		t.Helper()
		n.GantryIn(t, dir, "down", "--rmi", "local")
		awaitNothing(t, n)
		n.Gantry(t, "system", "prune", "-f", "-a")
	}
	first := chance()
	if got := strings.Join(other.asked(), "\n"); !strings.Contains(got, "PUT /v2/team/cache/manifests/1") {
		t.Fatalf("the cache was not pushed:\n%s", got)
	}
	forget()
	if again := chance(); again != first {
		t.Errorf("the step was run again: %q, from the cache it is %q", again, first)
	}
	forget()
	rewrite(t, dir, strings.ReplaceAll(cached, "CACHE", other.host+"/team/other:1"))
	if without := chance(); without == first {
		t.Errorf("without that cache the step says %q too: the test shows nothing", without)
	}
}

func appOf(image, policy string) string {
	return fmt.Sprintf(`
name: pulled
services:
  web: {image: %q, pull_policy: %s, command: sleep 100000, stop_grace_period: 100ms}
`, image, policy)
}

// outside is a registry of somebody else on the lab's network, without TLS and open to all.
type outside struct {
	host string
	mu   sync.Mutex
	got  []string // requests
}

func startOutside(t *testing.T, n *lab.Node) *outside {
	t.Helper()
	l, err := net.Listen("tcp", n.Gateway()+":0")
	if err != nil {
		t.Fatal(err)
	}
	o := &outside{host: l.Addr().String()}
	serve := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.got = append(o.got, r.Method+" "+r.URL.Path)
		o.mu.Unlock()
		serve.ServeHTTP(w, r)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return o
}

// asked tells the requests since it was called last.
func (o *outside) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	got := o.got
	o.got = nil
	return got
}

// put makes team/app:1 an image that says this word by its environment.
func (o *outside) put(t *testing.T, word string) {
	t.Helper()
	image, err := tarball.ImageFromPath(lab.BusyboxArchive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.Config.Env = append(config.Config.Env, "WORD="+word)
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(o.host+"/team/app:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	o.asked()
}

// configure writes the daemon's file about a registry.
func configure(t *testing.T, n *lab.Node, registry, hosts string) {
	t.Helper()
	dir := filepath.Join(n.Root(), "images/registries", strings.ReplaceAll(registry, ":", "_")+"_")
	if !strings.Contains(registry, ":") {
		dir = strings.TrimSuffix(dir, "_")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestRegistriesByConfiguration pulls from a registry without TLS and by a mirror, and follows a name that moves as pull_policy says.
func TestRegistriesByConfiguration(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	login(t, "", "")
	other := startOutside(t, n)
	other.put(t, "first")
	image := other.host + "/team/app:1"
	word := func(name string) string {
		return strings.TrimSpace(n.Gantry(t, "exec", name, "sh", "-c", "echo $WORD"))
	}

	refused(t, n, "", time.Minute, []string{other.host, "hint: the registry speaks plain HTTP"}, "image", "pull", image)
	configure(t, n, other.host, fmt.Sprintf("server = \"http://%s\"\n", other.host))

	dir := lab.Project(t, appOf(image, "missing"))
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	if got := word("pulled/web.1"); got != "first" {
		t.Fatalf("the instance says %q", got)
	}
	other.put(t, "second")
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	if got := word("pulled/web.1"); got != "first" || len(other.asked()) > 0 {
		t.Errorf("missing: the instance says %q, or the registry was asked for an image that is there", got)
	}
	rewrite(t, dir, appOf(image, "always"))
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	if got := word("pulled/web.1"); got != "second" || len(other.asked()) == 0 {
		t.Errorf("always: the instance says %q", got)
	}
	other.asked()
	if got := n.GantryIn(t, dir, "up", "--timeout", "60s"); strings.Contains(strings.Join(other.asked(), "\n"), "/blobs/") {
		t.Errorf("always fetched what is there again:\n%s", got)
	}
	n.GantryIn(t, dir, "down")
	n.Gantry(t, "image", "tag", image, other.host+"/own/copy:1")
	n.Gantry(t, "image", "push", other.host+"/own/copy:1")
	if got := strings.Join(other.asked(), "\n"); !strings.Contains(got, "PUT /v2/own/copy/manifests/1") {
		t.Errorf("the push without TLS asked for\n%s", got)
	}

	n.Gantry(t, "image", "rm", image, other.host+"/own/copy:1")
	n.Gantry(t, "image", "prune", "-f", "-a")
	configure(t, n, "registry.test", fmt.Sprintf("server = \"https://registry.test\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", other.host))
	if got := n.Gantry(t, "run", "--rm", "registry.test/team/app:1", "sh", "-c", "echo $WORD"); got != "second\n" {
		t.Errorf("by the mirror: %q", got)
	}
	if got := strings.Join(other.asked(), "\n"); !strings.Contains(got, "/v2/team/app/manifests/") {
		t.Errorf("the mirror was asked for\n%s", got)
	}
}
