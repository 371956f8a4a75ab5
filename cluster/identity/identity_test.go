package identity_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

// machine makes a keeper signed by the authority.
func machine(t *testing.T, a *identity.Authority, roots []byte, node string, role identity.Role, life time.Duration) *identity.Keeper {
	t.Helper()
	key, request, err := identity.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(request, node, role, "127.0.0.1", life)
	if err != nil {
		t.Fatal(err)
	}
	k, err := identity.NewKeeper(t.TempDir(), cert, key, roots)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func authority(t *testing.T) (*identity.Authority, []byte) {
	t.Helper()
	a, roots, _, err := identity.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	return a, roots
}

// serve answers with who called.
func serve(t *testing.T, k *identity.Keeper) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := identity.CallerOf(r)
		fmt.Fprintf(w, "%s %s %t", c.Node, c.Role, ok)
	}))
	s.TLS = k.ServerTLS()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func get(t *testing.T, url string, c *http.Client) (string, error) {
	t.Helper()
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// plain is a client with a configuration of its own.
func plain(c *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}}
}

func TestMachinesKnowOneAnother(t *testing.T) {
	a, roots := authority(t)
	server := machine(t, a, roots, "s1", identity.Server, time.Hour)
	node := machine(t, a, roots, "n1", identity.Node, time.Hour)
	url := serve(t, server)
	for name, want := range map[string]bool{identity.AnyServer: true, identity.AnyMachine: true, "s1": true, "n1": false} {
		got, err := get(t, url, node.Client(name))
		if want != (err == nil) || want && got != "n1 node true" {
			t.Errorf("calling %q: %q, %v", name, got, err)
		}
	}
	if _, err := get(t, serve(t, node), server.Client(identity.AnyServer)); err == nil {
		t.Error("a node passed for a server")
	}
}

// TestClocksThatDiffer has machines meet whose clocks are up to an hour away from that of whoever made the certificates.
func TestClocksThatDiffer(t *testing.T) {
	a, roots := authority(t)
	const life = 24 * time.Hour
	server, node := machine(t, a, roots, "one", identity.Server, life), machine(t, a, roots, "two", identity.Node, life)
	if got := node.Life(); got.Round(time.Minute) != life {
		t.Errorf("a certificate for %s says that it is for %s", life, got)
	}
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		wrong := func() time.Time { return time.Now().Add(off) }
		there := server.ServerTLS()
		config := there.GetConfigForClient
		there.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := config(hello)
			c.Time = wrong
			return c, err
		}
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.TLS = there
		s.StartTLS()
		defer s.Close()
		if _, err := get(t, s.URL, node.Client(identity.AnyServer)); err != nil {
			t.Errorf("a server whose clock is off by %s: %v", off, err)
		}
		here := node.ClientTLS(identity.AnyServer)
		here.Time = wrong
		if _, err := get(t, serve(t, server), plain(here)); err != nil {
			t.Errorf("a node whose clock is off by %s: %v", off, err)
		}
	}
}

// expired is a node whose certificate has ended.
func expired(t *testing.T, a *identity.Authority, roots []byte, node string) *identity.Keeper {
	t.Helper()
	key, request, err := identity.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(request, node, identity.Node, "127.0.0.1", -time.Second)
	if err != nil {
		t.Fatal(err)
	}
	k, err := identity.KeeperOf(cert, key, roots)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestStrangersAreRefused(t *testing.T) {
	a, roots := authority(t)
	b, others := authority(t)
	url := serve(t, machine(t, a, roots, "s1", identity.Server, time.Hour))
	foreign := machine(t, b, others, "n1", identity.Server, time.Hour).ClientTLS(identity.AnyServer)
	foreign.InsecureSkipVerify = true
	if got, err := get(t, url, plain(foreign)); err == nil && got != "  false" {
		t.Errorf("a certificate of another cluster was let in: %q", got)
	}
	expired := expired(t, a, roots, "n2")
	if got, err := get(t, url, expired.Client(identity.AnyServer)); err == nil {
		t.Errorf("a certificate that has ended was let in: %q", got)
	}
	none := expired.ClientTLS(identity.AnyServer)
	none.Certificates = nil
	if got, err := get(t, url, plain(none)); err != nil || got != "  false" {
		t.Errorf("a caller without a certificate: %q, %v", got, err)
	}
}

func TestJoinTLS(t *testing.T) {
	a, roots := authority(t)
	b, _ := authority(t)
	url := serve(t, machine(t, a, roots, "s1", identity.Server, time.Hour))
	if _, err := get(t, url, identity.JoinClient(identity.NewToken(identity.Node, a.RootHash()))); err != nil {
		t.Errorf("the token's own cluster: %v", err)
	}
	_, err := get(t, url, identity.JoinClient(identity.NewToken(identity.Node, b.RootHash())))
	if err == nil || !strings.Contains(err.Error(), "not the one that the token names") {
		t.Errorf("another cluster: %v", err)
	}
	node := serve(t, machine(t, a, roots, "n1", identity.Node, time.Hour))
	if _, err := get(t, node, identity.JoinClient(identity.NewToken(identity.Node, a.RootHash()))); err == nil {
		t.Error("a node passed for a server")
	}
}

func TestReplace(t *testing.T) {
	a, roots := authority(t)
	k := machine(t, a, roots, "n1", identity.Node, time.Hour)
	url := serve(t, k)
	changed := k.Changed()
	key, request, err := identity.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(request, "n1", identity.Server, "127.0.0.1", 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Replace(cert, []byte("nonsense"), roots); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("a key that does not fit: %v", err)
	}
	if err := k.Replace(cert, key, roots); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if k.Role() != identity.Server || k.Life() != 2*time.Hour {
		t.Errorf("role %s, life %s", k.Role(), k.Life())
	}
	if _, err := get(t, url, k.Client(identity.AnyServer)); err != nil {
		t.Errorf("the listener shows its old certificate: %v", err)
	}
	pair, _ := k.Files()
	again, err := identity.OpenKeeper(filepath.Dir(pair))
	if err != nil || again.Role() != identity.Server || !bytes.Equal(again.Roots(), roots) {
		t.Errorf("opened again: %v", err)
	}
	if info, err := os.Stat(pair); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v, %v", info.Mode(), err)
	}
}

