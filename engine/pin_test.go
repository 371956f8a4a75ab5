package engine_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

// swap replaces a directory by a link.
func swap(t *testing.T, dir, target string) {
	t.Helper()
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, dir); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestASwappedSubpathStaysInItsVolume has another container of the volume put a link in a subpath's place, between two
// starts, which is as long as a race can last.
func TestASwappedSubpathStaysInItsVolume(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	outside, volume := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "f"), "the machine's\n")
	writeFile(t, filepath.Join(volume, "a", "b", "f"), "the volume's\n")
	for _, mode := range []string{"", "host"} {
		r := engine.CreateRequest{ID: "c" + mode, Spec: enginetest.Spec(image, "cat /m/f"), Mounts: []engine.Mount{
			{Type: engine.MountVolume, Source: volume, Subpath: "a/b", Target: "/m"},
		}}
		r.Spec.UsernsMode = mode
		start(t, e, r)
		enginetest.AwaitExit(t, e, r.ID)
		if stdout, stderr := enginetest.Logs(t, e, r.ID); stdout != "the volume's\n" {
			t.Errorf("%q: %q, %q", mode, stdout, stderr)
		}
		dir := filepath.Join(volume, "a", "b")
		swap(t, dir, outside)
		if _, err := e.Start(t.Context(), r.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("%q: a link out of the volume: %v", mode, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+".old", dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABindThatBecomesALinkIsRefused(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	source := filepath.Join(t.TempDir(), "source")
	writeFile(t, filepath.Join(source, "f"), "plain\n")
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "a file\n")
	r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(enginetest.BusyboxImage(t, e), "cat /m/f /file; echo new >/m/new"), Mounts: []engine.Mount{
		{Type: engine.MountBind, Source: source, Target: "/m"}, {Type: engine.MountBind, Source: file, Target: "/file", ReadOnly: true},
	}}
	start(t, e, r)
	enginetest.AwaitExit(t, e, "c")
	if stdout, stderr := enginetest.Logs(t, e, "c"); stdout != "plain\na file\n" || stderr != "" {
		t.Errorf("%q, %q", stdout, stderr)
	}
	if b, err := os.ReadFile(filepath.Join(source, "new")); err != nil || string(b) != "new\n" {
		t.Errorf("%q, %v", b, err)
	}
	slave := engine.CreateRequest{ID: "slave", Spec: enginetest.Spec(enginetest.BusyboxName, "cat /m/f"), Mounts: []engine.Mount{
		{Type: engine.MountBind, Source: source, Target: "/m", Propagation: "rslave"},
	}}
	if out := output(t, e, slave); out != "plain\n" {
		t.Errorf("rslave: %q", out)
	}
	if err := e.Create(t.Context(), slave); err != nil {
		t.Fatal(err)
	}
	swap(t, source, "/")
	if _, err := e.Start(t.Context(), "slave"); !fault.Is(err, fault.Denied) {
		t.Errorf("a link to the machine, rslave: %v", err)
	}
	if err := e.Remove(t.Context(), "slave"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), "c"); !fault.Is(err, fault.Denied) {
		t.Errorf("a link to the machine: %v", err)
	}
	assertOnly(t, e, o, "c")
}
