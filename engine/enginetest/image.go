package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/archive"
)

// BusyboxName is the name of the image that BusyboxImage makes.
const BusyboxName = "docker.io/library/busybox:test"

// Entry is one file of a layer.
type Entry struct {
	Header  tar.Header
	Content []byte
}

// BusyboxImage puts an image with busybox and its commands, users "root" and "app" (1000:1000, also in group 2000
// "extra") and a directory /data owned by app into the engine's store, and returns its name.
func BusyboxImage(t testing.TB, e *engine.Engine) string {
	t.Helper()
	Image(t, e, BusyboxName, imagespec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"FROM_IMAGE=yes"}}, BusyboxLayer(t))
	return BusyboxName
}

// BusyboxLayer returns the files of the busybox image.
func BusyboxLayer(t testing.TB) []Entry {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("no busybox on this machine: apt-get install busybox-static")
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries := []Entry{
		Dir("bin/", 0o755, 0, 0), Dir("etc/", 0o755, 0, 0), Dir("tmp/", 0o1777, 0, 0), Dir("root/", 0o700, 0, 0),
		Dir("var/", 0o755, 0, 0), Dir("proc/", 0o755, 0, 0), Dir("sys/", 0o755, 0, 0), Dir("dev/", 0o755, 0, 0),
		Dir("data/", 0o750, 1000, 1000), FileEntry("data/seed", 0o640, 1000, 1000, "seeded\n"),
		FileEntry("bin/busybox", 0o755, 0, 0, string(binary)),
		FileEntry("etc/passwd", 0o644, 0, 0, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
		FileEntry("etc/group", 0o644, 0, 0, "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			entries = append(entries, Link("bin/"+name, "busybox"))
		}
	}
	return entries
}

// Dir is a directory of a layer.
func Dir(name string, mode int64, uid, gid int) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: gid}}
}

// FileEntry is a regular file of a layer.
func FileEntry(name string, mode int64, uid, gid int, text string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: uid, Gid: gid, Size: int64(len(text))}, Content: []byte(text)}
}

// Link is a symbolic link of a layer.
func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Tar packs entries.
func Tar(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Unpack unpacks entries into a directory of the host.
func Unpack(t testing.TB, dir string, entries []Entry) {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := archive.Extract(t.Context(), root, "/", bytes.NewReader(Tar(t, entries)), archive.IDs{}); err != nil {
		t.Fatal(err)
	}
}

// Image puts an image of one layer per list of entries into the engine's store and returns its digest.
func Image(t testing.TB, e *engine.Engine, name string, config imagespec.ImageConfig, layers ...[]Entry) digest.Digest {
	t.Helper()
	// The lease keeps the blobs until the image names them.
	ctx, release, err := e.Client().WithLease(e.Context(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = release(ctx) }()
	platform := platforms.DefaultSpec()
	full := imagespec.Image{Config: config, Platform: platform, RootFS: imagespec.RootFS{Type: "layers"}}
	manifest := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
	labels := map[string]string{}
	for i, entries := range layers {
		desc := writeBlob(ctx, t, e, imagespec.MediaTypeImageLayer, Tar(t, entries), nil)
		full.RootFS.DiffIDs = append(full.RootFS.DiffIDs, desc.Digest)
		manifest.Layers = append(manifest.Layers, desc)
		labels["containerd.io/gc.ref.content.l."+string(rune('0'+i))] = desc.Digest.String()
	}
	blob, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	manifest.Config = writeBlob(ctx, t, e, imagespec.MediaTypeImageConfig, blob, nil)
	labels["containerd.io/gc.ref.content.config"] = manifest.Config.Digest.String()
	if blob, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	target := writeBlob(ctx, t, e, imagespec.MediaTypeImageManifest, blob, labels)
	if _, err := e.Client().ImageService().Create(ctx, images.Image{Name: name, Target: target}); err != nil {
		t.Fatalf("image %s: %v", name, err)
	}
	return target.Digest
}

func writeBlob(ctx context.Context, t testing.TB, e *engine.Engine, mediaType string, blob []byte, labels map[string]string) imagespec.Descriptor {
	t.Helper()
	desc := imagespec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	err := content.WriteBlob(ctx, e.Client().ContentStore(), desc.Digest.String(), bytes.NewReader(blob), desc, content.WithLabels(labels))
	if err != nil {
		t.Fatalf("blob: %v", err)
	}
	return desc
}

// Logs returns what a container has written, all of it, by stream. It waits for the end of a run.
func Logs(t testing.TB, e *engine.Engine, id string) (stdout, stderr string) {
	t.Helper()
	text := map[string]string{}
	o := engine.LogOptions{Follow: true, Tail: -1}
	err := e.Logs(t.Context(), id, o, func(entry *gantryv1.LogEntry) error {
		text[entry.GetStream()] += string(entry.GetLine())
		return nil
	})
	if err != nil {
		t.Fatalf("logs of %s: %v", id, err)
	}
	return text["stdout"], text["stderr"]
}

func mountsBelow(dir string) []string {
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil
	}
	var paths []string
	for _, m := range list {
		paths = append(paths, m.Mountpoint)
	}
	slices.SortFunc(paths, func(a, b string) int { return len(b) - len(a) })
	return paths
}
