// Package shimpool keeps shims that are started already, so that no container waits for one.
//
// Open a Pool and Take the address of a shim that holds no container yet; Refill starts others in the place of those that
// were taken. A shim with a container outlives the pool and ends with its last container; idle ones end with Close, and
// those of a killed process with the next Open. The package knows nothing of containers.
package shimpool

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/fault"
)

// Protocol is how containerd is told to talk to a shim: put it before the address.
const Protocol = "ttrpc+"

// endLimit bounds how long an idle shim may take to hear that it is to end.
const endLimit = 5 * time.Second

// startLimit is how long a shim may take to come up.
const startLimit = 10 * time.Second

// Options of a pool. All but Logger are required.
type Options struct {
	Binary  string // the shim
	Dir     string // volatile: one directory for each shim
	Sockets string // directory of the shims' sockets
	// Address is containerd's socket; shims report to the same with ".ttrpc" behind it.
	Address, Namespace string
	// Size is how many idle shims are kept.
	Size   int
	Logger *slog.Logger
}

// Pool hands out idle shims. Make it with Open.
type Pool struct {
	o      Options
	prefix string // of the names of its shims
	group  errgroup.Group

	mu      sync.Mutex
	idle    []shim
	refill  *time.Timer // nil before the first RefillSoon
	filling bool
	closed  bool
}

type shim struct{ dir, address string }

// addressFile holds the shim's address; it is there before a container can be in it.
const addressFile = "shim-address"

// Open makes a pool. Shims of an earlier pool whose address is not in use are ended.
func Open(o Options, used map[string]bool) (*Pool, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "shims: cannot make %s", o.Dir)
	}
	p := &Pool{o: o, prefix: rand.Text()[:8] + "-"}
	p.clear(used)
	p.Refill()
	return p, nil
}

// clear ends shims that nobody uses and removes what dead ones have left.
func (p *Pool) clear(used map[string]bool) {
	entries, _ := os.ReadDir(p.o.Dir)
	for _, d := range entries {
		s := shim{dir: filepath.Join(p.o.Dir, d.Name())}
		address, err := os.ReadFile(filepath.Join(s.dir, addressFile))
		s.address = string(address)
		if err != nil {
			p.clearUnfinished(d)
		} else if !used[s.address] || !alive(s.address) {
			p.end(s)
		}
	}
}

// clearUnfinished ends a shim whose start was cut off with the process that wanted it. The shim may still be about to
// come up, so its directory stays for a while, to be looked at again.
func (p *Pool) clearUnfinished(d os.DirEntry) {
	s := shim{filepath.Join(p.o.Dir, d.Name()), p.socketOf(d.Name())}
	info, err := d.Info()
	if err == nil && (alive(s.address) || time.Since(info.ModTime()) > startLimit) {
		p.end(s)
	}
}

// Take returns the address of a shim without a container. It starts one if none is idle.
func (p *Pool) Take(ctx context.Context) (string, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		s := p.idle[0]
		p.idle = p.idle[1:]
		p.mu.Unlock()
		return s.address, nil
	}
	p.mu.Unlock()
	s, err := p.start(ctx)
	return s.address, err
}

// End ends a shim that was taken, unless it has a container.
func (p *Pool) End(address string) {
	entries, _ := os.ReadDir(p.o.Dir)
	for _, d := range entries {
		if p.socketOf(d.Name()) == address {
			p.end(shim{filepath.Join(p.o.Dir, d.Name()), address})
		}
	}
}

// refillDelay keeps the start of a shim out of the way of the container that has just been started, while another is idle.
const refillDelay = 100 * time.Millisecond

// RefillSoon refills when nobody has asked for it again for a moment; at once when no shim is idle.
func (p *Pool) RefillSoon() {
	p.mu.Lock()
	wait := len(p.idle) > 0
	if wait && p.refill == nil {
		p.refill = time.AfterFunc(refillDelay, p.Refill)
	} else if wait {
		p.refill.Reset(refillDelay)
	}
	p.mu.Unlock()
	if !wait {
		p.Refill()
	}
}

// Refill starts idle shims in the background until there are enough.
func (p *Pool) Refill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filling || p.closed || len(p.idle) >= p.o.Size {
		return
	}
	p.filling = true
	p.group.Go(func() error {
		for p.addIdle() {
		}
		return nil
	})
}

// addIdle starts one shim and says whether another is needed.
func (p *Pool) addIdle() bool {
	p.removeDead()
	s, err := p.start(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.o.Logger.Warn("no shim can be started ahead", "error", err)
		p.filling = false
		return false
	}
	p.idle = append(p.idle, s)
	p.filling = len(p.idle) < p.o.Size && !p.closed
	return p.filling
}

// removeDead removes the directories of shims that have ended. A shim's own way out needs its directory, so it cannot go
// before; its socket says that it is through.
func (p *Pool) removeDead() {
	entries, _ := os.ReadDir(p.o.Dir)
	for _, d := range entries {
		dir := filepath.Join(p.o.Dir, d.Name())
		address, err := os.ReadFile(filepath.Join(dir, addressFile))
		if err != nil {
			if !strings.HasPrefix(d.Name(), p.prefix) { // else it is being started
				p.clearUnfinished(d)
			}
			continue
		}
		if _, err := os.Stat(socketPath(string(address))); errors.Is(err, os.ErrNotExist) {
			_ = os.RemoveAll(dir)
		}
	}
}

// Close ends the idle shims.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.group.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.idle {
		p.end(s)
	}
	p.idle = nil
	p.removeDead()
	return err
}

// end makes a shim end that has no container; one that has stays. What is left of it goes.
func (p *Pool) end(s shim) {
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	path := socketPath(s.address)
	conn, err := net.Dial("unix", path)
	if err != nil {
		_ = os.Remove(path)
		_ = os.RemoveAll(s.dir)
		return
	}
	closed := make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(closed) }))
	defer client.Close()
	_, err = task.NewTTRPCTaskClient(client).Shutdown(ctx, &task.ShutdownRequest{ID: filepath.Base(s.dir)})
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		p.o.Logger.Warn("an idle shim does not end", "address", s.address, "error", err)
		return
	}
	select {
	case <-closed:
		_ = os.Remove(path)
		_ = os.RemoveAll(s.dir)
	case <-ctx.Done():
	}
}

func alive(address string) bool {
	conn, err := net.Dial("unix", socketPath(address))
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func socketPath(address string) string { return strings.TrimPrefix(address, "unix://") }
