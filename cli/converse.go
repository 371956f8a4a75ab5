package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/fault"
)

// conversation is a process on the other side whose streams are this program's own.
type conversation struct {
	s      *session
	stream *connect.BidiStreamForClient[gantryv1.ExecInput, gantryv1.ExecOutput]
	mu     sync.Mutex
	tty    bool
	stdin  bool
	// Pass signals on instead of ending.
	signals bool
	// Tells why the process cannot run, if the stream does not; nil for nothing to look at.
	probe func(context.Context) error
	// Bytes that leave the process alone again.
	detach []byte
}

var errDetached = errors.New("detached")

var errNoExitCode = fault.New(fault.Unavailable, "the connection ended before the process did").WithHint("gantry ps -a")

// converse connects the streams until the process ends and returns its exit code. The context must not end by the
// signals that are passed on.
func (c *conversation) converse(ctx context.Context, start *gantryv1.ExecStart) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start.Tty, start.Stdin = c.tty, c.stdin
	if c.tty && terminal.Is(c.s.out) {
		columns, rows := terminal.Size(c.s.out)
		start.Columns, start.Rows = uint32(columns), uint32(rows)
	}
	if c.tty && c.stdin && terminal.Is(c.s.in) {
		restore, err := terminal.Raw(c.s.in)
		if err != nil {
			return 0, fault.Wrap(fault.Internal, err, "the terminal cannot be switched to raw input")
		}
		defer restore()
	}
	// Listening comes before the process can exist, passing on after: no signal is lost, and start is the first message.
	signals := c.listen()
	defer signal.Stop(signals)
	if err := c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	defer c.watchSignals(ctx, cancel, signals)()
	if c.probe != nil {
		go func() {
			if err := c.probe(ctx); err != nil {
				c.leave(cancel, err)
			}
		}()
	}
	if c.stdin {
		// A read of the terminal cannot be taken back, so nobody waits for this one; it ends with the program.
		go c.copyIn(cancel)
	}
	code, err = c.receive()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	return code, err
}

// leave ends the conversation from this side.
func (c *conversation) leave(cancel context.CancelCauseFunc, why error) {
	cancel(why)
	_ = c.stream.CloseResponse()
}

func (c *conversation) send(in *gantryv1.ExecInput) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream.Send(in)
}

// receive writes what comes until the exit code has come and the stream has ended.
func (c *conversation) receive() (code int, err error) {
	ended := false
	for {
		out, err := c.stream.Receive()
		if errors.Is(err, io.EOF) {
			if !ended {
				return 0, errNoExitCode
			}
			return code, nil
		}
		if err != nil {
			return 0, err
		}
		switch o := out.GetOutput().(type) {
		case *gantryv1.ExecOutput_Stdout:
			_, err = c.s.out.Write(o.Stdout)
		case *gantryv1.ExecOutput_Stderr:
			_, err = c.s.err.Write(o.Stderr)
		case *gantryv1.ExecOutput_ExitCode:
			code, ended = int(o.ExitCode), true
		}
		if err != nil {
			return 0, fault.Wrap(fault.Unavailable, err, "the output cannot be written")
		}
	}
}

// copyIn sends standard input, up to the keys that detach.
func (c *conversation) copyIn(cancel context.CancelCauseFunc) {
	buf := make([]byte, 32<<10)
	keys := detacher{keys: c.detach}
	for {
		n, err := c.s.in.Read(buf)
		data, detached := keys.pass(buf[:n])
		if len(data) > 0 {
			if serr := c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Stdin{Stdin: bytes.Clone(data)}}); serr != nil {
				return
			}
		}
		if detached {
			c.leave(cancel, errDetached)
			return
		}
		if err != nil {
			_ = c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_CloseStdin{CloseStdin: true}})
			return
		}
	}
}

func (c *conversation) listen() chan os.Signal {
	signals := make(chan os.Signal, 16)
	if c.tty {
		signal.Notify(signals, resized())
	}
	if c.signals {
		signal.Notify(signals, forwarded()...)
	}
	return signals
}

// watchSignals passes signals and sizes on until the returned function is called.
func (c *conversation) watchSignals(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for ends := 0; ; {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case sig := <-signals:
				if sig == os.Interrupt || sig == syscall.SIGTERM {
					ends++
				}
				// Somebody who asks three times means the client.
				if ends == 3 {
					c.leave(cancel, context.Canceled)
					return
				}
				c.forward(sig)
			}
		}
	})
	return func() {
		close(done)
		wait.Wait()
	}
}

func (c *conversation) forward(sig os.Signal) {
	if sig == resized() && c.tty {
		columns, rows := terminal.Size(c.s.out)
		_ = c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Resize_{
			Resize: &gantryv1.ExecInput_Resize{Rows: uint32(rows), Columns: uint32(columns)},
		}})
		return
	}
	_ = c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Signal{Signal: signalName(sig)}})
}

// detacher looks for a sequence of keys that may be cut over several reads.
type detacher struct {
	keys []byte
	seen int
}

// pass returns what is to be sent of p, and whether the sequence is complete.
func (d *detacher) pass(p []byte) (data []byte, detached bool) {
	if len(d.keys) == 0 {
		return p, false
	}
	for _, b := range p {
		if b != d.keys[d.seen] {
			// What looked like the beginning was input after all.
			data = append(data, d.keys[:d.seen]...)
			d.seen = 0
		}
		if b != d.keys[d.seen] {
			data = append(data, b)
			continue
		}
		if d.seen++; d.seen == len(d.keys) {
			return data, true
		}
	}
	return data, false
}

// detachKeys reads Docker's form: "ctrl-p,ctrl-q", letters, "" for none.
func detachKeys(text string) ([]byte, error) {
	var out []byte
	for _, key := range splitList(text, ",") {
		if ctrl, ok := strings.CutPrefix(key, "ctrl-"); ok && len(ctrl) == 1 {
			c := strings.ToLower(ctrl)[0]
			if n := strings.IndexByte("@abcdefghijklmnopqrstuvwxyz[\\]^_", c); n >= 0 {
				out = append(out, byte(n))
				continue
			}
		}
		if len(key) != 1 {
			return nil, fault.New(fault.Invalid, "detach keys %s are none", strconv.Quote(text)).WithHint("write them like ctrl-p,ctrl-q")
		}
		out = append(out, key[0])
	}
	return out, nil
}
