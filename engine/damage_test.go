package engine_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

// TestDamagedConfiguration flips a bit of a container's configuration: what the container has written stays until somebody
// removes it, one that runs goes on, and none starts as something else than it was.
func TestDamagedConfiguration(t *testing.T) {
	o := prepareCrash(t, map[string]string{"stays": "exec sleep 1000", "runs": "exec sleep 1000"})
	path := func(id string) string { return filepath.Join(o.Root, "containers", id, "container.json") }
	whole := map[string][]byte{}
	e := enginetest.OpenAt(t, o)
	if _, err := e.Start(t.Context(), "runs"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(upper(t, e, "stays"), "marker"), []byte("here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"stays", "runs"} {
		whole[id] = flip(t, path(id))
	}

	e = enginetest.OpenAt(t, o)
	if got := status(t, e, "runs"); got != engine.StatusRunning {
		t.Errorf("the one that runs is %s", got)
	}
	_, err := e.Start(t.Context(), "stays")
	if !fault.Is(err, fault.Corrupt) || !strings.Contains(fault.HintOf(err), path("stays")) {
		t.Errorf("started: %v, hint %q", err, fault.HintOf(err))
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(path("stays"), whole["stays"], 0o600); err != nil {
		t.Fatal(err)
	}
	e = enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	if _, err := e.Start(t.Context(), "stays"); err != nil {
		t.Errorf("mended, it does not start: %v", err)
	}
	if out, _ := exec(t, e, "stays", "cat /marker"); out != "here\n" {
		t.Errorf("what it had written is %q", out)
	}
	if err := e.Remove(t.Context(), "runs"); err != nil {
		t.Errorf("the damaged one cannot be removed: %v", err)
	}
	if got := status(t, e, "runs"); got != "" {
		t.Errorf("removed, it is %s", got)
	}
}

// upper is the folder of what a container has written.
func upper(t *testing.T, e *engine.Engine, id string) string {
	t.Helper()
	mounts, err := e.Client().SnapshotService("overlayfs").Mounts(e.Context(t.Context()), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range mounts[0].Options {
		if dir, is := strings.CutPrefix(option, "upperdir="); is {
			return dir
		}
	}
	t.Fatalf("no folder is in %v", mounts)
	return ""
}

// flip changes a bit in the middle of a file as a disk does, and returns what was there.
func flip(t *testing.T, path string) []byte {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	return whole
}

func status(t *testing.T, e *engine.Engine, id string) engine.Status {
	t.Helper()
	list, err := e.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.ID == id {
			return s.Status
		}
	}
	return ""
}
