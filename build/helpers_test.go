package build

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/image-spec/identity"

	"github.com/gantryd/gantry/fault"
)

func decode(t testing.TB, data []byte) (c dockerspec.DockerOCIImage) {
	t.Helper()
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// files mounts the unpacked image and calls look with its root.
func (r *rig) files(t testing.TB, name string, look func(root string)) {
	t.Helper()
	ctx := r.context(t)
	config := r.config(t, name)
	chain := identity.ChainID(config.RootFS.DiffIDs).String()
	s := r.client.SnapshotService("overlayfs")
	key := "look-" + t.Name()
	mounts, err := s.View(ctx, key, chain)
	if err != nil {
		t.Fatalf("the image is not unpacked: %v", err)
	}
	defer s.Remove(ctx, key)
	if err := mount.WithTempMount(ctx, mounts, func(root string) error { look(root); return nil }); err != nil {
		t.Fatal(err)
	}
}

// file returns the content of a file in the unpacked image.
func (r *rig) file(t testing.TB, name, path string) (text string) {
	t.Helper()
	r.files(t, name, func(root string) {
		data, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
		}
		text = string(data)
	})
	return text
}

func wantFault(t testing.TB, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if fault.KindOf(err) != kind {
		t.Errorf("kind %q, want %q: %v", fault.KindOf(err), kind, err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not tell %q", err, part)
		}
	}
	if fault.HintOf(err) == "" {
		t.Errorf("no hint with %q", err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// tarball writes a tar file with one entry.
func tarball(t testing.TB, path, name, text string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err = errors.Join(err, w.Close(), os.WriteFile(path, buf.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func owner(fi os.FileInfo) [2]uint32 {
	st := fi.Sys().(*syscall.Stat_t)
	return [2]uint32{st.Uid, st.Gid}
}
