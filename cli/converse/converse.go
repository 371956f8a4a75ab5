// Package converse connects this program's streams to a process on the other side: input, output, signals, the size of
// the terminal and the keys that leave the process alone.
//
// Fill in a Conversation and call Talk once. It owns the terminal until Talk returns.
package converse

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

// Conversation is a process on the other side whose streams are this program's own.
type Conversation struct {
	In, Out, Err *os.File
	Stream       *connect.BidiStreamForClient[gantryv1.ExecInput, gantryv1.ExecOutput]
	mu           sync.Mutex
	// Tty and Stdin as the process was made with.
	Tty, Stdin bool
	// Pass signals on instead of ending.
	Signals bool
	// Tells why the process cannot run, if the stream does not; nil for nothing to look at.
	Probe func(context.Context) error
	// Bytes that leave the process alone again.
	Detach []byte
}

// ErrDetached says that the keys were typed; the process goes on.
var ErrDetached = errors.New("detached")

// ErrNoExitCode says that the stream ended without telling how the process did.
var ErrNoExitCode = fault.New(fault.Unavailable, "the connection ended before the process did").WithHint("gantry ps -a")

// Talk connects the streams until the process ends and returns its exit code. The context must not end by the
// signals that are passed on.
func (c *Conversation) Talk(ctx context.Context, start *gantryv1.ExecStart) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start.Tty, start.Stdin = c.Tty, c.Stdin
	if c.Tty && terminal.Is(c.Out) {
		columns, rows := terminal.Size(c.Out)
		start.Columns, start.Rows = uint32(columns), uint32(rows)
	}
	if c.Tty && c.Stdin && terminal.Is(c.In) {
		restore, err := terminal.Raw(c.In)
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
	if c.Probe != nil {
		go func() {
			if err := c.Probe(ctx); err != nil {
				c.leave(cancel, err)
			}
		}()
	}
	if c.Stdin {
		// A read of the terminal cannot be taken back, so nobody waits for this one; it ends with the program.
		go c.copyIn(cancel)
	}
	code, err = c.receive()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	return code, err
}

// leave ends the Conversation from this side.
func (c *Conversation) leave(cancel context.CancelCauseFunc, why error) {
	cancel(why)
	_ = c.Stream.CloseResponse()
}

func (c *Conversation) send(in *gantryv1.ExecInput) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Stream.Send(in)
}

// receive writes what comes until the exit code has come and the stream has ended.
func (c *Conversation) receive() (code int, err error) {
	ended := false
	for {
		out, err := c.Stream.Receive()
		if errors.Is(err, io.EOF) {
			if !ended {
				return 0, ErrNoExitCode
			}
			return code, nil
		}
		if err != nil {
			return 0, err
		}
		switch o := out.GetOutput().(type) {
		case *gantryv1.ExecOutput_Stdout:
			_, err = c.Out.Write(o.Stdout)
		case *gantryv1.ExecOutput_Stderr:
			_, err = c.Err.Write(o.Stderr)
		case *gantryv1.ExecOutput_ExitCode:
			code, ended = int(o.ExitCode), true
		}
		if err != nil {
			return 0, fault.Wrap(fault.Unavailable, err, "the output cannot be written")
		}
	}
}

// copyIn sends standard input, up to the keys that detach.
func (c *Conversation) copyIn(cancel context.CancelCauseFunc) {
	buf := make([]byte, 32<<10)
	keys := detacher{keys: c.Detach}
	for {
		n, err := c.In.Read(buf)
		data, detached := keys.pass(buf[:n])
		if len(data) > 0 {
			if serr := c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Stdin{Stdin: bytes.Clone(data)}}); serr != nil {
				return
			}
		}
		if detached {
			c.leave(cancel, ErrDetached)
			return
		}
		if err != nil {
			_ = c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_CloseStdin{CloseStdin: true}})
			return
		}
	}
}

func (c *Conversation) listen() chan os.Signal {
	signals := make(chan os.Signal, 16)
	if c.Tty {
		signal.Notify(signals, resized())
	}
	if c.Signals {
		signal.Notify(signals, forwarded()...)
	}
	return signals
}

// watchSignals passes signals and sizes on until the returned function is called.
func (c *Conversation) watchSignals(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal) (stop func()) {
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

func (c *Conversation) forward(sig os.Signal) {
	if sig == resized() && c.Tty {
		columns, rows := terminal.Size(c.Out)
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

// DetachKeys reads Docker's form: "ctrl-p,ctrl-q", letters, "" for none.
func DetachKeys(text string) ([]byte, error) {
	var out []byte
	for _, key := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
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

// Start only waits until the process runs.
func (c *Conversation) Start(start *gantryv1.ExecStart) error {
	start.Tty = c.Tty
	_ = c.send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Start{Start: start}})
	_ = c.Stream.CloseRequest()
	_, err := c.receive()
	if errors.Is(err, ErrNoExitCode) {
		// A detached process is not waited for, so its exit code need not come.
		return nil
	}
	return err
}
