package image_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/fault"
)

func needBootstrap(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("installs a distribution from its packages: half a minute")
	}
	if os.Getuid() != 0 {
		t.Skip("mmdebstrap needs root")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Fatal("no mmdebstrap on this machine: apt-get install mmdebstrap")
	}
}

// layerFiles lists a one-layer image's files with all that is stored of each.
func layerFiles(t *testing.T, rig *imagetest.Rig, f *image.Found) (names []string, text map[string]string) {
	t.Helper()
	ra, err := rig.Content.ReaderAt(rig.Context(t), f.ManifestBody.Layers[0])
	check(t, err)
	defer ra.Close()
	zr, err := gzip.NewReader(content.NewReader(ra))
	check(t, err)
	text = map[string]string{}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names, text
		}
		check(t, err)
		name := strings.TrimPrefix(h.Name, "./")
		names = append(names, name)
		b, err := io.ReadAll(tr)
		check(t, err)
		text[name] = fmt.Sprintf("%s %v %d:%d %v\n%s", h.ModTime, h.FileInfo().Mode(), h.Uid, h.Gid, h.PAXRecords, b)
		if h.ModTime.After(*f.Config.Created) {
			t.Errorf("%s is younger than the image: %s", name, h.ModTime)
		}
	}
}

func TestBootstrapDebian(t *testing.T) {
	needBootstrap(t)
	rig, s := node(t)
	var phases []string
	tell := func(p *gantryv1.Progress) error {
		if !slices.Contains(phases, p.Status) {
			phases = append(phases, p.Status)
		}
		return nil
	}
	req := &gantryv1.BootstrapRequest{Image: "debian:bookworm", Include: []string{"netbase"}, Tags: []string{"debian:12"}}
	img, err := s.Bootstrap(t.Context(), req, tell)
	check(t, err)
	want := []string{"docker.io/library/debian:12", "docker.io/library/debian:bookworm"}
	if !slices.Equal(img.References, want) {
		t.Fatalf("names %v", img.References)
	}
	for _, p := range []string{"preparing", "downloading", "unpacking", "configuring", "packing"} {
		if !slices.Contains(phases, p) {
			t.Errorf("no progress %q in %v", p, phases)
		}
	}
	rig.Collect(t)
	f, err := s.Lookup(t.Context(), "debian:bookworm", "")
	check(t, err)
	names, text := layerFiles(t, rig, f)
	for _, n := range names {
		if strings.HasPrefix(n, "var/lib/apt/lists/") && strings.Contains(n, "_dists_") || strings.HasSuffix(n, ".deb") ||
			n == "etc/resolv.conf" || n == "etc/hostname" || n == "var/log/dpkg.log" || strings.HasPrefix(n, "dev/") && n != "dev/" {
			t.Errorf("%s is in the image", n)
		}
	}
	if !slices.Contains(names, "etc/services") {
		t.Error("the included package is not there")
	}
	if !strings.Contains(text["etc/apt/sources.list.d/debian.sources"], "Suites: bookworm-security") || !strings.Contains(text["etc/debian_version"], "\n12") {
		t.Errorf("files %q %q", text["etc/apt/sources.list.d/debian.sources"], text["etc/debian_version"])
	}

	phases = nil
	again, err := s.Bootstrap(t.Context(), req, tell)
	check(t, err)
	if again.Digest != img.Digest || !slices.Equal(phases, []string{"exists", "done"}) {
		t.Fatalf("the second call did %v", phases)
	}
	req.Force = true
	forced, err := s.Bootstrap(t.Context(), req, nil)
	check(t, err)
	if forced.Digest != img.Digest {
		g, err := s.Lookup(t.Context(), "debian:bookworm", "")
		check(t, err)
		_, other := layerFiles(t, rig, g)
		for _, n := range names {
			if text[n] != other[n] {
				t.Errorf("made twice from the same packages, %s differs:\n%.400q\n%.400q", n, text[n], other[n])
			}
		}
		t.Errorf("%s and %s", img.Digest, forced.Digest)
	}
	if left, _ := filepath.Glob(rig.Root + "/images/tmp/*"); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestBootstrapStopsAndLeavesNothing(t *testing.T) {
	needBootstrap(t)
	rig, s := node(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Bootstrap(ctx, &gantryv1.BootstrapRequest{Image: "debian:bookworm"}, func(p *gantryv1.Progress) error {
		if p.Status == "unpacking" {
			cancel()
		}
		return nil
	})
	if !fault.Is(err, fault.Canceled) {
		t.Fatalf("%v (%s)", err, fault.KindOf(err))
	}
	clean(t, rig)
	if left, _ := filepath.Glob(rig.Root + "/images/tmp/*"); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestBootstrapUnreachable(t *testing.T) {
	needBootstrap(t)
	rig, s := node(t)
	_, err := s.Bootstrap(t.Context(), &gantryv1.BootstrapRequest{Image: "debian:nosuchrelease"}, nil)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "nosuchrelease") || fault.HintOf(err) == "" {
		t.Fatalf("%v (%s)", err, fault.KindOf(err))
	}
	clean(t, rig)
	if _, err := s.Bootstrap(t.Context(), &gantryv1.BootstrapRequest{Image: "debian:bookworm", Include: []string{"no-such-package-at-all"}}, nil); err == nil || !strings.Contains(err.Error(), "no-such-package-at-all") {
		t.Fatalf("%v", err)
	}
	clean(t, rig)
}
