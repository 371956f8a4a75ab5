package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/registry"
)

func want(t testing.TB, resp *http.Response, status int) {
	t.Helper()
	if resp.StatusCode != status {
		t.Fatalf("%s %s: %s, want %d", resp.Request.Method, resp.Request.URL, resp.Status, status)
	}
}

// push sends a blob in one request and returns its digest.
func (s *server) push(t testing.TB, repo, body string) digest.Digest {
	t.Helper()
	d := digest.FromString(body)
	resp, _ := s.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), body)
	want(t, resp, http.StatusCreated)
	return d
}

// pushImage sends an image of one layer and returns the manifest's digest.
func (s *server) pushImage(t testing.TB, repo, tag, layer string) digest.Digest {
	t.Helper()
	s.push(t, repo, "{}")
	s.push(t, repo, layer)
	m := manifest(layer)
	resp, body := s.do(t, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type", v1.MediaTypeImageManifest)
	if resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status, body)
	}
	return digest.FromString(m)
}

func manifest(layer string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, digest.FromString("{}"), v1.MediaTypeImageLayer, digest.FromString(layer), len(layer))
}

func TestBlobBelongsToItsRepository(t *testing.T) {
	s := start(t)
	d := s.push(t, "team/secret", "only here")
	for _, path := range []string{"/v2/other/blobs/" + d.String(), "/v2/team/blobs/" + d.String(), "/v2/team/secret/more/blobs/" + d.String()} {
		resp, _ := s.do(t, "GET", path, "")
		want(t, resp, http.StatusNotFound)
	}
	m := strings.ReplaceAll(manifest("only here"), digest.FromString("{}").String(), d.String())
	resp, body := s.do(t, "PUT", "/v2/other/manifests/steal", m, "Content-Type", v1.MediaTypeImageManifest)
	want(t, resp, http.StatusNotFound)
	if !strings.Contains(body, "MANIFEST_BLOB_UNKNOWN") && !strings.Contains(body, "MANIFEST_INVALID") {
		t.Errorf("refused with %s", body)
	}
	resp, _ = s.do(t, "POST", "/v2/other/blobs/uploads/?mount="+d.String(), "")
	want(t, resp, http.StatusAccepted) // no mount out of nowhere: that would tell what others have
	resp, _ = s.do(t, "POST", "/v2/other/blobs/uploads/?from=team/secret&mount="+d.String(), "")
	want(t, resp, http.StatusCreated)
	resp, got := s.do(t, "GET", "/v2/other/blobs/"+d.String(), "")
	want(t, resp, http.StatusOK)
	if got != "only here" {
		t.Errorf("got %q", got)
	}
	resp, _ = s.do(t, "DELETE", "/v2/team/secret/blobs/"+d.String(), "")
	want(t, resp, http.StatusAccepted)
	s.rig.Collect(t)
	resp, _ = s.do(t, "GET", "/v2/team/secret/blobs/"+d.String(), "")
	want(t, resp, http.StatusNotFound)
	resp, _ = s.do(t, "HEAD", "/v2/other/blobs/"+d.String(), "")
	want(t, resp, http.StatusOK)
}

func TestMountNeedsTheRightToPull(t *testing.T) {
	s := start(t, func(o *registry.Options) {
		o.Authorize = func(r *http.Request, repo string, a registry.Action) error {
			if repo == "team/secret" && r.Header.Get("X-Team") == "" {
				return registry.ErrLogin
			}
			return nil
		}
	})
	d := digest.FromString("only here")
	resp, _ := s.do(t, "POST", "/v2/team/secret/blobs/uploads/?digest="+d.String(), "only here", "X-Team", "yes")
	want(t, resp, http.StatusCreated)
	resp, _ = s.do(t, "POST", "/v2/other/blobs/uploads/?from=team/secret&mount="+d.String(), "")
	want(t, resp, http.StatusAccepted)
	if resp.Header.Get("WWW-Authenticate") != "" {
		t.Error("the answer tells that the repository exists")
	}
	resp, _ = s.do(t, "GET", "/v2/team/secret/blobs/"+d.String(), "")
	want(t, resp, http.StatusUnauthorized)
}

