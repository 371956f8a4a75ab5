package engine_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

// A shim that is stopped holds nobody up for ever, and says so; when it goes on, so does its container.
func TestAStoppedShimIsNamed(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	image := enginetest.BusyboxImage(t, e)
	id := enginetest.Run(t, e, "still", enginetest.Spec(image, "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"))
	awaitLine(t, e, id, "up\n")
	shim := parentOf(t, e, id)
	if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(shim, syscall.SIGCONT) }()
	var wg sync.WaitGroup
	for what, call := range map[string]func(context.Context) error{
		"signal": func(ctx context.Context) error { return e.Signal(ctx, id, "SIGCHLD") },
		"exec": func(ctx context.Context) error {
			_, err := e.Exec(ctx, id, engine.ExecRequest{Command: []string{"true"}}, engine.IO{})
			return err
		},
		"pause": func(ctx context.Context) error { return e.Pause(ctx, id) },
	} {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			err := call(ctx)
			if !fault.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "its shim did not") || fault.HintOf(err) == "" {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	wg.Wait()
	if err := syscall.Kill(shim, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// What was asked for happens late: the pause is seen, and undone by the stop.
	awaitPaused(t, e, id)
	if err := e.Stop(t.Context(), id, time.Minute); err != nil {
		t.Fatal(err)
	}
	if s := enginetest.AwaitExit(t, e, id); s.ExitCode != 7 {
		t.Errorf("exit code %d after the shim went on", s.ExitCode)
	}
}

func awaitPaused(t *testing.T, e *engine.Engine, id string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(enginetest.Wait); ; {
		if s, err := e.State(t.Context(), id); err != nil || s.Status == engine.StatusPaused {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("the pause was lost")
		}
	}
}

// parentOf is the process that a container's first process is a child of: its shim.
func parentOf(t *testing.T, e *engine.Engine, id string) int {
	t.Helper()
	s, err := e.State(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	stat := readFile(t, "/proc/"+strconv.Itoa(int(s.Pid))+"/stat")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	parent, err := strconv.Atoi(fields[1])
	if err != nil || parent <= 1 {
		t.Fatalf("parent in %q: %v", stat, err)
	}
	return parent
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
