package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

// echo answers execs with what they send, and every inspect with a fault.
type echo struct {
	gantryv1connect.UnimplementedInstanceServiceHandler
}

func (echo) Inspect(context.Context, *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceView], error) {
	return nil, wire.Encode(fault.New(fault.Conflict, "no luck").WithHint("gantry try → again"))
}

func (echo) Exec(_ context.Context, s *connect.BidiStream[gantryv1.ExecInput, gantryv1.ExecOutput]) error {
	for {
		in, err := s.Receive()
		if err != nil {
			return wire.Encode(fault.New(fault.Exhausted, "no more").WithHint("buy some"))
		}
		if err := s.Send(&gantryv1.ExecOutput{Output: &gantryv1.ExecOutput_Stdout{Stdout: in.GetStdin()}}); err != nil {
			return err
		}
	}
}

func serve(t *testing.T, network, address string) net.Addr {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewInstanceServiceHandler(echo{}))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return ln.Addr()
}

func newClient(t *testing.T, host string) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestErrorsComeBackAsFaults(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	serve(t, "unix", sock)
	c := newClient(t, "unix://"+sock)
	_, err := c.Instances.Inspect(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{}))
	if !fault.Is(err, fault.Conflict) || err.Error() != "no luck" || fault.HintOf(err) != "gantry try → again" {
		t.Fatalf("got %q %q hint %q", fault.KindOf(err), err, fault.HintOf(err))
	}
	_, err = c.Instances.Top(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{}))
	if !fault.Is(err, fault.Unsupported) {
		t.Fatalf("a method that is not there gives %q %v", fault.KindOf(err), err)
	}
}

func TestBothDirectionsOfAStreamAreOpenAtOnce(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	serve(t, "unix", sock)
	tcp := serve(t, "tcp", "127.0.0.1:0")
	for _, host := range []string{"unix://" + sock, "tcp://" + tcp.String()} {
		s := newClient(t, host).Instances.Exec(t.Context())
		for _, word := range []string{"one", "two"} {
			if err := s.Send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Stdin{Stdin: []byte(word)}}); err != nil {
				t.Fatal(err)
			}
			out, err := s.Receive()
			if err != nil || string(out.GetStdout()) != word {
				t.Fatalf("%s: got %v, %v", host, out, err)
			}
		}
		if err := s.CloseRequest(); err != nil {
			t.Fatal(err)
		}
		_, err := s.Receive()
		if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) != "buy some" {
			t.Fatalf("the stream ended with %q %v hint %q", fault.KindOf(err), err, fault.HintOf(err))
		}
	}
}

func TestUnreachableDaemonSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	ln, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	for host, want := range map[string]string{
		"unix://" + dir + "/none": "sudo gantry init",
		"unix://" + dead:          "systemctl start gantryd",
		"tcp://127.0.0.1:1":       "GANTRY_HOST",
	} {
		c := newClient(t, host)
		_, unary := c.Instances.Inspect(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{}))
		bidi := c.Instances.Exec(t.Context())
		_ = bidi.Send(nil)
		_, stream := bidi.Receive()
		for _, err := range []error{unary, stream} {
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.HintOf(err), want) {
				t.Errorf("%s: %q %v hint %q", host, fault.KindOf(err), err, fault.HintOf(err))
			}
		}
	}
}

func TestCanceledCallIsCanceled(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	serve(t, "unix", sock)
	ctx, cancel := context.WithCancel(t.Context())
	s := newClient(t, "unix://"+sock).Instances.Exec(ctx)
	if err := s.Send(nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Receive(); !fault.Is(err, fault.Canceled) || errors.Is(err, io.EOF) {
		t.Fatalf("got %q %v", fault.KindOf(err), err)
	}
}

func TestHosts(t *testing.T) {
	for _, bad := range []string{"unix://rel/ative", "tcp://host", "tcp://host:1/x", "http://x:1", "nonsense", "unix:", "tcp://[::1"} {
		if _, err := client.New(client.Options{Host: bad}); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	c, err := client.New(client.Options{})
	if err != nil || c.Host() != client.DefaultHost {
		t.Errorf("default host: %v, %v", c, err)
	}
	if os.Getuid() != 0 {
		sock := filepath.Join(t.TempDir(), "s")
		serve(t, "unix", sock)
		if err := os.Chmod(sock, 0); err != nil {
			t.Fatal(err)
		}
		_, err := newClient(t, "unix://"+sock).Instances.Inspect(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{}))
		if !fault.Is(err, fault.Denied) || !strings.Contains(fault.HintOf(err), "gantry") {
			t.Errorf("locked socket: %v", err)
		}
	}
}
