package registry_test

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// crashRoot names the directory of the registry that a child process runs.
const crashRoot = "GANTRY_TEST_REGISTRY_ROOT"

// TestCrashChild is the child process of TestKilledWhilePushing: a registry that collects garbage all the time, until it is killed.
func TestCrashChild(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		t.Skip("runs only as the child of TestKilledWhilePushing")
	}
	s := openAt(t, root)
	s.Server = httptest.NewServer(s.handler)
	fmt.Println("address", s.URL)
	for {
		s.rig.Collect(t)
	}
}

// TestKilledWhilePushing kills a registry in the middle of parallel pushes, again and again, and holds what it acknowledged against
// what the next one serves from the same disk.
func TestKilledWhilePushing(t *testing.T) {
	root := t.TempDir()
	var mu sync.Mutex
	acknowledged := map[string]string{} // repository/tag to the layer's text
	for round := range 3 {
		child := exec.Command(os.Args[0], "-test.run=^TestCrashChild$", "-test.v")
		child.Env = append(os.Environ(), crashRoot+"="+root)
		out, err := child.StdoutPipe()
		check(t, err)
		check(t, child.Start())
		s := &server{Server: &httptest.Server{URL: address(t, out)}}
		enough, target := make(chan struct{}), len(acknowledged)+20
		var workers sync.WaitGroup
		for w := range 6 {
			workers.Go(func() {
				for i := 0; ; i++ {
					repo, tag, layer := fmt.Sprintf("app%d", w), fmt.Sprintf("r%d-%d", round, i), fmt.Sprintf("layer %d %d %d", round, w, i)
					if !s.tryPush(repo, tag, layer) {
						return
					}
					mu.Lock()
					acknowledged[repo+"/"+tag] = layer
					if len(acknowledged) == target {
						close(enough)
					}
					mu.Unlock()
				}
			})
		}
		<-enough
		check(t, child.Process.Kill())
		_ = child.Wait()
		workers.Wait()
	}
	s := openAt(t, root)
	s.Server = httptest.NewServer(s.handler)
	t.Cleanup(s.Server.Close)
	s.rig.Collect(t)
	for name, layer := range acknowledged {
		repo, tag, _ := strings.Cut(name, "/")
		resp, body := s.do(t, "GET", "/v2/"+repo+"/manifests/"+tag, "")
		want(t, resp, http.StatusOK)
		if body != manifest(layer) {
			t.Fatalf("%s is not what was pushed", name)
		}
		resp, body = s.do(t, "GET", "/v2/"+repo+"/blobs/"+digest.FromString(layer).String(), "")
		want(t, resp, http.StatusOK)
		if body != layer {
			t.Fatalf("the layer of %s has other bytes", name)
		}
	}
	resp, _ := s.do(t, "GET", "/v2/app0/tags/list", "")
	want(t, resp, http.StatusOK)
	s.pushImage(t, "app0", "after", "the crash")
}

// address reads where a child listens.
func address(t *testing.T, out interface{ Read([]byte) (int, error) }) string {
	t.Helper()
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if url, ok := strings.CutPrefix(sc.Text(), "address "); ok {
			return url
		}
	}
	t.Fatal("the child did not start")
	return ""
}

// tryPush pushes an image to a registry that may die at any moment, and tells whether it was acknowledged.
func (s *server) tryPush(repo, tag, layer string) bool {
	for _, blob := range []string{"{}", layer} {
		if !sent("POST", s.URL+"/v2/"+repo+"/blobs/uploads/?digest="+digest.FromString(blob).String(), blob, "") {
			return false
		}
	}
	return sent("PUT", s.URL+"/v2/"+repo+"/manifests/"+tag, manifest(layer), "application/vnd.oci.image.manifest.v1+json")
}

func sent(method, url, body, contentType string) bool {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusCreated
}
