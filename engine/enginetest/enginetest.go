// Package enginetest gives tests a real engine: helpers built once, an engine on directories of its own, and a small
// image made from the machine's static busybox, without any registry.
//
// Begin with Open. Everything it makes is cleared away when the test ends; it skips the test where there is no root.
package enginetest

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/userns"
)

// Wait is how long a test waits for something that happens at once on an idle machine.
const Wait = 60 * time.Second

// Open opens an engine on directories of its own and closes it, with all its containers, when the test ends.
func Open(t testing.TB) *engine.Engine {
	t.Helper()
	e := OpenAt(t, Options(t))
	t.Cleanup(func() { Close(t, e) })
	return e
}

// Options returns options for an engine whose traces are removed when the test ends. Its containers have user namespaces
// if the machine can.
func Options(t testing.TB) engine.Options {
	t.Helper()
	Require(t)
	o := options(t)
	o.Users = users(t, o)
	return o
}

// OpenUsers opens what makes the user namespaces of an engine's containers. The caller closes it.
func OpenUsers(o engine.Options) (*userns.Maker, error) {
	return userns.Open(userns.Options{
		Root: filepath.Dir(o.Root), Run: filepath.Join(filepath.Dir(o.Root), "users"),
		Helper: filepath.Join(o.Helpers, "gantry-init"), Logger: o.Logger,
	})
}

// users is nil where the machine cannot have user namespaces.
func users(t testing.TB, o engine.Options) *userns.Maker {
	t.Helper()
	m, err := OpenUsers(o)
	if err != nil {
		t.Logf("no user namespaces: %v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close the maker of user namespaces: %v", err)
		}
	})
	return m
}

func options(t testing.TB) engine.Options {
	t.Helper()
	// Socket addresses are short, so the directory cannot be the test's own.
	dir, err := os.MkdirTemp("", "ge")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // root inside passes through
		t.Fatal(err)
	}
	parent := "/gantry-test-" + filepath.Base(dir)
	t.Cleanup(func() { clean(t, dir, parent) })
	return engine.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Helpers: Helpers(t), CgroupParent: parent,
		Logger: slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// OpenAt opens an engine. The caller closes it.
func OpenAt(t testing.TB, o engine.Options) *engine.Engine {
	t.Helper()
	e, err := engine.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open the engine: %v", err)
	}
	return e
}

// Close removes an engine's containers and closes it.
func Close(t testing.TB, e *engine.Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	list, err := e.List(ctx)
	if err != nil {
		t.Errorf("list containers: %v", err)
	}
	for _, s := range list {
		if err := e.Remove(ctx, s.ID); err != nil {
			t.Errorf("remove container %s: %v", s.ID, err)
		}
	}
	if err := e.Close(); err != nil {
		t.Errorf("close the engine: %v", err)
	}
}

// Require skips the test where containers cannot run.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		t.Skip("containers need control groups: ", err)
	}
}

// clean removes what a test's engine left: mounts, control groups, files.
func clean(t testing.TB, dir, parent string) {
	for _, m := range mountsBelow(dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Errorf("remove %s: %v", dir, err)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	for _, g := range append(groups, "/sys/fs/cgroup"+parent) {
		_ = unix.Rmdir(filepath.Join(g, "containers"))
		_ = unix.Rmdir(g)
	}
}

// Spec returns a container of the busybox image that runs a shell script.
func Spec(image, script string) *gantryv1.ContainerSpec {
	return &gantryv1.ContainerSpec{
		Image: image, Command: &gantryv1.StringList{Values: []string{"sh", "-c", script}},
	}
}

// Run creates and starts a container and returns its ID.
func Run(t testing.TB, e *engine.Engine, id string, spec *gantryv1.ContainerSpec) string {
	t.Helper()
	if err := e.Create(t.Context(), engine.CreateRequest{ID: id, Name: id, Spec: spec}); err != nil {
		t.Fatalf("create %s: %v", id, err)
	}
	if _, err := e.Start(t.Context(), id); err != nil {
		t.Fatalf("start %s: %v", id, err)
	}
	return id
}

// AwaitExit waits until a container has exited and returns its state.
func AwaitExit(t testing.TB, e *engine.Engine, id string) engine.State {
	t.Helper()
	return Await(t, e, id, func(s engine.State) bool { return s.Status == engine.StatusExited })
}

// Await waits until a container's state is as wanted.
func Await(t testing.TB, e *engine.Engine, id string, wanted func(engine.State) bool) engine.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	events := e.Events(ctx)
	for {
		s, err := e.State(ctx, id)
		if err != nil {
			t.Fatalf("state of %s: %v", id, err)
		}
		if wanted(s) {
			return s
		}
		select {
		case <-events:
		case <-ctx.Done():
			t.Fatalf("container %s does not get into the state wanted: %+v", id, s)
		}
	}
}

// Helpers returns a directory with runc, the shim and the init, built from go.mod once per machine and version.
func Helpers(t testing.TB) string {
	t.Helper()
	dir, err := buildOnce()
	if err != nil {
		t.Fatalf("build the helpers: %v", err)
	}
	return dir
}

// buildOnce builds the helpers. go build itself finds out that nothing has changed.
var buildOnce = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "gantry-test-helpers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	return dir, build(dir)
})

func build(dir string) error {
	for _, h := range []struct{ name, pkg, tags, ldflags, cgo string }{
		{"runc", "github.com/opencontainers/runc", "seccomp,urfave_cli_no_docs,netgo,osusergo", "-s -w -extldflags -static", "1"},
		{"containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "no_grpc", "-s -w", "0"},
		{"gantry-init", "github.com/gantryd/gantry/cmd/gantry-init", "", "-s -w", "0"},
	} {
		cmd := exec.Command("go", "build", "-tags", h.tags, "-ldflags", h.ldflags, "-o", filepath.Join(dir, h.name), h.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+h.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return &buildError{h.name, string(out), err}
		}
	}
	return nil
}

type buildError struct {
	name, output string
	cause        error
}

func (b *buildError) Error() string { return b.name + ": " + b.cause.Error() + "\n" + b.output }

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return f, unix.Flock(int(f.Fd()), unix.LOCK_EX)
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	// A test that has ended must not be logged to; the engine is closed before that.
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}
