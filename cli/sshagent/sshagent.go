// Package sshagent carries connections of a build to this machine's SSH agent.
//
// Make an Agent with New, give it what the builder sends with Receive, and let Run copy answers back until its context
// ends. Keys never leave the agent: only its protocol is passed through.
package sshagent

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Agent holds the open connections of one build. It is safe in parallel.
type Agent struct {
	send func(*gantryv1.SSHData) error
	// Socket by SSH id.
	sockets map[string]string

	mu    sync.Mutex
	conns map[int64]net.Conn
	fresh chan opened
}

type opened struct {
	id         string
	connection int64
	conn       net.Conn
}

// New makes an agent for the ids of a build ("default", "id=socket"). Send passes data to the builder; it is called
// in parallel, once per connection.
func New(send func(*gantryv1.SSHData) error, ids []string) *Agent {
	a := &Agent{send: send, sockets: map[string]string{}, conns: map[int64]net.Conn{}, fresh: make(chan opened)}
	for _, id := range ids {
		name, socket, _ := strings.Cut(id, "=")
		if socket == "" {
			socket = os.Getenv("SSH_AUTH_SOCK")
		}
		a.sockets[name] = socket
	}
	return a
}

// Run copies what agents answer to the builder until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			select {
			case o := <-a.fresh:
				group.Go(func() error { return a.copy(o) })
			case <-gctx.Done():
				a.closeAll()
				return nil
			}
		}
	})
	return group.Wait()
}

func (a *Agent) copy(o opened) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := o.conn.Read(buf)
		if n > 0 {
			data := append([]byte(nil), buf[:n]...)
			if serr := a.send(&gantryv1.SSHData{Id: o.id, Connection: o.connection, Data: data}); serr != nil {
				return nil // The build has ended; its other side says why.
			}
		}
		if err != nil {
			if a.drop(o.connection) {
				_ = a.send(&gantryv1.SSHData{Id: o.id, Connection: o.connection, Close: true})
			}
			return nil
		}
	}
}

// Receive passes data of the builder to the agent, opening the connection at its first data.
func (a *Agent) Receive(ctx context.Context, d *gantryv1.SSHData) error {
	a.mu.Lock()
	conn := a.conns[d.GetConnection()]
	a.mu.Unlock()
	if d.GetClose() {
		a.drop(d.GetConnection())
		return nil
	}
	if conn == nil {
		var err error
		if conn, err = a.open(ctx, d); err != nil {
			return err
		}
	}
	if _, err := conn.Write(d.GetData()); err != nil && a.drop(d.GetConnection()) {
		return a.send(&gantryv1.SSHData{Id: d.GetId(), Connection: d.GetConnection(), Close: true})
	}
	return nil
}

func (a *Agent) open(ctx context.Context, d *gantryv1.SSHData) (net.Conn, error) {
	socket := a.sockets[d.GetId()]
	if socket == "" {
		return nil, fault.New(fault.NotFound, "the build asks for SSH agent %q, and there is none", d.GetId()).
			WithHint("start one (eval $(ssh-agent); ssh-add) and give it with --ssh %s", d.GetId())
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the SSH agent for the build cannot be reached").
			WithHint("check SSH_AUTH_SOCK with: ssh-add -l")
	}
	a.mu.Lock()
	a.conns[d.GetConnection()] = conn
	a.mu.Unlock()
	select {
	case a.fresh <- opened{d.GetId(), d.GetConnection(), conn}:
	case <-ctx.Done():
		a.drop(d.GetConnection())
		return nil, ctx.Err()
	}
	return conn, nil
}

// drop closes a connection; false if it was closed before.
func (a *Agent) drop(connection int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn, ok := a.conns[connection]
	if ok {
		delete(a.conns, connection)
		_ = conn.Close()
	}
	return ok
}

func (a *Agent) closeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, conn := range a.conns {
		_ = conn.Close()
		delete(a.conns, id)
	}
}
