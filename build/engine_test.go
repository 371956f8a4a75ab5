package build_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/build"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

// TestBuiltImageRunsInTheEngine builds with the daemon's own containerd and runc and starts the result as a container.
func TestBuiltImageRunsInTheEngine(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Fatal("no busybox on this machine: apt-get install busybox-static")
	}
	e := enginetest.Open(t)
	base := enginetest.BusyboxImage(t, e)
	dir := t.TempDir()
	b := open(t, e, dir)
	for _, words := range []string{"first", "second"} {
		text := "FROM " + base + "\nRUN echo " + words + " words > /words\nHEALTHCHECK CMD true\nCMD [\"cat\", \"/words\"]\n"
		image, err := b.Build(t.Context(), build.Request{
			Start: &gantryv1.BuildStart{Dockerfile: []byte(text), Tags: []string{"app"}, Offline: true},
		}, func(*gantryv1.BuildEvent) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		enginetest.Run(t, e, words, &gantryv1.ContainerSpec{Image: image.References[0]})
		exit := enginetest.AwaitExit(t, e, words)
		stdout, stderr := enginetest.Logs(t, e, words)
		if exit.ExitCode != 0 || stdout != words+" words\n" {
			t.Errorf("exit %d, stdout %q, stderr %q", exit.ExitCode, stdout, stderr)
		}
	}
}

func open(t *testing.T, e *engine.Engine, dir string) *build.Builder {
	t.Helper()
	parent := "gantry-test-build-" + filepath.Base(filepath.Dir(dir))
	b, err := build.New(t.Context(), build.Options{
		Root: filepath.Join(dir, "build"), Run: filepath.Join(dir, "run"), Client: e.Client(),
		Runc: filepath.Join(enginetest.Helpers(t), "runc"), CgroupParent: parent,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent); left != nil {
			t.Errorf("control groups left: %s", strings.Join(left, " "))
		}
	})
	return b
}
