package registry_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/registry"
)

// server is a registry on real containerd storage behind a real listener.
type server struct {
	*httptest.Server
	rig     *imagetest.Rig
	handler *registry.Handler
	options registry.Options
}

func start(t *testing.T, change ...func(*registry.Options)) *server {
	t.Helper()
	s := open(t, change...)
	s.Server = httptest.NewServer(s.handler)
	t.Cleanup(s.Server.Close)
	return s
}

func open(t *testing.T, change ...func(*registry.Options)) *server {
	t.Helper()
	return openAt(t, t.TempDir(), change...)
}

func openAt(t *testing.T, root string, change ...func(*registry.Options)) *server {
	t.Helper()
	rig := imagetest.Open(t, root)
	s := &server{rig: rig, options: registry.Options{Content: rig.Content, Leases: rig.Leases, Images: rig.Images, Root: rig.Root + "/registry"}}
	s.options.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	for _, c := range change {
		c(&s.options)
	}
	h, err := registry.New(t.Context(), s.options)
	check(t, err)
	s.handler = h
	t.Cleanup(func() { _ = s.handler.Close() })
	return s
}

// startLogin is start with TLS and a user.
func startLogin(t *testing.T, user, password string) *server {
	t.Helper()
	s := open(t, func(o *registry.Options) {
		o.Authorize = func(r *http.Request, _ string, _ registry.Action) error {
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				return registry.ErrLogin
			}
			return nil
		}
	})
	s.Server = httptest.NewTLSServer(s.handler)
	t.Cleanup(s.Server.Close)
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// do sends a request and returns the answer with its body read. Headers come as name, value, ….
func (s *server) do(t testing.TB, method, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = s.URL + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	check(t, err)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.Client().Do(req)
	check(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp, string(b)
}
