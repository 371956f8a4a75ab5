package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/shimpool"
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
			s.pool.RefillSoon()
		}
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (e *Engine) runcRoot() string { return filepath.Join(e.o.Run, "runc") }
