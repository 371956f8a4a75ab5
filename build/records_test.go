package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/util/leaseutil"
)

const bootDockerfile = "FROM busybox\nRUN echo x > /x\n"

// leaseCount is how many leases hold the cache.
func leaseCount(t *testing.T, r *rig) int {
	t.Helper()
	all, err := leaseutil.WithNamespace(r.client.LeasesService(), Namespace).List(t.Context(), flatLease)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestCacheAfterAnotherBoot builds in a process of its own, as BuildKit remembers things about a cache per process.
func TestCacheAfterAnotherBoot(t *testing.T) {
	requirements(t)
	for _, c := range []struct {
		name, mode string
		otherBoot  bool
		cached     bool
	}{
		{"closed before", "close", false, true},
		{"process killed", "exit", false, true},
		{"machine died", "exit", true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), exe, childArg, dir, c.mode).Output(); err != nil || string(out) != "ended: <nil>\n" {
				t.Fatalf("the child: %s %v", out, err)
			}
			marker := filepath.Join(dir, "build", markerFile)
			if _, err := os.Stat(marker); (err == nil) == (c.mode == "close") {
				t.Errorf("the marker is there: %v", err == nil)
			}
			if c.otherBoot {
				write(t, marker, "another boot\n")
				if err := os.WriteFile(filepath.Join(dir, "build", recordsFile), []byte("torn"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			checkCache(t, dir, c.cached)
		})
	}
}

func checkCache(t *testing.T, dir string, cached bool) {
	t.Helper()
	r, err := openRig(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	if n := leaseCount(t, r); (n > 0) != cached {
		t.Errorf("%d leases hold the cache", n)
	}
	out := r.build(t, bootDockerfile, nil)
	equal(t, "cached", out.vertices["[2/2] RUN echo x > /x"].GetCached(), cached)
	equal(t, "the image", r.file(t, full(t), "x"), "x\n")
}
