package lab

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is the name of the image that BusyboxArchive holds: one static program with all its applets, command sh.
const Busybox = "busybox:lab"

// BusyboxArchive writes the image Busybox as a docker-archive and returns its path.
func BusyboxArchive(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "busybox.tar")
	WriteImage(t, path, Busybox, nil)
	return path
}

// WriteImage writes a docker-archive of an image like Busybox by another name, with further files in a layer of their own.
func WriteImage(t testing.TB, path, reference string, files map[string][]byte) {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("the lab's image needs the package busybox-static")
	}
	layers := [][]byte{busyboxRootfs(t, program)}
	if files != nil {
		layers = append(layers, layerOf(t, files))
	}
	image := empty.Image
	for _, text := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil })
		must(t, err)
		image, err = mutate.AppendLayers(image, layer)
		must(t, err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64",
		RootFS: rootfsOf(t, image),
		Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}},
	})
	must(t, err)
	tag, err := name.NewTag(reference)
	must(t, err)
	must(t, tarball.WriteToFile(path, tag, image))
}

func layerOf(t testing.TB, files map[string][]byte) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, body := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}))
		_, err := w.Write(body)
		must(t, err)
	}
	must(t, w.Close())
	return out.Bytes()
}

func rootfsOf(t testing.TB, image v1.Image) v1.RootFS {
	config, err := image.ConfigFile()
	must(t, err)
	return config.RootFS
}

func busyboxRootfs(t testing.TB, program string) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(header tar.Header, body []byte) {
		header.Size = int64(len(body))
		must(t, w.WriteHeader(&header))
		_, err := w.Write(body)
		must(t, err)
	}
	for dir, mode := range map[string]int64{"bin/": 0o755, "etc/": 0o755, "root/": 0o700, "tmp/": 0o1777, "var/": 0o755, "home/": 0o755} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	text, err := os.ReadFile(program)
	must(t, err)
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, text)
	applets, err := exec.Command(program, "--list").Output()
	must(t, err)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
		}
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nnogroup:x:65534:\n"))
	must(t, w.Close())
	return out.Bytes()
}
