package cluster_test

import (
	"archive/tar"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/gantryd/gantry/test/lab"
)

// largeImage is the name of the image that largeArchive makes.
const largeImage = "large:lab"

// largeArchive writes busybox with further layers of noise, that many MiB together, as a docker-archive.
func largeArchive(t *testing.T, mib int) string {
	t.Helper()
	const layers = 4
	image, err := tarball.ImageFromPath(lab.BusyboxArchive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return noiseLayer(i, mib<<20/layers), nil },
			tarball.WithCompressionLevel(1))
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "large.tar")
	tag, err := name.NewTag(largeImage)
	if err == nil {
		err = tarball.WriteToFile(path, tag, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// noiseLayer is a tar stream with one file that cannot be compressed.
func noiseLayer(i, size int) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("noise%d", i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)})
		if err == nil {
			_, err = io.CopyN(tw, rand.NewChaCha8([32]byte{byte(i)}), int64(size))
		}
		if err == nil {
			err = tw.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

// sentBytes is how much a machine has sent over its cable.
func sentBytes(t *testing.T, n *lab.Node) int64 {
	t.Helper()
	text := n.Exec(t, "sh", "-c", "cat /sys/class/net/eth0/statistics/tx_bytes")
	v, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestImageWithoutRegistry imports an image on one machine of five and runs it on all: the source sends it about once.
// GANTRY_IMAGE_MIB=1024 is the goal's own size.
func TestImageWithoutRegistry(t *testing.T) {
	mib := 96
	if v := os.Getenv("GANTRY_IMAGE_MIB"); v != "" {
		var err error
		if mib, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 4})
	source := c.Node(0)
	source.Gantry(t, "image", "import", largeArchive(t, mib))
	before := sentBytes(t, source)
	begin := time.Now()
	compose := fmt.Sprintf("services:\n  web:\n    image: %s\n    pull_policy: never\n    command: sleep infinity\n    deploy:\n      mode: global\n", largeImage)
	source.GantryIn(t, lab.Project(t, compose), "up", "-d")
	source.AwaitReady(t, "web", 5)
	took := time.Since(begin)
	sent := sentBytes(t, source) - before
	t.Logf("%d MiB on 4 further machines in %s; the source sent %.2f times its size", mib, took.Round(time.Millisecond), float64(sent)/float64(mib<<20))
	if sent < int64(mib)<<20 || sent > int64(mib)<<20*13/10 {
		t.Errorf("the source sent %d bytes of an image of %d MiB", sent, mib)
	}
	for _, n := range c.Nodes() {
		if got := n.Exec(t, "sh", "-c", "ls "+filepath.Join(n.Root(), "engine/containerd/io.containerd.content.v1.content/ingest")+" | wc -l"); strings.TrimSpace(got) != "0" {
			t.Errorf("%s keeps %s unfinished downloads", n.Name(), strings.TrimSpace(got))
		}
	}
}

// TestImageSourceDiesInTheMiddle stops the only machine that has an image while it sends; the others run the image once it is
// back.
func TestImageSourceDiesInTheMiddle(t *testing.T) {
	heavy(t)
	c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 3})
	source := c.Node(0)
	source.Gantry(t, "image", "import", largeArchive(t, 256))
	before := sentBytes(t, source)
	compose := fmt.Sprintf("services:\n  web:\n    image: %s\n    command: sleep infinity\n    deploy:\n      mode: global\n", largeImage)
	source.GantryIn(t, lab.Project(t, compose), "up", "--detach")
	lab.Eventually(t, time.Minute, "the source sends", func() error {
		if sentBytes(t, source)-before < 32<<20 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	source.KillDaemon(t)
	source.StartDaemon(t)
	source.AwaitReady(t, "web", 4)
	if sent := sentBytes(t, source) - before; sent > 2*256<<20 {
		t.Errorf("the source sent %d MiB of an image of 256", sent>>20)
	}
}

// TestImageOfFormerLeader imports an image on the leader, lets another lead, and uses the image there by its name: to run, to
// build on, to give it a further name. No registry can be reached.
func TestImageOfFormerLeader(t *testing.T) {
	heavy(t)
	c := lab.Form(t, lab.Shape{Servers: 3})
	old := c.Leader(t)
	old.Gantry(t, "image", "import", lab.BusyboxArchive(t))
	old.KillDaemon(t)
	next := c.Leader(t, c.Except(old)...)
	old.StartDaemon(t)
	c.AwaitNodes(t, 3)
	compose := "services:\n  web:\n    build: .\n    command: sleep infinity\n    deploy:\n      mode: global\n"
	dir := lab.Project(t, compose, "Dockerfile", "FROM "+lab.Busybox+"\nRUN echo built > /built\n")
	lab.Eventually(t, time.Minute, "the other servers know the image", func() error {
		if r := next.TryIn(dir, "build"); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})
	next.GantryIn(t, dir, "up", "--detach")
	next.AwaitReady(t, "web", 3)
	next.Gantry(t, "image", "tag", lab.Busybox, "again:lab")
}
