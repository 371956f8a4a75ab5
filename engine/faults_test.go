package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

func TestStop(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	for _, c := range []struct {
		name, script, signal string
		grace                time.Duration
		exit                 int32
	}{
		{"obeys", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done", "", time.Minute, 3},
		{"obeys its own signal", "trap 'exit 4' USR2; trap '' TERM; echo up; while :; do sleep 0.01; done", "SIGUSR2", time.Minute, 4},
		{"ignores SIGTERM", "trap '' TERM; echo up; while :; do sleep 0.01; done", "", 100 * time.Millisecond, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := enginetest.Spec(image, c.script)
			spec.StopSignal = c.signal
			id := enginetest.Run(t, e, strings.ReplaceAll(c.name, " ", "-"), spec)
			awaitLine(t, e, id, "up\n")
			if err := e.Stop(t.Context(), id, c.grace); err != nil {
				t.Fatal(err)
			}
			s := enginetest.AwaitExit(t, e, id)
			if s.ExitCode != c.exit {
				t.Errorf("exit code %d, want %d", s.ExitCode, c.exit)
			}
			if killed := s.KilledAfter == c.grace; killed != (c.exit == 137) || !killed && s.KilledAfter != 0 {
				t.Errorf("killed after %s, exit code %d", s.KilledAfter, s.ExitCode)
			}
			if err := e.Stop(t.Context(), id, c.grace); err != nil {
				t.Errorf("stopped twice: %v", err)
			}
		})
	}
}

// awaitLine waits until a container has written a line.
func awaitLine(t *testing.T, e *engine.Engine, id, line string) {
	t.Helper()
	found := fault.New(fault.Canceled, "found")
	err := e.Logs(t.Context(), id, engine.LogOptions{Follow: true, Tail: -1}, func(entry *gantryv1.LogEntry) error {
		if string(entry.Line) == line {
			return found
		}
		return nil
	})
	if err != found { //nolint:errorlint // it is the very error
		t.Fatalf("line %q of %s: %v", line, id, err)
	}
}

