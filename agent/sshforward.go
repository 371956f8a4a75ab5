package agent

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/build"
)

type buildStream = connect.BidiStream[gantryv1.BuildInput, gantryv1.BuildEvent]

// sshForward carries connections of a build to the caller's SSH agent over the build's own stream.
type sshForward struct {
	stream  *buildStream
	sending sync.Mutex

	mu    sync.Mutex
	last  int64
	conns map[int64]net.Conn // our end of each connection
	ended bool
}

func newSSHForward(stream *buildStream) *sshForward {
	return &sshForward{stream: stream, conns: map[int64]net.Conn{}}
}

// send lets the build's events and forwarded bytes share the stream.
func (f *sshForward) send(e *gantryv1.BuildEvent) error {
	f.sending.Lock()
	defer f.sending.Unlock()
	return f.stream.Send(e)
}

// dialers is one way to each agent that the build may use.
func (f *sshForward) dialers(ids []string) map[string]build.Dial {
	out := map[string]build.Dial{}
	for _, id := range ids {
		id, _, _ = strings.Cut(id, "=")
		out[id] = func(context.Context) (io.ReadWriteCloser, error) { return f.dial(id) }
	}
	return out
}

func (f *sshForward) dial(id string) (net.Conn, error) {
	theirs, ours := net.Pipe()
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return nil, io.ErrClosedPipe
	}
	f.last++
	n := f.last
	f.conns[n] = ours
	f.mu.Unlock()
	go f.copyOut(id, n, ours)
	return theirs, nil
}

// copyOut sends what the build writes until it closes the connection.
func (f *sshForward) copyOut(id string, n int64, c net.Conn) {
	err := chunks(c, func(b []byte) error {
		return f.send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Ssh{
			Ssh: &gantryv1.SSHData{Id: id, Connection: n, Data: append([]byte(nil), b...)},
		}})
	})
	if err == nil && f.drop(n) {
		_ = f.send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Ssh{Ssh: &gantryv1.SSHData{Id: id, Connection: n, Close: true}}})
	}
}

// receive hands the agent's answers to their connections until the caller's side of the stream ends.
func (f *sshForward) receive() {
	defer f.closeAll()
	for {
		in, err := f.stream.Receive()
		if err != nil {
			return
		}
		d := in.GetSsh()
		f.mu.Lock()
		c := f.conns[d.GetConnection()]
		f.mu.Unlock()
		switch {
		case c == nil:
		case d.GetClose():
			f.drop(d.GetConnection())
		default:
			_, _ = c.Write(d.GetData()) // fails when the build has closed it, which copyOut sees
		}
	}
}

// drop closes a connection; false if it was closed before.
func (f *sshForward) drop(n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.conns[n]
	if ok {
		delete(f.conns, n)
		_ = c.Close()
	}
	return ok
}

func (f *sshForward) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for n, c := range f.conns {
		delete(f.conns, n)
		_ = c.Close()
	}
}
