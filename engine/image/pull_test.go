package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/fault"
)

// remote is a registry that serves one sample under every name, and fails as the test wants.
type remote struct {
	*httptest.Server
	sample *imagetest.Sample

	mu       sync.Mutex
	requests []string // "GET /v2/… Range"
	// hook may answer a request itself.
	hook func(w http.ResponseWriter, r *http.Request) bool
}

func serve(t *testing.T, sample *imagetest.Sample) *remote {
	t.Helper()
	r := &remote{sample: sample}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *remote) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *remote) seen(substring string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if strings.Contains(q, substring) {
			n++
		}
	}
	return n
}

func (r *remote) forget() { r.mu.Lock(); r.requests = nil; r.mu.Unlock() }

func (r *remote) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, q.Method+" "+q.URL.Path+" "+q.Header.Get("Range")+" "+q.Header.Get("Authorization"))
	hook := r.hook
	r.mu.Unlock()
	if hook != nil && hook(w, q) {
		return
	}
	parts := strings.Split(q.URL.Path, "/")
	last := parts[len(parts)-1]
	for d, body := range r.sample.Blobs {
		if last == d.String() || (strings.Contains(q.URL.Path, "/manifests/") && !strings.Contains(last, ":") && d == r.sample.Manifest.Digest) {
			if d == r.sample.Manifest.Digest {
				w.Header().Set("Content-Type", r.sample.Manifest.MediaType)
			}
			w.Header().Set("Docker-Content-Digest", d.String())
			http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(body))
			return
		}
	}
	http.NotFound(w, q)
}

func big(t *testing.T) *imagetest.Sample {
	noise := make([]byte, 3<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(noise)
	return imagetest.NewSample(t, v1.ImageConfig{}, []imagetest.File{file("noise", string(noise))}, []imagetest.File{file("small", "x")})
}

func pull(t *testing.T, s *image.Service, ref string) (*gantryv1.Image, error) {
	t.Helper()
	return s.Pull(t.Context(), &gantryv1.PullRequest{Image: ref}, nil)
}

func TestPullPoliciesAndProgress(t *testing.T) {
	r := serve(t, hello(t))
	rig, s := node(t)
	ref := r.host() + "/team/hello:1"
	if _, err := s.Pull(t.Context(), &gantryv1.PullRequest{Image: ref, Policy: gantryv1.PullPolicy_PULL_POLICY_NEVER}, nil); !fault.Is(err, fault.NotFound) {
		t.Fatalf("never pulled: %v", err)
	}
	if r.seen("") != 0 {
		t.Fatal("the policy never asked the registry")
	}
	statuses := map[string]bool{}
	var last *gantryv1.Progress
	img, err := s.Pull(t.Context(), &gantryv1.PullRequest{Image: ref}, func(p *gantryv1.Progress) error {
		statuses[p.Status], last = true, p
		return nil
	})
	check(t, err)
	for _, want := range []string{"resolving", "downloading", "done"} {
		if !statuses[want] {
			t.Errorf("no progress %q in %v", want, statuses)
		}
	}
	if last.GetImage().GetDigest() != img.Digest || img.Digest != r.sample.Manifest.Digest.String() {
		t.Fatalf("last message %v, image %v", last, img)
	}
	rig.Collect(t)
	r.forget()
	_, err = pull(t, s, ref)
	check(t, err)
	if r.seen("") != 0 {
		t.Fatal("the policy missing asked the registry for an image that is here")
	}
	_, err = s.Pull(t.Context(), &gantryv1.PullRequest{Image: ref, Policy: gantryv1.PullPolicy_PULL_POLICY_ALWAYS}, nil)
	check(t, err)
	if r.seen("manifests") == 0 || r.seen("GET /v2/team/hello/blobs") != 0 {
		t.Fatalf("always asked %v", r.requests)
	}
	if leaseCount(t, rig) != 0 {
		t.Fatal("leases left after pulls that worked")
	}
}

func TestPullByDigest(t *testing.T) {
	r := serve(t, hello(t))
	_, s := node(t)
	_, err := pull(t, s, r.host()+"/hello@"+r.sample.Manifest.Digest.String())
	check(t, err)
	if _, err = pull(t, s, r.host()+"/hello@sha256:"+strings.Repeat("0", 64)); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	r.hook = func(w http.ResponseWriter, q *http.Request) bool { // another manifest than was asked for
		if strings.Contains(q.URL.Path, strings.Repeat("1", 64)) {
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
			_, _ = w.Write([]byte(`{"schemaVersion":2,"layers":[]}`))
			return true
		}
		return false
	}
	if _, err = pull(t, s, r.host()+"/hello@sha256:"+strings.Repeat("1", 64)); err == nil {
		t.Fatal("accepted a manifest with another digest")
	}
}

// cutOnce lets the registry break off the big layer, every time until told otherwise.
func (r *remote) cut(after int) {
	layer := r.sample.Layers[0].Digest
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasSuffix(q.URL.Path, layer.String()) || q.Method != http.MethodGet {
			return false
		}
		if q.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		body := r.sample.Blobs[layer]
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:after])
		panic(http.ErrAbortHandler)
	}
}