func TestUploadGoesOnAfterRestart(t *testing.T) {
	s := start(t)
	resp, _ := s.do(t, "POST", "/v2/app/blobs/uploads/", "")
	want(t, resp, http.StatusAccepted)
	at := resp.Header.Get("Location")
	resp, _ = s.do(t, "PATCH", at, "hello ", "Content-Range", "0-5")
	want(t, resp, http.StatusAccepted)

	s.restart(t)
	resp, _ = s.do(t, "PATCH", at, "again", "Content-Range", "0-4")
	want(t, resp, http.StatusRequestedRangeNotSatisfiable)
	resp, _ = s.do(t, "GET", at, "")
	want(t, resp, http.StatusNoContent)
	if r := resp.Header.Get("Range"); r != "0-5" {
		t.Fatalf("range %q after a restart", r)
	}
	d := digest.FromString("hello world")
	resp, _ = s.do(t, "PUT", at+"?digest="+d.String(), "world", "Content-Range", "6-10")
	want(t, resp, http.StatusCreated)
	s.restart(t)
	resp, got := s.do(t, "GET", "/v2/app/blobs/"+d.String(), "", "Range", "bytes=6-")
	want(t, resp, http.StatusPartialContent)
	if got != "world" {
		t.Fatalf("got %q", got)
	}
}

// restart closes the registry and opens it on the same storage.
func (s *server) restart(t *testing.T) {
	t.Helper()
	check(t, s.handler.Close())
	h, err := registry.New(t.Context(), s.options)
	check(t, err)
	s.handler = h
	s.Config.Handler = h
}

func TestAbandonedUploadGoes(t *testing.T) {
	s := start(t, func(o *registry.Options) { o.UploadLife = time.Nanosecond })
	s.push(t, "keep", "kept")
	resp, _ := s.do(t, "POST", "/v2/app/blobs/uploads/", "")
	want(t, resp, http.StatusAccepted)
	check(t, s.handler.Close())
	s.rig.Collect(t)
	if blobs, writes := s.rig.Blobs(t); blobs != 1 || writes != 0 {
		t.Fatalf("%d blobs, %d unfinished writes left", blobs, writes)
	}
}

func TestUploadOfAnotherRepository(t *testing.T) {
	s := start(t)
	resp, _ := s.do(t, "POST", "/v2/a/blobs/uploads/", "")
	at := strings.Replace(resp.Header.Get("Location"), "/v2/a/", "/v2/b/", 1)
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		resp, _ = s.do(t, method, at, "")
		want(t, resp, http.StatusNotFound)
	}
}

