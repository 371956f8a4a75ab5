package e2e_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// bait is what hostile archives are after: a file and a directory of the machine, which nothing may change.
type bait struct{ file, dir string }

func newBait(t *testing.T) bait {
	t.Helper()
	top := t.TempDir()
	b := bait{filepath.Join(top, "precious"), filepath.Join(top, "dir")}
	if err := errors.Join(os.WriteFile(b.file, []byte("untouched"), 0o600), os.Mkdir(b.dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b bait) assertWhole(t *testing.T, by string) {
	t.Helper()
	content, err := os.ReadFile(b.file)
	entries, derr := os.ReadDir(b.dir)
	if err != nil || derr != nil || string(content) != "untouched" || len(entries) > 0 {
		t.Errorf("%s changed the machine: %q, %v, %v %v", by, content, entries, err, derr)
	}
}

// hostile lists the known tricks of archives by name.
func (b bait) hostile() map[string][]tar.Header {
	up := strings.Repeat("../", 20)
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}
	}
	link := func(kind byte, name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Linkname: to, Mode: 0o777}
	}
	return map[string][]tar.Header{
		"dots":                     {file(up + b.file[1:])},
		"absolute name":            {file(b.file)},
		"through an absolute link": {link(tar.TypeSymlink, "out", b.dir), file("out/evil")},
		"through a relative link":  {link(tar.TypeSymlink, "out", up+b.dir[1:]), file("out/evil")},
		"onto a link":              {link(tar.TypeSymlink, "out", b.file), file("out")},
		"hard link":                {link(tar.TypeLink, "hard", b.file), file("hard")},
		"hard link by dots":        {link(tar.TypeLink, "hard", up+b.file[1:]), file("hard")},
		"magic link":               {link(tar.TypeSymlink, "root", "/proc/1/root"), file("root" + b.file)},
		"device":                   {{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 8}, {Name: "mem", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 1}},
	}
}

func packed(t *testing.T, headers []tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, "evil"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Archives with every known trick go into a container, an image and a build, through the whole daemon. They may be refused
// or land inside; the machine stays as it is, and the daemon goes on.
func TestHostileArchives(t *testing.T) {
	n := machine(t)
	n.Gantry(t, "run", "-d", "--name", "box", lab.Busybox, "sleep", "100000")
	for trick := range (bait{}).tricks() {
		t.Run(strings.ReplaceAll(trick, " ", "-"), func(t *testing.T) {
			b := newBait(t)
			archive := packed(t, b.hostile()[trick])
			copyIn(t, n, archive)
			b.assertWhole(t, "cp")
			if trick == "device" {
				noDevices(t, n, "box", "/tmp")
			}
			importLayer(t, n, archive)
			b.assertWhole(t, "an image")
			buildFrom(t, n, archive)
			b.assertWhole(t, "a build")
		})
	}
	works(t, n)
}

// tricks names what hostile makes.
func (bait) tricks() map[string][]tar.Header { return bait{"/x/precious", "/x/dir"}.hostile() }

func noDevices(t *testing.T, n *lab.Node, box, dir string) {
	t.Helper()
	if out := n.Gantry(t, "exec", box, "sh", "-c", "find "+dir+" -type b -o -type c"); strings.TrimSpace(out) != "" {
		t.Errorf("devices are there: %s", out)
	}
}

func copyIn(t *testing.T, n *lab.Node, archive []byte) {
	t.Helper()
	up := n.Client(t).Instances.CopyTo(t.Context())
	start := &gantryv1.CopyStart{Target: &gantryv1.InstanceTarget{Environment: "production", Target: "box"}, Path: "/tmp", Archive: true}
	for _, chunk := range []*gantryv1.CopyChunk{
		{Chunk: &gantryv1.CopyChunk_Start{Start: start}}, {Chunk: &gantryv1.CopyChunk_Data{Data: archive}},
	} {
		if err := up.Send(chunk); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	_, err := up.CloseAndReceive()
	t.Logf("cp: %v", err)
}

// importLayer imports an image whose second layer is the archive, and runs it.
func importLayer(t *testing.T, n *lab.Node, archive []byte) {
	t.Helper()
	base, err := tarball.ImageFromPath(lab.BusyboxArchive(t), nil)
	if err != nil {
		base = empty.Image
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	if err != nil {
		t.Fatal(err)
	}
	var image v1.Image
	if image, err = mutate.AppendLayers(base, layer); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "hostile.tar")
	if err := tarball.WriteToFile(path, name.MustParseReference("hostile:lab"), image); err != nil {
		t.Fatal(err)
	}
	if r := n.Try("image", "import", path); r.Code != 0 {
		t.Logf("import: %s", r.Stderr)
		return
	}
	// Devices of an image are files as others; what counts is that they cannot be opened.
	r := n.Try("run", "--rm", "hostile:lab", "sh", "-c", "for d in /disk /mem; do [ -e $d ] && head -c 1 $d >/dev/null 2>&1 && echo opened $d; done; true")
	if strings.Contains(r.Stdout, "opened") {
		t.Errorf("a device of an image can be opened: %s", r.Stdout)
	}
	t.Logf("run: %d %s", r.Code, r.Stderr)
}

// buildFrom sends the archive as the context of a build.
func buildFrom(t *testing.T, n *lab.Node, archive []byte) {
	t.Helper()
	up := n.Client(t).Images.Build(t.Context())
	chunk := func(name string, data []byte, end bool) *gantryv1.BuildInput {
		return &gantryv1.BuildInput{Input: &gantryv1.BuildInput_Chunk_{Chunk: &gantryv1.BuildInput_Chunk{Name: name, Data: data, End: end}}}
	}
	start := &gantryv1.BuildStart{
		Spec: &gantryv1.BuildSpec{Context: t.TempDir()}, Tags: []string{"built:lab"}, Offline: true,
		Dockerfile: fmt.Appendf(nil, "FROM %s\nCOPY . /in\n", lab.Busybox),
	}
	for _, m := range []*gantryv1.BuildInput{{Input: &gantryv1.BuildInput_Start{Start: start}}, chunk("context", archive, true), chunk("", nil, true)} {
		if err := up.Send(m); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	for {
		if _, err := up.Receive(); err != nil {
			t.Logf("build: %v", err)
			return
		}
	}
}
