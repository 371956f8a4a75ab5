package build

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const (
	childArg = "build-until-killed"
	sleeping = "sleep 100123"
	stuck    = "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=secret,id=k echo started; " + sleeping + "\n"
)

func childRequests(dir, mode string) (all []Request) {
	switch mode {
	case "stuck":
		return []Request{childRequest(dir, stuck)}
	case "many":
		for n := range manyBuilds {
			all = append(all, childRequest(dir, bigDockerfile(n)))
		}
		return all
	}
	return []Request{childRequest(dir, bootDockerfile)}
}

func childRequest(dir, text string) Request {
	return Request{
		Start:    &gantryv1.BuildStart{Dockerfile: []byte(text), Tags: []string{"child"}, Offline: true, Secrets: map[string][]byte{"k": []byte("v")}},
		Contexts: map[string]string{"context": filepath.Join(dir, "busybox")},
	}
}

// child is a builder that dies: it builds below os.Args[2]. In mode "stuck" it says when the step runs, and waits to be
// killed; in mode "close" it closes the builder at the end, in mode "exit" it does not; in mode "many" it builds much and
// closes it.
func child() {
	dir, mode := os.Args[2], os.Args[3]
	r, err := openRig(dir, Options{})
	if err == nil {
		err = r.busybox()
	}
	for _, req := range childRequests(dir, mode) {
		if err != nil {
			break
		}
		_, err = r.Build(context.Background(), req, func(e *gantryv1.BuildEvent) error {
			if strings.Contains(string(e.GetLog().GetData()), "started") {
				fmt.Println("started")
			}
			return nil
		})
	}
	if err == nil && (mode == "close" || mode == "many") {
		err = r.Close()
	}
	fmt.Println("ended:", err)
}

// TestKilledBuilder kills a builder with SIGKILL within a step and looks at what its successor makes of the rest.
func TestKilledBuilder(t *testing.T) {
	requirements(t)
	dir := t.TempDir()
	tmp := filepath.Join(dir, "run", "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	kill(t, dir)
	if processes(t, sleeping) == 0 {
		t.Log("the step died with its builder; the rest of the test still holds")
	}
	r, err := openRig(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	if n := processes(t, sleeping); n != 0 {
		t.Errorf("%d processes of the killed build still run", n)
	}
	if left := mountsBelow(t, dir); left != nil {
		t.Errorf("mounts of the killed build: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "*buildkit*")); left != nil {
		t.Errorf("temporary files of the killed build: %v", left)
	}
	out := r.build(t, "FROM busybox\nRUN echo alive > /x\n", nil)
	equal(t, "built after the kill", r.file(t, out.image.References[0], "x"), "alive\n")
	if err := r.busybox(); err != nil {
		t.Errorf("rebuild from the cache: %v", err)
	}
}

func kill(t *testing.T, dir string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, childArg, dir, "stuck")
	cmd.Stderr = new(bytes.Buffer)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	if line != "started\n" {
		t.Fatalf("the child said %q\n%s", line, cmd.Stderr)
	}
}

// processes counts the machine's processes whose command line holds words.
func processes(t *testing.T, words string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if strings.Contains(string(bytes.ReplaceAll(data, []byte{0}, []byte{' '})), words) {
			n++
		}
	}
	return n
}

func mountsBelow(t *testing.T, dir string) (points []string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points
}

func TestBuildsLeaveNothingBehind(t *testing.T) {
	r := sharedRig(t)
	r.build(t, "FROM busybox\nRUN echo "+t.Name()+"\n", nil)
	r.try(t, "FROM busybox\nRUN false\n", nil)
	if left := mountsBelow(t, r.dir); left != nil {
		t.Errorf("mounts: %v", left)
	}
	for _, pattern := range []string{"run/steps/*/rootfs", "run/runc/*", "run/dockerfiles/*"} {
		if left, _ := filepath.Glob(filepath.Join(r.dir, pattern)); left != nil {
			t.Errorf("left: %v", left)
		}
	}
}
