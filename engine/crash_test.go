package engine_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/engine/keep"
)

// daemonVariable makes the test binary an engine of its own, to be killed.
const daemonVariable = "GANTRY_ENGINE_TEST_OPTIONS"

func TestMain(m *testing.M) {
	if o := os.Getenv(daemonVariable); o != "" {
		daemon(o)
	}
	os.Exit(m.Run())
}

// daemon opens an engine, does what its input says line by line ("create ID", "start ID", "remove ID", "fill VOLUME") and answers each.
func daemon(encoded string) {
	var o engine.Options
	err := json.Unmarshal([]byte(encoded), &o)
	if err != nil {
		panic(err)
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, cancel := signalContext()
	defer cancel()
	if o.Users, err = enginetest.OpenUsers(o); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	e, err := engine.Open(ctx, o)
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		verb, id, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "start":
			_, err = e.Start(ctx, id)
		case "remove":
			err = e.Remove(ctx, id)
		case "fill":
			err = e.Create(ctx, fullVolume("filler", id))
		case "create":
			err = e.Create(ctx, engine.CreateRequest{ID: id, Spec: enginetest.Spec(enginetest.BusyboxName, "sleep 1000")})
		}
		fmt.Println("done", err)
	}
	os.Exit(0)
}

// killable is an engine in a process of its own.
type killable struct {
	cmd *osexec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startDaemon(t *testing.T, o engine.Options) *killable {
	t.Helper()
	o.Logger = nil
	encoded, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), daemonVariable+"="+string(encoded))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &killable{cmd, in, bufio.NewScanner(out)}
	d.await(t, "ready")
	return d
}

func (d *killable) await(t *testing.T, want string) {
	t.Helper()
	if !d.out.Scan() || d.out.Text() != want {
		t.Fatalf("daemon said %q, want %q", d.out.Text(), want)
	}
}

func (d *killable) do(t *testing.T, verb, id string) {
	t.Helper()
	fmt.Fprintln(d.in, verb, id)
	d.await(t, "done <nil>")
}