// TestReplaceKeepsWhatIsGood: with a certificate that is not good yet, as a leader signs whose clock is ahead, or no longer, every
// other machine would refuse this one. The same goes for one under roots that are not good yet, and for one of another cluster.
func TestReplaceKeepsWhatIsGood(t *testing.T) {
	a, roots := authority(t)
	other, _ := authority(t)
	k := machine(t, a, roots, "n1", identity.Node, time.Hour)
	ends, changed := k.Ends(), k.Changed()
	key, request, err := identity.Request()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(a *identity.Authority, ahead time.Duration) []byte {
		cert, err := identity.SignAt(a, time.Now().Add(ahead), request, "n1", identity.Node, 2*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	late, lateRoots, _, err := identity.NewAuthorityAt(time.Now().Add(2*time.Hour), "test")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		cert, roots []byte
		want        string
	}{
		"not good yet":       {sign(a, 2*time.Hour), roots, "is good from "},
		"good no longer":     {sign(a, -4*time.Hour), roots, "ended at "},
		"of a later root":    {sign(late, 0), lateRoots, "not good under the roots"},
		"of another cluster": {sign(other, 0), roots, "not good under the roots"},
	} {
		err := k.Replace(c.cert, key, c.roots)
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), c.want) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v (hint: %s)", what, err, fault.HintOf(err))
		}
	}
	select {
	case <-changed:
		t.Error("another certificate is in force")
	default:
	}
	pair, _ := k.Files()
	again, err := identity.OpenKeeper(filepath.Dir(pair))
	if err != nil || !again.Ends().Equal(ends) || !k.Ends().Equal(ends) || !bytes.Equal(again.Roots(), roots) {
		t.Errorf("the certificate ends at %s, on disk at %s: %v", k.Ends(), again.Ends(), err)
	}
	for what, ahead := range map[string]time.Duration{"an hour ahead": time.Hour, "behind": -time.Hour} {
		if err := k.Replace(sign(a, ahead), key, roots); err != nil {
			t.Errorf("from a clock that is %s: %v", what, err)
		}
	}
}

func TestToken(t *testing.T) {
	a, _ := authority(t)
	want := identity.NewToken(identity.Server, a.RootHash())
	got, err := identity.ParseToken(" " + want.String() + "\n")
	if err != nil || got != want {
		t.Fatalf("%v, %v", got, err)
	}
	if !got.Matches(want.Hash()) || identity.NewToken(identity.Server, a.RootHash()).Matches(want.Hash()) {
		t.Error("secrets are not told apart")
	}
	for _, bad := range []string{"", "gantry", "gantry-node-1-2-3", "x" + want.String(), want.String()[:40], strings.Replace(want.String(), "server", "king", 1)} {
		if _, err := identity.ParseToken(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("gantry-node-00-00-0000000000000000000000000000000000000000000000000000000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := identity.ParseToken(s)
		if err != nil {
			return
		}
		if again, err := identity.ParseToken(tok.String()); err != nil || again != tok {
			t.Errorf("%q became %q", s, tok)
		}
	})
}

func TestSucceed(t *testing.T) {
	a, oldRoots := authority(t)
	b, roots, _, err := a.Succeed("test")
	if err != nil {
		t.Fatal(err)
	}
	oldServer := machine(t, a, oldRoots, "s1", identity.Server, time.Hour)
	oldNode := machine(t, a, oldRoots, "n1", identity.Node, time.Hour)
	newServer := machine(t, b, roots, "s2", identity.Server, time.Hour)
	newNode := machine(t, b, roots, "n2", identity.Node, time.Hour)
	for _, s := range []*identity.Keeper{oldServer, newServer} {
		url := serve(t, s)
		for _, n := range []*identity.Keeper{oldNode, newNode} {
			if got, err := get(t, url, n.Client(identity.AnyServer)); err != nil {
				t.Errorf("%s to %s: %q, %v", n.Node(), s.Node(), got, err)
			}
		}
	}
	for name, hash := range map[string]string{"old": a.RootHash(), "new": b.RootHash()} {
		if _, err := get(t, serve(t, newServer), identity.JoinClient(identity.NewToken(identity.Node, hash))); err != nil {
			t.Errorf("a token of the %s root: %v", name, err)
		}
	}
	c, later, _, err := b.Succeed("test")
	if err != nil {
		t.Fatal(err)
	}
	last := machine(t, c, later, "s3", identity.Server, time.Hour)
	if _, err := get(t, serve(t, last), oldNode.Client(identity.AnyServer)); err == nil {
		t.Error("the root before the last is trusted still")
	}
}
