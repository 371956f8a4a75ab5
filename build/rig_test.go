package build

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// rig is a builder on containerd's real storage, without containerd's other services: a build needs no more.
type rig struct {
	*Builder
	dir    string
	client *containerd.Client
	stop   func()
}

var (
	sharedOnce sync.Once
	shared     *rig
	sharedErr  error
)

// TestMain removes the builder that the tests share.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childArg {
		child()
		return
	}
	code := m.Run()
	if shared != nil {
		shared.stop()
	}
	os.Exit(code)
}

// sharedRig returns the builder that all tests share, with an image "busybox" in its store.
func sharedRig(t testing.TB) *rig {
	t.Helper()
	requirements(t)
	sharedOnce.Do(func() {
		dir, err := os.MkdirTemp("", "gantry-build-test-")
		if err != nil {
			sharedErr = err
			return
		}
		if shared, sharedErr = openRig(dir, Options{AllowInsecure: false}); sharedErr == nil {
			sharedErr = shared.busybox()
		}
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

func requirements(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a build needs root")
	}
	for _, program := range []string{"runc", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is not on the PATH: make test installs and builds what tests need", program)
		}
	}
}

func openRig(dir string, opts Options) (*rig, error) {
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		return nil, err
	}
	over, err := overlay.NewSnapshotter(filepath.Join(dir, "snapshots"))
	if err != nil {
		return nil, err
	}
	bdb, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		return nil, err
	}
	db := metadata.NewDB(bdb, store, map[string]snapshots.Snapshotter{"overlayfs": over})
	if err := db.Init(context.Background()); err != nil {
		return nil, err
	}
	client, err := containerd.New("", containerd.WithServices(
		containerd.WithContentStore(db.ContentStore()),
		containerd.WithImageStore(metadata.NewImageStore(db)),
		containerd.WithSnapshotters(map[string]snapshots.Snapshotter{"overlayfs": db.Snapshotter("overlayfs")}),
		containerd.WithLeasesService(syncLeases{metadata.NewLeaseManager(db), db}),
		containerd.WithDiffService(differ{apply.NewFileSystemApplier(db.ContentStore()), walking.NewWalkingDiff(db.ContentStore())}),
	))
	if err != nil {
		return nil, err
	}
	opts.Root, opts.Run, opts.Client = filepath.Join(dir, "build"), filepath.Join(dir, "run"), client
	opts.Runc, _ = exec.LookPath("runc")
	opts.CgroupParent = "gantry-" + filepath.Base(dir)
	opts.Logger = slog.New(slog.DiscardHandler)
	b, err := New(context.Background(), opts)
	if err != nil {
		return nil, err
	}
	r := &rig{Builder: b, dir: dir, client: client}
	r.stop = func() {
		r.Close()
		over.Close()
		bdb.Close()
		os.RemoveAll(dir)
	}
	return r, nil
}

type differ struct {
	diff.Applier
	diff.Comparer
}

// syncLeases collects garbage where containerd's lease service would.
type syncLeases struct {
	leases.Manager
	db *metadata.DB
}

func (s syncLeases) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	err := s.Manager.Delete(ctx, l, opts...)
	if err == nil && o.Synchronous {
		_, err = s.db.GarbageCollect(ctx)
	}
	return err
}

// busybox builds the image that the tests stand on, from nothing but Debian's static binary.
func (r *rig) busybox() error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, "busybox")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := exec.Command("cp", path, filepath.Join(dir, "busybox")).Run(); err != nil {
		return err
	}
	text := "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"mkdir\", \"-p\", \"/etc\", \"/tmp\"]\n" +
		"RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin\n"
	_, err = r.Build(context.Background(), Request{
		Start:    &gantryv1.BuildStart{Dockerfile: []byte(text), Tags: []string{"busybox", "example.test/base:1"}, Offline: true},
		Contexts: map[string]string{"context": dir},
	}, func(*gantryv1.BuildEvent) error { return nil })
	return err
}

// outcome is what a test looks at after a build.
type outcome struct {
	image    *gantryv1.Image
	err      error
	log      string
	warnings []*gantryv1.BuildEvent_Warning
	vertices map[string]*gantryv1.BuildEvent_Vertex
}

// run builds and collects the events.
func (r *rig) run(t testing.TB, req Request) outcome {
	t.Helper()
	if req.Start.Spec == nil {
		req.Start.Spec = &gantryv1.BuildSpec{}
	}
	if req.Start.Spec.Context == "" {
		req.Start.Spec.Context = "test:" + t.Name()
	}
	out := outcome{vertices: map[string]*gantryv1.BuildEvent_Vertex{}}
	out.image, out.err = r.Build(t.Context(), req, func(e *gantryv1.BuildEvent) error {
		switch {
		case e.GetLog() != nil:
			out.log += string(e.GetLog().Data)
		case e.GetWarning() != nil:
			out.warnings = append(out.warnings, e.GetWarning())
		case e.GetVertex() != nil:
			out.vertices[e.GetVertex().Name] = e.GetVertex()
		}
		return nil
	})
	return out
}

// build builds a Dockerfile over files and fails the test if that fails.
func (r *rig) build(t testing.TB, dockerfile string, files map[string]string, change ...func(*Request)) outcome {
	t.Helper()
	out := r.try(t, dockerfile, files, change...)
	if out.err != nil {
		t.Fatalf("build: %v\nhint: %s\n%s", out.err, fault.HintOf(out.err), out.log)
	}
	return out
}

// try is build for builds that may fail.
func (r *rig) try(t testing.TB, dockerfile string, files map[string]string, change ...func(*Request)) outcome {
	t.Helper()
	req := Request{
		Start:    &gantryv1.BuildStart{Tags: []string{tag(t)}, Spec: &gantryv1.BuildSpec{}, Offline: true},
		Contexts: map[string]string{"context": tree(t, files, map[string]string{"Dockerfile": dockerfile})},
	}
	for _, c := range change {
		c(&req)
	}
	return r.run(t, req)
}

func tag(t testing.TB) string {
	return "test/" + strings.ToLower(strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()))
}

// tree writes files into a new directory.
func tree(t testing.TB, all ...map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, files := range all {
		for name, text := range files {
			write(t, filepath.Join(dir, name), text)
		}
	}
	return dir
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) context(t testing.TB) context.Context {
	return namespaces.WithNamespace(t.Context(), Namespace)
}

// stored returns an image of the store.
func (r *rig) stored(t testing.TB, name string) containerd.Image {
	t.Helper()
	image, err := r.client.GetImage(r.context(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// config returns the configuration of an image, in Docker's form.
func (r *rig) config(t testing.TB, name string) dockerspec.DockerOCIImage {
	t.Helper()
	ctx, store := r.context(t), r.client.ContentStore()
	desc, err := images.Config(ctx, store, r.stored(t, name).Target(), platforms.Default())
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, data)
}
