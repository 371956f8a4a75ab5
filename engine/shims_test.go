package engine_test

import (
	"bytes"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/enginetest"
)

// sharedShims counts the shims that containers are in.
func sharedShims(o engine.Options, ids ...string) int {
	addresses := map[string]bool{}
	for _, id := range ids {
		addresses[embedded.Shim(o.Run, engine.Namespace, id)] = true
	}
	return len(addresses)
}

// awaitShims waits until so many shims of an engine run.
func awaitShims(t *testing.T, o engine.Options, want int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(enginetest.Wait); ; {
		n := len(shims(t, o))
		if n == want {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%d shims, want %d", n, want)
		}
	}
}

func TestIdleShimsEndWithTheEngine(t *testing.T) {
	o := prepareCrash(t, map[string]string{"c": "sleep 1000"})
	awaitShims(t, o, 0)
	// A killed engine leaves its idle shims behind, and one with a container.
	d := startDaemon(t, o)
	d.do(t, "start", "c")
	awaitShims(t, o, 3)
	d.kill()
	left := shims(t, o)
	e := enginetest.OpenAt(t, o)
	awaitShims(t, o, 3)
	kept := slices.DeleteFunc(shims(t, o), func(pid int) bool { return !slices.Contains(left, pid) })
	if len(kept) != 1 {
		t.Errorf("of the shims %v, those kept are %v", left, kept)
	}
	if out, code := exec(t, e, "c", "echo ok"); out != "ok\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	enginetest.Close(t, e)
	awaitShims(t, o, 0)
	for _, dir := range []string{"s", "shims"} {
		entries, err := os.ReadDir(filepath.Join(o.Run, dir))
		if err != nil || len(entries) > 1 { // the directory of the last container's shim may be left
			t.Errorf("%s: %v %v", dir, entries, err)
		}
	}
}

func TestAnIdleShimThatDiedIsReplaced(t *testing.T) {
	o := prepareCrash(t, map[string]string{"c": "sleep 1000"})
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	awaitShims(t, o, 2)
	for _, pid := range shims(t, o) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	awaitShims(t, o, 0)
	if _, err := e.Start(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

// containerd asks what runc can before each start; the shim's program must not be needed for the answer.
func TestRuntimeAnswersWithoutTheShim(t *testing.T) {
	o := enginetest.Options(t)
	enginetest.Close(t, enginetest.OpenAt(t, o))
	script, err := os.ReadFile(filepath.Join(o.Root, "shim-runtime"))
	if err != nil {
		t.Fatal(err)
	}
	alone := filepath.Join(t.TempDir(), "alone")
	text := strings.ReplaceAll(string(script), "containerd-shim-runc-v2", "not-there")
	if err := os.WriteFile(alone, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := osexec.Command(alone, "-info").Output(); err != nil || !bytes.Contains(got, []byte(`"idmap":{"enabled":true}`)) {
		t.Errorf("without the shim: %q, %v", got, err)
	}
}

// The daemon is killed, or ends, when the shim has deleted a task and containerd has not heard of it.
func TestStartAfterAHalfDeletedTask(t *testing.T) {
	o := prepareCrash(t, map[string]string{"c": "sleep 1000"})
	d := startDaemon(t, o)
	d.do(t, "start", "c")
	d.kill()
	conn, err := net.Dial("unix", strings.TrimPrefix(embedded.Shim(o.Run, engine.Namespace, "c"), "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	shim := task.NewTTRPCTaskClient(client)
	ctx := namespaces.WithNamespace(t.Context(), engine.Namespace)
	if _, err := shim.Kill(ctx, &task.KillRequest{ID: "c", Signal: uint32(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Wait(ctx, &task.WaitRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Delete(ctx, &task.DeleteRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()

	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	if _, err := e.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
}