func (d *killable) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// prepareCrash makes containers with an engine of the test's, and closes it.
func prepareCrash(t *testing.T, scripts map[string]string) engine.Options {
	t.Helper()
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	image := enginetest.BusyboxImage(t, e)
	for id, script := range scripts {
		if err := e.Create(t.Context(), engine.CreateRequest{ID: id, Spec: enginetest.Spec(image, script), Labels: map[string]string{"k": id}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestContainersOutliveAKilledDaemon(t *testing.T) {
	const lines = 20_000
	o := prepareCrash(t, map[string]string{
		"long": "echo up; sleep 1000",
		// Writes much while the daemon is killed, and ends while there is none.
		"ends": fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; exit 5", lines),
	})
	d := startDaemon(t, o)
	d.do(t, "start", "long")
	d.do(t, "start", "ends")
	d.kill()
	awaitProcessesGone(t, o, "ends")

	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	s := enginetest.AwaitExit(t, e, "ends")
	if s.ExitCode != 5 || s.Lost || s.Labels["k"] != "ends" {
		t.Errorf("container that ended without a daemon: %+v", s)
	}
	stdout, _ := enginetest.Logs(t, e, "ends")
	assertLines(t, stdout, lines)
	long, err := e.State(t.Context(), "long")
	if err != nil || long.Status != engine.StatusRunning || long.Runs != 1 || unix.Kill(int(long.Pid), 0) != nil {
		t.Errorf("container that runs on: %v, %+v", err, long)
	}
	if n := count(o, "long"); n != 1 {
		t.Errorf("%d processes in the container, want 1", n)
	}
	if out, code := exec(t, e, "long", "echo alive"); out != "alive\n" || code != 0 {
		t.Errorf("exec after the restart: %q, %d", out, code)
	}
	if err := e.Stop(t.Context(), "long", 0); err != nil {
		t.Fatal(err)
	}
	if s := enginetest.AwaitExit(t, e, "long"); s.ExitCode != 137 {
		t.Errorf("stopped after the restart: %+v", s)
	}
}

// assertLines checks that "line 0" to "line n-1" are there, each once and in order.
func assertLines(t *testing.T, text string, n int) {
	t.Helper()
	got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(got) != n {
		t.Errorf("%d lines, want %d", len(got), n)
	}
	for i, line := range got {
		if line != "line "+strconv.Itoa(i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

func TestLogsAreCompleteWhateverTheMomentOfTheKill(t *testing.T) {
	const lines = 30_000
	o := prepareCrash(t, map[string]string{
		"c": fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done", lines),
	})
	d := startDaemon(t, o)
	d.do(t, "start", "c")
	for count(o, "c") > 0 { // killed again and again while lines are taken over
		d.kill()
		d = startDaemon(t, o)
	}
	d.kill()
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	if s := enginetest.AwaitExit(t, e, "c"); s.ExitCode != 0 || s.Runs != 1 {
		t.Errorf("state %+v", s)
	}
	stdout, _ := enginetest.Logs(t, e, "c")
	assertLines(t, stdout, lines)
}

// TestARunWhoseEndIsWrittenDownIsCountedOnce is a daemon that was killed while it cleared away the task of a run that had ended.
func TestARunWhoseEndIsWrittenDownIsCountedOnce(t *testing.T) {
	o := prepareCrash(t, map[string]string{"c": "sleep 1000"})
	d := startDaemon(t, o)
	d.do(t, "start", "c")
	d.kill()
	killProcesses(t, o, "c")
	path := filepath.Join(o.Root, "containers", "c", "state.json")
	var was engine.State
	if err := keep.ReadState(path, &was); err != nil || was.Status != engine.StatusRunning || was.Runs != 1 {
		t.Fatalf("%+v, %v", was, err)
	}
	was.Status, was.Pid, was.ExitCode, was.FinishedAt = engine.StatusExited, 0, 137, time.Now().Add(time.Second) // the shim may notice after us
	if err := keep.State(path, was); err != nil {
		t.Fatal(err)
	}
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	if s := enginetest.AwaitExit(t, e, "c"); s.ExitCode != 137 || s.Runs != 1 || !s.StartedAt.Equal(was.StartedAt) {
		t.Errorf("before it was %+v, now %+v", was, s)
	}
}

func TestHalvesAreClearedAway(t *testing.T) {
	o := prepareCrash(t, map[string]string{"keep": "sleep 1000"})
	// Killed at random points of create, start and remove.
	for i := range 12 {
		d := startDaemon(t, o)
		id := "half" + strconv.Itoa(i)
		verbs := []string{"create ", "start ", "remove "}[:i%3+1]
		for _, verb := range verbs {
			fmt.Fprintln(d.in, verb+id)
		}
		for range i / 3 % len(verbs) { // some are done, the next is under way
			d.await(t, "done <nil>")
		}
		d.kill()
	}
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	list, err := e.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.ID == "keep" {
			continue
		}
		// Each is whole: it can be used and removed.
		if s.Status != engine.StatusRunning {
			if _, err := e.Start(t.Context(), s.ID); err != nil {
				t.Errorf("%+v cannot be started: %v", s, err)
			}
		}
		if n := count(o, s.ID); n != 1 {
			t.Errorf("%s has %d processes", s.ID, n)
		}
		if err := e.Remove(t.Context(), s.ID); err != nil {
			t.Errorf("%+v cannot be removed: %v", s, err)
		}
	}
	assertOnly(t, e, o, "keep")
}

// assertOnly checks that nothing is left of any other container.
func assertOnly(t *testing.T, e *engine.Engine, o engine.Options, keep string) {
	t.Helper()
	ctx := e.Context(t.Context())
	err := e.Client().SnapshotService("overlayfs").Walk(ctx, func(_ ctxType, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && info.Name != keep {
			t.Errorf("snapshot %s is left", info.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{
		filepath.Join(o.Root, "containers", "*"), filepath.Join(o.Run, "files", "*"), filepath.Join(o.Run, "stdin", "*"),
		filepath.Join(o.Run, "exec", "*"), filepath.Join(o.Run, "runc", "*", "*"), "/sys/fs/cgroup/*" + o.CgroupParent + "/containers/*",
		"/sys/fs/cgroup" + o.CgroupParent + "/containers/*",
	} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if st, err := os.Stat(f); err == nil && st.IsDir() && filepath.Base(f) != keep {
				t.Errorf("%s is left", f)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	if o.Users != nil {
		own = 1 // image layers with their owners mapped, for all containers
	}
	if n := strings.Count(string(mounts), " "+o.Run+"/"); n != own {
		t.Errorf("%d mounts below %s, want %d:\n%s", n, o.Run, own, mounts)
	}
}

// processes returns the processes in a container's control group.
func processes(o engine.Options, id string) []string {
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if b, err := os.ReadFile(filepath.Join(dir, o.CgroupParent, "containers", id, "cgroup.procs")); err == nil {
			return strings.Fields(string(b))
		}
	}
	return nil
}

func count(o engine.Options, id string) int { return len(processes(o, id)) }

// killProcesses ends a container without a daemon.
func killProcesses(t *testing.T, o engine.Options, id string) {
	t.Helper()
	for _, p := range processes(o, id) {
		pid, _ := strconv.Atoi(p)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	awaitProcessesGone(t, o, id)
}

// awaitProcessesGone waits until a container without a daemon has ended.
func awaitProcessesGone(t *testing.T, o engine.Options, id string) {
	t.Helper()
	for _, p := range processes(o, id) {
		pid, err := strconv.Atoi(p)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		f := os.NewFile(uintptr(fd), "pidfd")
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(enginetest.Wait.Milliseconds()))
		_ = f.Close()
		if err != nil && err != syscall.EINTR {
			t.Fatal(err)
		}
	}
}

func TestAMachineThatWasRestarted(t *testing.T) {
	o := prepareCrash(t, map[string]string{"c": "echo once; sleep 1000"})
	d := startDaemon(t, o)
	d.do(t, "start", "c")
	d.kill()
	// What a reboot does: every process ends, the run directory is empty.
	powerOff(t, o, "c")
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	s, err := e.State(t.Context(), "c")
	if err != nil || s.Status != engine.StatusExited || !s.Lost || s.ExitCode != engine.LostExitCode {
		t.Errorf("after the reboot: %v, %+v", err, s)
	}
	if stdout, _ := enginetest.Logs(t, e, "c"); stdout != "once\n" {
		t.Errorf("log %q", stdout)
	}
	if _, err := e.Start(t.Context(), "c"); err != nil {
		t.Errorf("start after the reboot: %v", err)
	}
}

// powerOff kills a container and its shim and clears the run directory.
func powerOff(t *testing.T, o engine.Options, id string) {
	t.Helper()
	for _, pid := range shims(t, o) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	killProcesses(t, o, id)
	mounts, _ := filepath.Glob(filepath.Join(o.Run, "*", "*", "*", "rootfs"))
	for _, m := range append(mounts, filepath.Join(o.Run, "layers")) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	if err := os.RemoveAll(o.Run); err != nil {
		t.Fatal(err)
	}
}

// shims returns the process IDs of an engine's shims.
func shims(t *testing.T, o engine.Options) []int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, p := range procs {
		b, _ := os.ReadFile(p) // a process may have ended
		if args := strings.Split(string(b), "\x00"); strings.HasSuffix(args[0], "containerd-shim-runc-v2") && strings.Contains(string(b), o.Run) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func pid(s engine.State) string { return strconv.Itoa(int(s.Pid)) }
