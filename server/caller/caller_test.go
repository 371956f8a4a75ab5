package caller_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os/user"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/server/caller"
)

// serveSocket answers on a Unix socket with who calls.
func serveSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ConnContext: caller.FromConn, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = rw.Write([]byte(caller.Of(r.Context()).User))
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return path
}

func TestTheKernelSaysWhoCalls(t *testing.T) {
	path := serveSocket(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Gantry-User", "mallory") // nobody may name himself
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 100)
	n, _ := resp.Body.Read(buf)
	if got := string(buf[:n]); got != me.Username {
		t.Errorf("the caller is %q, want %q", got, me.Username)
	}
}

func TestAServerPassesTheCallerOn(t *testing.T) {
	var got caller.Caller
	h := httptest.NewServer(caller.Forwarded(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = caller.Of(r.Context()) })))
	defer h.Close()
	for want, ctx := range map[caller.Caller]context.Context{
		{User: "zoë", Node: "n2"}: caller.With(t.Context(), caller.Caller{User: "zoë"}),
		{User: "ann", Node: "n3"}: caller.With(t.Context(), caller.Caller{User: "ann", Node: "n3"}), // twice passed on
		{Node: "n2"}:              t.Context(),
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		caller.Forward(ctx, req.Header, "n2")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got != want {
			t.Errorf("%+v arrived, want %+v", got, want)
		}
	}
}
