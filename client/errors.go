package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"syscall"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

// faults is the interceptor that turns every error of a call into a fault.
type faults struct {
	host, network, address string
}

// WrapUnary implements connect.Interceptor.
func (f *faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, f.decode(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (f *faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &conn{StreamingClientConn: next(ctx, spec), faults: f}
	}
}

// WrapStreamingHandler implements connect.Interceptor; a client has no handlers.
func (f *faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type conn struct {
	connect.StreamingClientConn
	faults *faults
}

func (c *conn) Send(msg any) error    { return c.faults.stream(c.StreamingClientConn.Send(msg)) }
func (c *conn) Receive(msg any) error { return c.faults.stream(c.StreamingClientConn.Receive(msg)) }

// stream is decode for streams: their end is an answer, not a failure, and callers compare it.
func (f *faults) stream(err error) error {
	if errors.Is(err, io.EOF) && !isDial(err) {
		return err
	}
	return f.decode(err)
}

// decode explains a failed connection in words of this machine and leaves the rest to the wire form.
func (f *faults) decode(err error) error {
	if err == nil {
		return nil
	}
	if isDial(err) {
		return f.unreachable(err)
	}
	decoded := wire.Decode(err)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fault.Wrap(fault.Unavailable, decoded, "the connection to the daemon at %s was cut", f.host).
			WithHint("see what it says: journalctl -u gantryd")
	}
	return decoded
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func (f *faults) unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "no permission to use the daemon's socket %s", f.address).
			WithHint("use sudo, or join the group: sudo usermod -aG gantry $USER, then log in again")
	case f.network == "unix" && errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.Unavailable, "the daemon is not running: there is no socket %s", f.address).
			WithHint("sudo gantry init, or systemctl start gantryd where it is installed")
	case f.network == "unix" && errors.Is(err, syscall.ECONNREFUSED):
		return fault.New(fault.Unavailable, "the daemon is not running: nobody listens on %s", f.address).
			WithHint("systemctl start gantryd, or sudo gantry init")
	case errors.Is(err, context.Canceled):
		return fault.New(fault.Canceled, "connecting to %s was given up", f.host)
	}
	op, _ := errors.AsType[*net.OpError](err)
	return fault.Wrap(fault.Unavailable, op.Err, "the daemon at %s cannot be reached", f.host).
		WithHint("check --host and GANTRY_HOST, and that gantryd listens there")
}