func (r *remote) heal() { r.mu.Lock(); r.hook = nil; r.mu.Unlock() }

func TestPullResumes(t *testing.T) {
	r := serve(t, big(t))
	rig, s := node(t)
	ref := r.host() + "/big"
	r.cut(2 << 20)
	if _, err := pull(t, s, ref); err == nil {
		t.Fatal("a cut download passed")
	}
	rig.Collect(t)
	if _, writes := rig.Blobs(t); writes != 1 {
		t.Fatalf("%d unfinished writes kept for the next try, want 1", writes)
	}
	r.heal()
	r.forget()
	_, err := pull(t, s, ref)
	check(t, err)
	if r.seen("bytes=2097152-") == 0 {
		t.Fatalf("did not go on where it stopped: %q", r.requests)
	}
	if leaseCount(t, rig) != 0 {
		t.Fatal("leases left")
	}
	_, err = s.Remove(t.Context(), ref, false, nil)
	check(t, err)
	clean(t, rig)
}

func TestFailedPullLeavesNothing(t *testing.T) {
	r := serve(t, big(t))
	for name, window := range map[string]time.Duration{"window over": time.Nanosecond, "no window": -1} {
		t.Run(name, func(t *testing.T) {
			rig, s := node(t, func(o *image.Options) { o.ResumeWindow = window })
			r.cut(1 << 20)
			if _, err := pull(t, s, r.host()+"/big"); err == nil {
				t.Fatal("a cut download passed")
			}
			clean(t, rig)
		})
	}
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	r := serve(t, big(t))
	rig, s := node(t, func(o *image.Options) { o.ResumeWindow = -1 })
	gone := errors.New("the client went away")
	_, err := s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/big"}, func(p *gantryv1.Progress) error {
		if p.Status == "downloading" {
			return gone
		}
		return nil
	})
	if !errors.Is(err, gone) {
		t.Fatal(err)
	}
	clean(t, rig)

	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Pull(ctx, &gantryv1.PullRequest{Image: r.host() + "/big"}, func(*gantryv1.Progress) error { cancel(); return nil })
	if !fault.Is(err, fault.Canceled) {
		t.Fatal(err)
	}
	clean(t, rig)
}

func TestPullRefusesDamage(t *testing.T) {
	r := serve(t, hello(t))
	layer := r.sample.Layers[0].Digest
	r.sample.Blobs[layer] = bytes.Clone(r.sample.Blobs[layer])
	r.sample.Blobs[layer][30] ^= 4
	rig, s := node(t, func(o *image.Options) { o.ResumeWindow = -1 })
	if _, err := pull(t, s, r.host()+"/hello"); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("%v (%s)", err, fault.KindOf(err))
	}
	clean(t, rig)
}