func TestRefusals(t *testing.T) {
	s := start(t, func(o *registry.Options) { o.MaxManifest, o.MaxBlob = 4096, 1<<20 })
	s.push(t, "app", "{}")
	layer := s.push(t, "app", "layer")
	put := func(m string, contentType string) (*http.Response, string) {
		return s.do(t, "PUT", "/v2/app/manifests/x", m, "Content-Type", contentType)
	}
	good := manifest("layer")
	for name, c := range map[string]struct {
		method, path, body, contentType string
		status                          int
		code                            string
	}{
		"manifest too large":   {"PUT", "/v2/app/manifests/x", strings.Repeat(" ", 5000) + good, v1.MediaTypeImageManifest, 413, "SIZE_INVALID"},
		"not JSON":             {"PUT", "/v2/app/manifests/x", "{", v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		"another media type":   {"PUT", "/v2/app/manifests/x", good, v1.MediaTypeImageIndex, 400, "MANIFEST_INVALID"},
		"unknown media type":   {"PUT", "/v2/app/manifests/x", `{"schemaVersion":2}`, "text/html", 400, "MANIFEST_INVALID"},
		"wrong digest":         {"PUT", "/v2/app/manifests/" + layer.String(), good, v1.MediaTypeImageManifest, 400, "DIGEST_INVALID"},
		"blob not there":       {"PUT", "/v2/app/manifests/x", manifest("other"), v1.MediaTypeImageManifest, 404, "MANIFEST_BLOB_UNKNOWN"},
		"wrong size":           {"PUT", "/v2/app/manifests/x", strings.Replace(good, `"size":5`, `"size":6`, 1), v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		"index and image":      {"PUT", "/v2/app/manifests/x", strings.Replace(good, `{"schema`, `{"manifests":[{}],"schema`, 1), v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		"bad tag":              {"PUT", "/v2/app/manifests/.x", good, v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		"bad tag parameter":    {"PUT", "/v2/app/manifests/" + digest.FromString(good).String() + "?tag=.x", good, v1.MediaTypeImageManifest, 400, "TAG_INVALID"},
		"upper case name":      {"GET", "/v2/App/manifests/x", "", "", 400, "NAME_INVALID"},
		"name with dots":       {"GET", "/v2/../etc/manifests/x", "", "", 400, "NAME_INVALID"},
		"bad digest":           {"GET", "/v2/app/blobs/sha256:abc", "", "", 400, "DIGEST_INVALID"},
		"unknown algorithm":    {"POST", "/v2/app/blobs/uploads/?digest-algorithm=md5", "", "", 400, "DIGEST_INVALID"},
		"blob too large":       {"POST", "/v2/app/blobs/uploads/?digest=" + layer.String(), strings.Repeat("x", 2<<20), "", 413, "SIZE_INVALID"},
		"blob of other digest": {"POST", "/v2/app/blobs/uploads/?digest=" + layer.String(), "not the layer", "", 400, "DIGEST_INVALID"},
		"no such upload":       {"PATCH", "/v2/app/blobs/uploads/ABC", "", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		"method":               {"POST", "/v2/app/manifests/x", "", "", 405, "UNSUPPORTED"},
		"not a registry path":  {"GET", "/v2/app", "", "", 404, "NAME_UNKNOWN"},
		"bad page":             {"GET", "/v2/app/tags/list?n=x", "", "", 400, "PAGINATION_NUMBER_INVALID"},
	} {
		resp, body := s.do(t, c.method, c.path, c.body, "Content-Type", c.contentType)
		if resp.StatusCode != c.status || !strings.Contains(body, c.code) {
			t.Errorf("%s: %s %s, want %d %s", name, resp.Status, body, c.status, c.code)
		}
	}
	resp, _ := put(good, v1.MediaTypeImageManifest)
	want(t, resp, http.StatusCreated)
	s.rig.Collect(t)
	if blobs, writes := s.rig.Blobs(t); blobs != 3 || writes != 0 {
		t.Errorf("refused requests left something: %d blobs, %d writes", blobs, writes)
	}
}

func TestTagsInPages(t *testing.T) {
	s := start(t)
	for i := range 7 {
		s.pushImage(t, "app", fmt.Sprintf("v%d", i), "layer")
	}
	var got []string
	next := "/v2/app/tags/list?n=3"
	for next != "" {
		resp, body := s.do(t, "GET", next, "")
		want(t, resp, http.StatusOK)
		var list struct{ Tags []string }
		check(t, json.Unmarshal([]byte(body), &list))
		got = append(got, list.Tags...)
		next, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	}
	if strings.Join(got, " ") != "v0 v1 v2 v3 v4 v5 v6" {
		t.Errorf("got %v", got)
	}
	resp, _ := s.do(t, "GET", "/v2/nothing/tags/list", "")
	want(t, resp, http.StatusNotFound)
}

func TestDeleteAndPruneFreeTheDisk(t *testing.T) {
	s := start(t)
	keep := s.pushImage(t, "app", "keep", "shared")
	gone := s.pushImage(t, "app", "gone", "only gone")
	_ = s.push(t, "app", "pushed, then given up")
	resp, _ := s.do(t, "DELETE", "/v2/app/manifests/gone", "")
	want(t, resp, http.StatusAccepted)
	resp, _ = s.do(t, "GET", "/v2/app/manifests/"+gone.String(), "")
	want(t, resp, http.StatusOK) // only the tag went
	resp, _ = s.do(t, "DELETE", "/v2/app/manifests/"+gone.String(), "")
	want(t, resp, http.StatusAccepted)
	n, err := s.handler.Prune(t.Context(), time.Now().Add(-time.Hour))
	check(t, err)
	if n != 0 {
		t.Fatalf("pruned %d blobs that a push may be about to use", n)
	}
	n, err = s.handler.Prune(t.Context(), time.Now().Add(time.Hour))
	check(t, err)
	s.rig.Collect(t)
	if blobs, _ := s.rig.Blobs(t); n != 2 || blobs != 3 {
		t.Fatalf("pruned %d, %d blobs left; want 2 and 3", n, blobs)
	}
	resp, _ = s.do(t, "GET", "/v2/app/manifests/keep", "")
	want(t, resp, http.StatusOK)
	if resp.Header.Get("Docker-Content-Digest") != keep.String() {
		t.Error("another manifest")
	}
}

func TestServesTheNodesImages(t *testing.T) {
	s := start(t)
	sample := imagetest.NewSample(t, v1.ImageConfig{}, []imagetest.File{{Body: "x"}})
	s.rig.Store(t, "docker.io/library/base:1", sample)
	s.rig.Store(t, "ghcr.example/team/app:2", sample)
	for _, path := range []string{
		"/v2/library/base/manifests/1", "/v2/library/base/manifests/" + sample.Manifest.Digest.String(), "/v2/ghcr.example/team/app/manifests/2",
		"/v2/library/base/blobs/" + sample.Layers[0].Digest.String(), "/v2/library/base/blobs/" + sample.Config.Digest.String(),
	} {
		resp, _ := s.do(t, "GET", path, "")
		want(t, resp, http.StatusOK)
	}
	for _, path := range []string{
		"/v2/base/manifests/1", "/v2/library/other/blobs/" + sample.Layers[0].Digest.String(), "/v2/library/bas/blobs/" + sample.Config.Digest.String(),
		"/v2/library/base/manifests/" + sample.Config.Digest.String(),
	} {
		resp, _ := s.do(t, "GET", path, "")
		want(t, resp, http.StatusNotFound)
	}
	resp, _ := s.do(t, "DELETE", "/v2/library/base/manifests/1", "")
	want(t, resp, http.StatusNotFound) // the node's images are not the registry's to delete
	_, body := s.do(t, "GET", "/v2/_catalog", "")
	if !strings.Contains(body, `"library/base"`) || !strings.Contains(body, `"ghcr.example/team/app"`) {
		t.Errorf("catalog %s", body)
	}
	resp, _ = s.do(t, "POST", "/v2/mine/blobs/uploads/?from=library/base&mount="+sample.Layers[0].Digest.String(), "")
	want(t, resp, http.StatusCreated)
	check(t, s.rig.Images.Delete(s.rig.Context(t), "docker.io/library/base:1"))
	check(t, s.rig.Images.Delete(s.rig.Context(t), "ghcr.example/team/app:2"))
	s.rig.Collect(t)
	resp, _ = s.do(t, "GET", "/v2/mine/blobs/"+sample.Layers[0].Digest.String(), "")
	want(t, resp, http.StatusOK)
}

func TestDamagedFileIsRefused(t *testing.T) {
	s := open(t)
	check(t, s.handler.Close())
	file := filepath.Join(s.options.Root, "registry.db")
	check(t, os.WriteFile(file, bytes.Repeat([]byte("garbage "), 4096), 0o600))
	if _, err := registry.New(t.Context(), s.options); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("opened a damaged file: %v", err)
	}
	b, err := os.ReadFile(file)
	check(t, err)
	if !bytes.HasPrefix(b, []byte("garbage ")) {
		t.Error("the damaged file was silently replaced")
	}
}

func FuzzManifest(f *testing.F) {
	rig := imagetest.New(f)
	h, err := registry.New(f.Context(), registry.Options{Content: rig.Content, Leases: rig.Leases, Root: rig.Root + "/registry"})
	check(f, err)
	f.Cleanup(func() { _ = h.Close() })
	f.Add("x", v1.MediaTypeImageManifest, manifest("layer"))
	f.Add("x?tag=y&tag=z", v1.MediaTypeImageIndex, `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageIndex+`","manifests":[]}`)
	f.Add(digest.FromString("{}").String(), v1.MediaTypeImageManifest, `{"subject":{"digest":"sha256:x"},"config":{}}`)
	f.Fuzz(func(t *testing.T, ref, contentType, body string) {
		req := httptest.NewRequest("PUT", "/v2/app/manifests/x", strings.NewReader(body))
		req.URL.Path = "/v2/app/manifests/" + ref
		req.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code >= 500 || w.Code < 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w.Code == http.StatusCreated {
			req.Method, req.URL.Path = "GET", w.Header().Get("Location")
			again := httptest.NewRecorder()
			h.ServeHTTP(again, req)
			if again.Code != http.StatusOK || again.Body.String() != body {
				t.Fatalf("stored, but %d is read back", again.Code)
			}
		}
	})
}
