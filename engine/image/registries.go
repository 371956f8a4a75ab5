package image

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/net/publicsuffix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// resolver speaks with the registry of an image, by way of the mirrors that Root/registries configures. The credential, if
// there is one, goes to the registry it is for and to nobody else.
func (s *Service) resolver(ctx context.Context, named reference.Named, auth *gantryv1.RegistryAuth) (remotes.Resolver, error) {
	domain := reference.Domain(named)
	extra, err := s.checkHostsFile(domain)
	if err != nil {
		return nil, err
	}
	cred := newCredential(domain, auth, extra)
	hosts := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     config.HostDirFromRoot(s.registriesDir()),
		Credentials: cred.lookup,
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				t.ResponseHeaderTimeout = 5 * time.Minute // a registry hashes a whole layer before it answers
			}
			c.Transport = guard{next: c.Transport, cred: cred}
			return nil
		},
	})
	return docker.NewResolver(docker.ResolverOptions{Hosts: cred.authorize(hosts)}), nil
}

// Hosts finds registries for others, with mirrors before them and without TLS where Root/registries says so. Who asks brings
// the credentials.
func (s *Service) Hosts(ctx context.Context) docker.RegistryHosts {
	hosts := config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(s.registriesDir())})
	return func(domain string) ([]docker.RegistryHost, error) {
		if _, err := s.checkHostsFile(domain); err != nil {
			return nil, err
		}
		return hosts(domain)
	}
}

func (s *Service) registriesDir() string { return filepath.Join(s.Root, "registries") }

// checkHostsFile refuses a registry's file that cannot be read, which containerd would pass over in silence. It returns the
// further hosts that may be given the registry's credential.
func (s *Service) checkHostsFile(domain string) (authHosts []string, err error) {
	dir, err := config.HostDirFromRoot(s.registriesDir())(domain)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(err, "registry %s: configuration", domain)
	}
	file := filepath.Join(dir, "hosts.toml")
	raw, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil, nil
	}
	var c struct {
		AuthHosts []string                  `toml:"auth_hosts"`
		Server    string                    `toml:"server"`
		Host      map[string]map[string]any `toml:"host"`
	}
	if err == nil {
		err = toml.Unmarshal(raw, &c)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "registry %s: %s cannot be read", domain, file).WithHint("correct or remove the file")
	}
	for host := range c.Host {
		if u, err := url.Parse(host); err != nil || u.Host == "" {
			return nil, fault.New(fault.Invalid, "registry %s: %s: %q is not a URL", domain, file, host).WithHint(`write [host."https://…"]`)
		}
	}
	return c.AuthHosts, nil
}

// credential is a user's secret for one registry.
type credential struct {
	registry string // as in an image's name
	auth     *gantryv1.RegistryAuth
	extra    []string    // further hosts that may see it
	plain    atomic.Bool // the configuration says that the registry has no TLS
}

func newCredential(domain string, auth *gantryv1.RegistryAuth, extra []string) *credential {
	c := &credential{registry: domain, auth: auth, extra: extra}
	if auth.GetServer() != "" {
		c.registry = registryName(auth.Server)
	}
	return c
}

// registryName is the registry of a server address as Docker's configuration writes it.
func registryName(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	server, _, _ = strings.Cut(server, "/")
	switch server {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return server
}

// lookup returns what to log in with at a host, empty if it is not the credential's registry.
func (c *credential) lookup(host string) (user, secret string, err error) {
	if c.auth == nil || registryName(host) != c.registry {
		return "", "", nil
	}
	if c.auth.IdentityToken != "" {
		return "", c.auth.IdentityToken, nil
	}
	return c.auth.Username, c.auth.Password, nil
}

// authorize adds a ready registry token, if that is what the user has.
func (c *credential) authorize(hosts docker.RegistryHosts) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		hs, err := hosts(name)
		for i := range hs {
			if registryName(hs[i].Host) != c.registry {
				continue
			}
			if hs[i].Scheme == "http" {
				c.plain.Store(true)
			}
			if token := c.auth.GetRegistryToken(); token != "" {
				hs[i].Authorizer = bearer(token)
			}
		}
		return hs, err
	}
}

// permits tells whether the secret may be sent to a URL: the registry itself, a host of the same registered domain (where
// registries keep their token servers), or one that the configuration names. Without TLS only where the configuration says so.
func (c *credential) permits(u *url.URL) bool {
	if slices.Contains(c.extra, u.Host) {
		return true
	}
	if u.Scheme != "https" && !c.plain.Load() && !docker.IsLocalhost(u.Host) {
		return false
	}
	registry := &url.URL{Host: c.registry}
	if u.Hostname() == registry.Hostname() || registryName(u.Host) == c.registry {
		return true
	}
	a, errA := publicsuffix.EffectiveTLDPlusOne(u.Hostname())
	b, errB := publicsuffix.EffectiveTLDPlusOne(registry.Hostname())
	return errA == nil && errB == nil && a == b && u.Scheme == "https"
}

// carried tells whether a request holds the secret itself, not a short-lived token made from it.
func (c *credential) carried(req *http.Request) bool {
	if c.auth == nil {
		return false
	}
	if strings.HasPrefix(req.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return true
	}
	kind, value, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	if strings.EqualFold(kind, "bearer") {
		return c.auth.RegistryToken != "" && value == c.auth.RegistryToken
	}
	raw, err := base64.StdEncoding.DecodeString(value)
	return value != "" && (err != nil || strings.Contains(string(raw), ":"))
}

// guard stops a request that would show the secret to a host it is not for, whoever made it: a registry names its token
// server itself and may redirect.
type guard struct {
	next http.RoundTripper
	cred *credential
}

// RoundTrip sends a request or refuses it.
func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if g.cred.carried(req) && !g.cred.permits(req.URL) {
		return nil, fault.New(fault.Denied, "registry %s asks to send its password to %s, which is another host; not sent", g.cred.registry, req.URL.Host).
			WithHint(`if that is right, add auth_hosts = [%q] to the registry's hosts.toml, see doc/images.md`, req.URL.Host)
	}
	return g.next.RoundTrip(req)
}

// bearer is a token that the user brought.
type bearer string

// Authorize adds the token.
func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

// AddResponses has nothing else to try.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return errdefs.ErrNotImplemented
}