// TestDamageIsNotKept pulls again once the registry is right: what it sent before must not be gone on with.
func TestDamageIsNotKept(t *testing.T) {
	r := serve(t, hello(t))
	layer := r.sample.Layers[0].Digest
	right := r.sample.Blobs[layer]
	r.sample.Blobs[layer] = bytes.Clone(right)
	r.sample.Blobs[layer][30] ^= 4
	_, s := node(t)
	if _, err := pull(t, s, r.host()+"/hello"); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("%v (%s)", err, fault.KindOf(err))
	}
	r.sample.Blobs[layer] = right
	_, err := pull(t, s, r.host()+"/hello")
	check(t, err)
}

func TestPullHostileLayers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("unpacking needs root")
	}
	canary := filepath.Join(t.TempDir(), "canary")
	check(t, os.WriteFile(canary, []byte("untouched"), 0o600))
	link := func(typ byte, name, to string) imagetest.File {
		return imagetest.File{Header: tar.Header{Typeflag: typ, Name: name, Linkname: to}}
	}
	dots := strings.Repeat("../", 20)
	for name, files := range map[string][]imagetest.File{
		"dots":           {file(dots+canary, "owned")},
		"absolute":       {file(canary, "owned")},
		"link then file": {link(tar.TypeSymlink, "d", filepath.Dir(canary)), file("d/canary", "owned")},
		"dotted link":    {link(tar.TypeSymlink, "d", dots+filepath.Dir(canary)), file("d/canary", "owned")},
		"hard link":      {link(tar.TypeLink, "h", canary), file("h", "owned")},
		"dotted hard":    {link(tar.TypeLink, "h", dots+canary), file("h", "owned")},
		"whiteout":       {link(tar.TypeSymlink, "d", filepath.Dir(canary)), file("d/.wh.canary", "")},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, imagetest.NewSample(t, v1.ImageConfig{}, files))
			_, s := node(t)
			_, _ = pull(t, s, r.host()+"/hostile") // refused or kept inside: both are right
			if b, err := os.ReadFile(canary); err != nil || string(b) != "untouched" {
				t.Fatalf("the layer reached outside: %q %v", b, err)
			}
		})
	}
}

func TestPullErrorsSpeak(t *testing.T) {
	r := serve(t, hello(t))
	_, s := node(t)
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	for name, c := range map[string]struct {
		hook func(http.ResponseWriter, *http.Request) bool
		kind fault.Kind
	}{
		"unauthorized": {status(401), fault.Denied},
		"forbidden":    {status(403), fault.Denied},
		"not there":    {status(404), fault.NotFound},
		"broken":       {status(500), fault.Unavailable},
	} {
		r.hook = c.hook
		_, err := pull(t, s, r.host()+"/x")
		if !fault.Is(err, c.kind) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v (%s), hint %q", name, err, fault.KindOf(err), fault.HintOf(err))
		}
	}
	r.Close()
	if _, err := pull(t, s, r.host()+"/x"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("down: %v (%s)", err, fault.KindOf(err))
	}
}

func TestPullIndexPlatform(t *testing.T) {
	sample := hello(t)
	child := sample.Manifest
	child.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	other := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("s390x"), Size: 5, Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}
	sample.Manifest = sample.AddJSON(t, v1.MediaTypeImageIndex, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{other, child}})
	r := serve(t, sample)
	rig, s := node(t)
	img, err := s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/multi", Platform: "linux/amd64"}, nil)
	check(t, err)
	rig.Collect(t)
	if img.Digest != sample.Manifest.Digest.String() || len(img.Platforms) != 1 || img.Platforms[0] != "linux/amd64" {
		t.Fatalf("pulled %v", img)
	}
	_, err = s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/multi", Platform: "linux/riscv64"}, nil)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "linux/riscv64") {
		t.Fatal(err)
	}
	var out bytes.Buffer
	check(t, s.Export(t.Context(), &out, []string{r.host() + "/multi"}, ""))
	_, b := node(t)
	back, err := b.Import(t.Context(), &out, "")
	check(t, err)
	if back[0].Digest != img.Digest {
		t.Fatalf("%v came back as %v", img, back)
	}
}

