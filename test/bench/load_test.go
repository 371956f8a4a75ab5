package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

// TestDockerLoadsExports has Docker itself, from Debian's packages, read what `gantry image export` writes, and Gantry what
// Docker saves. Installing Docker takes a minute, so it is asked for: make docker-load.
func TestDockerLoadsExports(t *testing.T) {
	cache := os.Getenv("GANTRY_DOCKER")
	if cache == "" {
		t.Skip("GANTRY_DOCKER=DIR go test ./test/bench runs it, in the throw-away root DIR/docker")
	}
	network := lab.Network(t)
	n := network.AddNode(t, "")
	n.StartDaemon(t)
	n.ImportBusybox(t)
	n.Gantry(t, "image", "tag", lab.Busybox, "second:name")
	d := startDocker(t, network.AddNode(t, ""), cache)
	path := filepath.Join(d.share, "export.tar")
	n.Gantry(t, "image", "export", lab.Busybox, "second:name", "-o", path)
	docker := func(args ...string) string {
		t.Helper()
		out, err := d.command(args...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	docker("load", "--input", path)
	for _, image := range []string{lab.Busybox, "second:name"} {
		if out := docker("run", "--rm", "--network", "none", image, "echo", "runs in Docker"); !strings.Contains(out, "runs in Docker") {
			t.Errorf("%s: %q", image, out)
		}
	}
	back := filepath.Join(d.share, "saved.tar")
	docker("tag", lab.Busybox, "from:docker")
	docker("save", "--output", back, "from:docker")
	n.Gantry(t, "image", "import", back)
	if out := n.Gantry(t, "run", "--rm", "from:docker", "echo", "runs in Gantry"); !strings.Contains(out, "runs in Gantry") {
		t.Errorf("%q", out)
	}
}
