package daemon

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/agent"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/registry"
)

// registryUser is the one account of the embedded registry; its password is a file.
const registryUser = "gantry"

// registry serves the embedded registry, if it was asked for.
func (d *daemon) registry(ctx context.Context, group *errgroup.Group, parts agent.Parts, own *identity.Keeper) error {
	if d.Registry == "" {
		return nil
	}
	pair, _ := own.Files()
	encrypted, err := registryTLS(d.Registry, d.RegistryCertificate, d.RegistryKey, pair)
	if err != nil {
		return err
	}
	password, err := d.registryPassword()
	if err != nil {
		return err
	}
	c := parts.Engine.Client()
	h, err := registry.New(ctx, registry.Options{
		Content: c.ContentStore(), Leases: c.LeasesService(), Images: c.ImageService(),
		Root: filepath.Join(d.Root, "registry"), Logger: d.Logger,
		Authorize: func(r *http.Request, _ string, _ registry.Action) error { return authorize(r, password) },
	})
	if err != nil {
		return err
	}
	d.onStop("registry", h.Close)
	l, err := net.Listen("tcp", d.Registry)
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "the embedded registry cannot listen on %s", d.Registry).
			WithHint("free the port, or start gantryd with another --registry ADDRESS, or none: --registry ''")
	}
	d.onStop("registry listener", closing(l))
	if encrypted != nil {
		l = tls.NewListener(l, encrypted)
	}
	group.Go(func() error { return serve(ctx, l, h, d.Logger) })
	group.Go(func() error { return d.pruneRegistry(ctx, h) })
	return nil
}

const (
	registryPrune = time.Hour      // between two looks for what pushes left behind
	registryKeep  = 24 * time.Hour // how long a push may take
)

// pruneRegistry removes now and then what pushes that were given up have left.
func (d *daemon) pruneRegistry(ctx context.Context, h *registry.Handler) error {
	tick := time.NewTicker(registryPrune)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := h.Prune(ctx, time.Now().Add(-registryKeep)); err != nil && ctx.Err() == nil {
				d.Logger.Warn("the registry cannot be pruned", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func authorize(r *http.Request, password string) error {
	user, given, ok := r.BasicAuth()
	if ok && user == registryUser && subtle.ConstantTimeCompare([]byte(given), []byte(password)) == 1 {
		return nil
	}
	return registry.ErrLogin
}

// registryPassword reads the password, or makes it the first time.
func (d *daemon) registryPassword() (string, error) {
	path := filepath.Join(d.Root, "registry.password")
	b, err := atomicfile.Read(path)
	if fault.Is(err, fault.Corrupt) {
		return "", fault.Wrap(fault.Corrupt, err, "the registry's password is damaged").
			WithHint("put %s back, or remove it: a new one is made, which docker login has to be told", path)
	}
	if err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fault.Wrap(fault.Unavailable, err, "cannot read the registry's password")
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails: crypto/rand ends the program instead
	password := hex.EncodeToString(raw)
	if err := atomicfile.Write(path, []byte(password+"\n"), 0o600); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot keep the registry's password")
	}
	return password, nil
}