func TestMirrorAndCredential(t *testing.T) {
	mirror, upstream := serve(t, hello(t)), serve(t, hello(t))
	_, s := node(t)
	auth := &gantryv1.RegistryAuth{Server: "registry.example", Username: "ann", Password: "s3cret"}
	hosts := func(text string) {
		dir := filepath.Join(s.Root, "registries", "registry.example")
		check(t, os.MkdirAll(dir, 0o755))
		check(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644))
	}
	hosts(fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", upstream.URL, mirror.URL))
	mirror.hook = func(w http.ResponseWriter, q *http.Request) bool { // a curious mirror asks for the password
		if q.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return true
		}
		return false
	}
	_, err := s.Pull(t.Context(), &gantryv1.PullRequest{Image: "registry.example/hello:1", Auth: auth}, nil)
	check(t, err)
	if mirror.seen("") == 0 || mirror.seen("Basic ") != 0 || upstream.seen("Basic ") != 0 {
		t.Fatalf("mirror saw %q, upstream %q", mirror.requests, upstream.requests)
	}
	mirror.heal()
	upstream.forget()
	_, err = s.Pull(t.Context(), &gantryv1.PullRequest{Image: "registry.example/hello:2", Auth: auth}, nil)
	check(t, err)
	if upstream.seen("") != 0 {
		t.Fatal("the mirror was not used")
	}
	hosts("server = [broken")
	if _, err = pull(t, s, "registry.example/hello:3"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "hosts.toml") {
		t.Fatalf("a broken configuration file was passed over: %v", err)
	}
}

func TestPasswordGoesToItsRegistryOnly(t *testing.T) {
	thief := serve(t, hello(t))
	r := serve(t, hello(t))
	realm := ""
	r.hook = func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case q.URL.Path == "/token":
			_, _ = w.Write([]byte(`{"token":"good","access_token":"good"}`))
			return true
		case q.Header.Get("Authorization") != "Bearer good":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`/token",service="x"`)
			w.WriteHeader(401)
			return true
		}
		return false
	}
	_, s := node(t)
	auth := &gantryv1.RegistryAuth{Username: "ann", Password: "s3cret"}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:s3cret"))
	realm = r.URL
	_, err := s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/private", Auth: auth}, nil)
	check(t, err)
	if r.seen("/token") == 0 {
		t.Fatal("no token was asked for")
	}
	realm = strings.Replace(thief.URL, "127.0.0.1", "localhost", 1) // another host's name
	_, err = s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/private:2", Auth: auth}, nil)
	if !fault.Is(err, fault.Denied) || thief.seen("") != 0 {
		t.Fatalf("the password went to %q: %v", thief.requests, err)
	}
	for _, q := range thief.requests {
		if strings.Contains(q, basic) {
			t.Fatal("the password reached another host")
		}
	}
	dir := filepath.Join(s.Root, "registries", strings.Replace(r.host(), ":", "_", 1)+"_")
	check(t, os.MkdirAll(dir, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\nauth_hosts = [%q]\n", r.URL, strings.TrimPrefix(realm, "http://")), 0o600))
	_, _ = s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/private:2", Auth: auth}, nil)
	if thief.seen("/token") == 0 {
		t.Fatal("a token server that the configuration allows was not asked")
	}
	check(t, os.RemoveAll(dir))
	auth.Server = "elsewhere.example" // a credential for another registry is not used at all
	realm = r.URL
	r.forget()
	_, _ = s.Pull(t.Context(), &gantryv1.PullRequest{Image: r.host() + "/private:3", Auth: auth}, nil)
	if r.seen("Basic") != 0 {
		t.Fatal("sent another registry's password")
	}
}