func TestForkBombStaysInItsContainer(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	spec := enginetest.Spec(image, `echo up; b() { b | b & }; (while :; do b; sleep 0.05; done) & exec sleep 1000`)
	spec.Resources = &gantryv1.Resources{Pids: 20}
	events := e.Events(t.Context())
	id := enginetest.Run(t, e, "bomb", spec)
	for ev := range events {
		if ev.Kind == engine.EventPids && ev.ID == id {
			break
		}
	}
	if s, err := e.State(t.Context(), id); err != nil || s.Status != engine.StatusRunning || s.PidsReached != 20 {
		t.Errorf("%v, state %+v", err, s)
	}
	// Others start meanwhile. The bomb is not the first process: a shell ends when it cannot fork.
	calm := enginetest.Spec(image, "exit 0")
	calm.Resources = spec.Resources
	other := enginetest.Run(t, e, "other", calm)
	if s := enginetest.AwaitExit(t, e, other); s.PidsReached != 0 {
		t.Errorf("the neighbour is said to have reached its limit: %+v", s)
	}
	if s, err := e.Stats(t.Context(), id); err != nil || s.Pids > 20 {
		t.Errorf("%v, %d processes", err, s.GetPids())
	}
	if err := e.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if s := enginetest.AwaitExit(t, e, id); s.PidsReached != 20 {
		t.Errorf("after its end: %+v", s)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func TestOutOfMemory(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	spec := enginetest.Spec(image, `x=a; while :; do x="$x$x"; done`)
	spec.Resources = &gantryv1.Resources{Memory: 16 << 20, MemorySwap: 16 << 20}
	id := enginetest.Run(t, e, "greedy", spec)
	if s := enginetest.AwaitExit(t, e, id); !s.OOMKilled || s.ExitCode != 137 {
		t.Errorf("state %+v", s)
	}
	// A kill by hand is not one for lack of memory.
	calm := enginetest.Spec(image, "sleep 1000")
	calm.Resources = spec.Resources
	id = enginetest.Run(t, e, "calm", calm)
	if err := e.Signal(t.Context(), id, "KILL"); err != nil {
		t.Fatal(err)
	}
	if s := enginetest.AwaitExit(t, e, id); s.OOMKilled || s.ExitCode != 137 {
		t.Errorf("state %+v", s)
	}
}

func TestWhatCannotStartSaysWhy(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	for _, c := range []struct {
		name   string
		change func(*engine.CreateRequest)
		kind   fault.Kind
		says   string
	}{
		{"missing program", func(r *engine.CreateRequest) { r.Spec.Command.Values = []string{"no-such"} }, fault.Invalid, "no-such"},
		{"not executable", func(r *engine.CreateRequest) { r.Spec.Command.Values = []string{"/etc/passwd"} }, fault.Invalid, "/etc/passwd"},
		{"missing user", func(r *engine.CreateRequest) { r.Spec.User = "ghost" }, fault.Invalid, "ghost"},
		{"missing group", func(r *engine.CreateRequest) { r.Spec.GroupAdd = []string{"phantoms"} }, fault.Invalid, "phantoms"},
		{"missing image", func(r *engine.CreateRequest) { r.Spec.Image = "nowhere/nothing" }, fault.NotFound, "nowhere/nothing"},
		{"no image by digest", func(r *engine.CreateRequest) {
			r.Spec.ImageDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
		}, fault.NotFound, "sha256:0000"},
		{"missing volume", func(r *engine.CreateRequest) {
			r.Mounts = []engine.Mount{{Type: "bind", Source: "/no/such/dir", Target: "/m"}}
		}, fault.NotFound, "/no/such/dir"},
		{"missing device", func(r *engine.CreateRequest) { r.Spec.Devices = []*gantryv1.Device{{Source: "/dev/none"}} }, fault.NotFound, "/dev/none"},
		{"unknown capability", func(r *engine.CreateRequest) { r.Spec.CapAdd = []string{"FLY"} }, fault.Invalid, "FLY"},
		{"unknown signal", func(r *engine.CreateRequest) { r.Spec.StopSignal = "SIGNOPE" }, fault.Invalid, "SIGNOPE"},
		{"unknown ulimit", func(r *engine.CreateRequest) { r.Spec.Ulimits = []*gantryv1.Ulimit{{Name: "magic"}} }, fault.Invalid, "magic"},
		{"unknown driver", func(r *engine.CreateRequest) { r.Spec.Logging = &gantryv1.Logging{Driver: "gelf"} }, fault.Unsupported, "gelf"},
		{"bad ID", func(r *engine.CreateRequest) { r.ID = "../x" }, fault.Invalid, "../x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, "true")}
			c.change(&r)
			err := e.Create(t.Context(), r)
			if err == nil {
				_, err = e.Start(t.Context(), r.ID)
			}
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s error %v", fault.KindOf(err), err)
			}
			if c.kind != fault.Invalid && fault.HintOf(err) == "" && c.name != "unknown signal" {
				t.Errorf("no hint with %v", err)
			}
			if err := e.Remove(t.Context(), r.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCreateLeavesNothingBehind(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	image := enginetest.BusyboxImage(t, e)
	spec := enginetest.Spec(image, "true")
	spec.User = "ghost" // found out after the snapshot is made
	if err := e.Create(t.Context(), engine.CreateRequest{ID: "c", Spec: spec}); err == nil {
		t.Fatal("no error")
	}
	spec = enginetest.Spec(image, "true")
	spec.Command.Values = []string{"no-such"}
	if err := e.Create(t.Context(), engine.CreateRequest{ID: "d", Spec: spec, Files: []engine.File{{Target: "/run/s", Content: []byte("x")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), "d"); err == nil {
		t.Fatal("no error")
	}
	if err := e.Remove(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	assertOnly(t, e, o, "")
}

func TestACgroupThatCannotBeMade(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	id := "c"
	if err := e.Create(t.Context(), engine.CreateRequest{ID: id, Spec: enginetest.Spec(enginetest.BusyboxImage(t, e), "true")}); err != nil {
		t.Fatal(err)
	}
	undo := forbidCgroups(t, o)
	_, err := e.Start(t.Context(), id)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "control group") || fault.HintOf(err) == "" {
		t.Errorf("error %v", err)
	}
	undo()
	if _, err := e.Start(t.Context(), id); err != nil {
		t.Errorf("start once it can be made: %v", err)
	}
}

// forbidCgroups makes the parent of containers' groups something that no group can be made in.
func forbidCgroups(t *testing.T, o engine.Options) (undo func()) {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", o.CgroupParent)
	value := "0"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		// Version 1 has no such limit: the cpuset of the parent is emptied, so that nothing below can be used.
		t.Skip("version 1 of control groups cannot refuse a group")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	limit := filepath.Join(dir, "cgroup.max.descendants")
	if err := os.WriteFile(limit, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
	return func() { _ = os.WriteFile(limit, []byte("max"), 0o644) }
}
