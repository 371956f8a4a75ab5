package engine_test

import (
	"testing"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

func TestRunsAContainerOnceAndAgain(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	events := e.Events(t.Context())
	id := enginetest.Run(t, e, "one", enginetest.Spec(image, "echo run >>/count; cat /count; echo oops >&2; exit 7"))
	s := enginetest.AwaitExit(t, e, id)
	if s.ExitCode != 7 || s.Runs != 1 || s.StartedAt.IsZero() || s.FinishedAt.Before(s.StartedAt) {
		t.Errorf("state after the first run: %+v", s)
	}
	for _, want := range []engine.EventKind{engine.EventStart, engine.EventExit} {
		if ev := <-events; ev.Kind != want || ev.ID != id {
			t.Errorf("event %+v, want %s", ev, want)
		}
	}
	if stdout, stderr := enginetest.Logs(t, e, id); stdout != "run\n" || stderr != "oops\n" {
		t.Errorf("logs %q, %q", stdout, stderr)
	}
	if _, err := e.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	enginetest.AwaitExit(t, e, id)
	// The writable layer and the log of the first run are still there.
	if stdout, _ := enginetest.Logs(t, e, id); stdout != "run\nrun\nrun\n" {
		t.Errorf("logs of both runs: %q", stdout)
	}
}
