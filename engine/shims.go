package engine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/shimpool"
	"github.com/gantryd/gantry/fault"
)

// idleShims is how many shims wait for containers.
const idleShims = 2

// shims says which shim a container goes into.
type shims struct {
	pool *shimpool.Pool

	mu     sync.Mutex
	groups map[string]*shimGroup
	// starts counts those under way: no idle shims are made meanwhile, they would only be in the way.
	starts int
}

// shimGroup is the shim that the containers of a group share.
type shimGroup struct {
	mu      sync.Mutex      // held while the shim is being taken
	address string          // written with both locks held
	members map[string]bool // guarded by shims.mu
}

// usedShims returns the addresses of shims that have containers. It is asked before containerd starts, which then lets
// some of them go: those are about to end and no longer idle.
func (e *Engine) usedShims() map[string]bool {
	used := map[string]bool{}
	entries, _ := os.ReadDir(embedded.Bundle(e.o.Run, Namespace, ""))
	for _, d := range entries {
		used[embedded.Shim(e.o.Run, Namespace, d.Name())] = true
	}
	return used
}

func (e *Engine) openShims(used map[string]bool) (err error) {
	e.shims.groups = map[string]*shimGroup{}
	e.shims.pool, err = shimpool.Open(shimpool.Options{
		Binary: filepath.Join(e.o.Helpers, shimBinary), Dir: filepath.Join(e.o.Run, "shims"),
		Sockets: embedded.SocketDir(e.o.Run), Address: embedded.Socket(e.o.Run), Namespace: Namespace,
		Size: idleShims, Logger: e.log,
	}, used)
	return err
}

// join returns a group with the container in it.
func (s *shims) join(c *container) *shimGroup {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[c.Group]
	if g == nil {
		g = &shimGroup{members: map[string]bool{}}
		s.groups[c.Group] = g
	}
	g.members[c.ID] = true
	return g
}

// leave is called before a container's task is deleted: with the last one the shim ends, and nobody may go into it. It
// returns the address of a shim that has lost its last member.
func (s *shims) leave(c *container) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[c.Group]
	if g == nil || !g.members[c.ID] {
		return ""
	}
	delete(g.members, c.ID)
	if len(g.members) > 0 {
		return ""
	}
	delete(s.groups, c.Group)
	return g.address
}

// adopted notes which shim a container of an earlier engine is in.
func (s *shims) adopted(c *container, address string) {
	if c.Group == "" || address == "" {
		return
	}
	g := s.join(c)
	g.mu.Lock()
	defer g.mu.Unlock()
	s.setAddress(g, address)
}

func (s *shims) setAddress(g *shimGroup, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.address = address
}

// take returns the shim that a container goes into; dead is one that did not answer.
func (s *shims) take(ctx context.Context, c *container, dead string) (string, error) {
	if c.Group == "" {
		return s.pool.Take(ctx)
	}
	g := s.join(c)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.address != "" && g.address != dead {
		return g.address, nil
	}
	address, err := s.pool.Take(ctx)
	s.setAddress(g, address)
	return address, err
}

// starting is called around a start. When none is under way, idle shims are made for the next.
func (s *shims) starting() (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.starts--; s.starts == 0 {
			s.pool.Refill()
		}
	}
}

// runtimeScript stands in for the shim's program. containerd runs "delete" of it whenever a connection to a shim closes,
// after an orderly end too, where nothing is left to be deleted: the shim would start, and runc after it, for nothing.
const runtimeScript = `#!/bin/sh
for last; do :; done
[ "$last" = delete ] && [ "$7" = -id ] && [ ! -e %s/"$NAMESPACE/$8" ] && exit 0
exec %s "$@"
`

// writeRuntime makes the script and returns its path; the shim's program where scripts do not run.
func (e *Engine) writeRuntime(ctx context.Context) (string, error) {
	shim, path := filepath.Join(e.o.Helpers, shimBinary), filepath.Join(e.o.Root, "shim-runtime")
	if err := os.MkdirAll(e.o.Root, 0o711); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "engine: cannot make %s", e.o.Root)
	}
	script := fmt.Sprintf(runtimeScript, quote(e.runcRoot()), quote(shim))
	// Renamed into place: one that runs cannot be written to.
	if err := os.WriteFile(path+".new", []byte(script), 0o700); err != nil {
		return "", fault.Wrap(diskFault(err), err, "engine: cannot write %s", path)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fault.Wrap(diskFault(err), err, "engine: cannot write %s", path)
	}
	if err := exec.CommandContext(ctx, path, "-v").Run(); err != nil {
		e.log.Debug("scripts do not run here, containers are removed a little slower", "error", err)
		return shim, nil
	}
	return path, nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (e *Engine) runcRoot() string { return filepath.Join(e.o.Run, "runc") }
