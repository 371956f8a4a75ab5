package engine_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

// exec runs a script in a container and returns its output and exit code.
func exec(t *testing.T, e *engine.Engine, id, script string) (string, int32) {
	t.Helper()
	var out bytes.Buffer
	code, err := e.Exec(t.Context(), id, engine.ExecRequest{Command: []string{"sh", "-c", script}}, engine.IO{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	return out.String(), code
}

func TestExec(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	id := enginetest.Run(t, e, "c", enginetest.Spec(image, "exec sleep 1000"))

	t.Run("output, input and exit code", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		code, err := e.Exec(t.Context(), id, engine.ExecRequest{
			Command: []string{"sh", "-c", `read line; echo "got $line in $PWD as $(id -un) with $EXTRA"; echo bad >&2; exit 3`},
			Env:     []string{"EXTRA=more"}, WorkingDir: "/tmp", User: "app",
		}, engine.IO{Stdin: strings.NewReader("hello\n"), Stdout: &stdout, Stderr: &stderr})
		if err != nil || code != 3 || stdout.String() != "got hello in /tmp as app with more\n" || stderr.String() != "bad\n" {
			t.Errorf("%v, %d, %q, %q", err, code, &stdout, &stderr)
		}
	})
	t.Run("terminal with its size", func(t *testing.T) {
		var out bytes.Buffer
		size := make(chan engine.Size, 1)
		size <- engine.Size{Rows: 33, Columns: 111}
		in, input := io.Pipe()
		defer input.Close()
		script := `until [ "$(stty size)" = "33 111" ]; do sleep 0.01; done; tty; stty size`
		code, err := e.Exec(t.Context(), id, engine.ExecRequest{Command: []string{"sh", "-c", script}, Tty: true},
			engine.IO{Stdin: in, Stdout: &out, Resize: size})
		if err != nil || code != 0 || !strings.Contains(out.String(), "/dev/pts/") || !strings.Contains(out.String(), "33 111") {
			t.Errorf("%v, %d, %q", err, code, &out)
		}
	})
	t.Run("signal", func(t *testing.T) {
		signals := make(chan string, 1)
		out := &firstWrite{first: func() { signals <- "SIGUSR1" }}
		code, err := e.Exec(t.Context(), id, engine.ExecRequest{
			Command: []string{"sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"}, Signals: signals,
		}, engine.IO{Stdout: out})
		if err != nil || code != 9 {
			t.Errorf("%v, %d", err, code)
		}
	})
	t.Run("a hung one is killed with its children", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := e.Exec(ctx, id, engine.ExecRequest{Command: []string{"sh", "-c", "sleep 7777; echo"}}, engine.IO{})
		if !fault.Is(err, fault.Timeout) {
			t.Errorf("error %v", err)
		}
		if out, _ := exec(t, e, id, "ps"); strings.Contains(out, "sleep 7777") {
			t.Errorf("still there:\n%s", out)
		}
	})
	t.Run("clear errors", func(t *testing.T) {
		_, err := e.Exec(t.Context(), id, engine.ExecRequest{Command: []string{"no-such-program"}}, engine.IO{})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no-such-program") || fault.HintOf(err) == "" {
			t.Errorf("missing program: %v (%s)", err, fault.HintOf(err))
		}
		_, err = e.Exec(t.Context(), id, engine.ExecRequest{Command: []string{"id"}, User: "nobody-here"}, engine.IO{})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "nobody-here") {
			t.Errorf("missing user: %v", err)
		}
		_, err = e.Exec(t.Context(), "ghost", engine.ExecRequest{Command: []string{"id"}}, engine.IO{})
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("missing container: %v", err)
		}
	})
}

type firstWrite struct {
	first func()
	done  bool
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if !w.done {
		w.done = true
		w.first()
	}
	return len(p), nil
}

func TestAttach(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	for _, tty := range []bool{false, true} {
		id := map[bool]string{false: "pipe", true: "tty"}[tty]
		t.Run(id, func(t *testing.T) {
			spec := enginetest.Spec(image, `echo before; printf 'name? '; read n; echo "hi $n"; exit 4`)
			spec.StdinOpen, spec.Tty = true, tty
			if err := e.Create(t.Context(), engine.CreateRequest{ID: id, Spec: spec}); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			done := make(chan error, 1)
			// Attached before the start, as gantry run does; the prompt has no newline.
			prompt := &writeUntil{text: "name? ", seen: make(chan struct{}), to: &out}
			in, input := io.Pipe()
			go func() { done <- e.Attach(t.Context(), id, engine.IO{Stdin: in, Stdout: prompt}, true) }()
			if _, err := e.Start(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			<-prompt.seen
			if _, err := io.WriteString(input, "gantry\n"); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if text := out.String(); !strings.Contains(text, "before") || !strings.Contains(text, "hi gantry") {
				t.Errorf("output %q", text)
			}
			if s := enginetest.AwaitExit(t, e, id); s.ExitCode != 4 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			var again bytes.Buffer
			if err := e.Attach(t.Context(), id, engine.IO{Stdout: &again}, true); err != nil || again.String() != out.String() {
				t.Errorf("replay after the end: %v, %q, want %q", err, &again, &out)
			}
		})
	}
}

// writeUntil tells when a text has been written.
type writeUntil struct {
	text string
	seen chan struct{}
	to   *bytes.Buffer
}

func (w *writeUntil) Write(p []byte) (int, error) {
	before := strings.Contains(w.to.String(), w.text)
	w.to.Write(p)
	if !before && strings.Contains(w.to.String(), w.text) {
		close(w.seen)
	}
	return len(p), nil
}

func TestInputEndsWithTheCaller(t *testing.T) {
	e := enginetest.Open(t)
	spec := enginetest.Spec(enginetest.BusyboxImage(t, e), "wc -c")
	spec.StdinOpen = true
	if err := e.Create(t.Context(), engine.CreateRequest{ID: "c", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	input := strings.NewReader(strings.Repeat("x", 300_000))
	if err := e.Attach(t.Context(), "c", engine.IO{Stdin: input, Stdout: &out}, true); err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(out.String()) != "300000" {
		t.Errorf("output %q", &out)
	}
}

func TestStatsTopPause(t *testing.T) {
	e := enginetest.Open(t)
	spec := enginetest.Spec(enginetest.BusyboxImage(t, e), "echo up; while :; do :; done")
	spec.Resources = &gantryv1.Resources{Memory: 64 << 20, Pids: 50}
	id := enginetest.Run(t, e, "busy", spec)
	awaitLine(t, e, id, "up\n")
	s, err := e.Stats(t.Context(), id)
	for err == nil && s.CpuUsage == 0 {
		s, err = e.Stats(t.Context(), id)
	}
	if err != nil || s.Memory == 0 || s.MemoryLimit != 64<<20 || s.Pids != 1 {
		t.Errorf("%v, %+v", err, s)
	}
	top, err := e.Top(t.Context(), id)
	if err != nil || len(top.Processes) != 1 || !strings.Contains(strings.Join(top.Processes[0].Values, " "), "while") {
		t.Errorf("%v, %v", err, top)
	}
	if err := e.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := e.Pause(t.Context(), id); !fault.Is(err, fault.Conflict) {
		t.Errorf("paused twice: %v", err)
	}
	before, _ := e.Stats(t.Context(), id)
	after, _ := e.Stats(t.Context(), id)
	if before.CpuUsage != after.CpuUsage {
		t.Error("a paused container computes")
	}
	// A paused container can be stopped.
	if err := e.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
}
