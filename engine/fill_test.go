package engine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// filesToCopy is how many files the image of the tests below has for its volume: enough to be killed in their midst.
const filesToCopy = 3000

const fullName = "docker.io/library/full:test"

func fullImage(t *testing.T, e *engine.Engine) {
	t.Helper()
	layer := append(enginetest.BusyboxLayer(t), enginetest.Dir("full/", 0o755, 0, 0))
	for i := range filesToCopy {
		layer = append(layer, enginetest.FileEntry(fmt.Sprintf("full/%04d", i), 0o644, 0, 0, "content"))
	}
	enginetest.Image(t, e, fullName, imagespec.ImageConfig{Cmd: []string{"sh"}}, layer)
}

// fullVolume asks for a container that fills a volume.
func fullVolume(id, volume string) engine.CreateRequest {
	return engine.CreateRequest{ID: id, Spec: enginetest.Spec(fullName, "ls /full | wc -l"), Mounts: []engine.Mount{
		{Type: engine.MountVolume, Source: volume, Target: "/full", CopyUp: true},
	}}
}

func isFilling(volume string) bool {
	left, _ := filepath.Glob(filepath.Join(volume, ".gantry-*"))
	return len(left) > 0
}

// TestAFillThatWasCutShortIsDoneAgain kills a daemon while it copies the image's files into a volume.
func TestAFillThatWasCutShortIsDoneAgain(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	fullImage(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	volume := cutShort(t, o)
	e = enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	if out := output(t, e, fullVolume("again", volume)); out != fmt.Sprintln(filesToCopy) {
		t.Errorf("files in the volume: %q", out)
	}
	if isFilling(volume) {
		t.Error("the volume still passes as half filled")
	}
	assertOnly(t, e, o, "")
	// Now it is the container's: what it removes stays removed.
	if err := os.Remove(filepath.Join(volume, "0000")); err != nil {
		t.Fatal(err)
	}
	if out := output(t, e, fullVolume("later", volume)); out != fmt.Sprintln(filesToCopy-1) {
		t.Errorf("files in the volume later on: %q", out)
	}
}

// cutShort returns a volume whose filling was cut short by a kill.
func cutShort(t *testing.T, o engine.Options) string {
	t.Helper()
	for range 20 {
		volume := t.TempDir()
		d := startDaemon(t, o)
		fmt.Fprintln(d.in, "fill", volume)
		for files := 0; files < 10; {
			entries, err := os.ReadDir(volume)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range entries {
				part, err := os.ReadDir(filepath.Join(volume, d.Name()))
				if err == nil {
					files = len(part)
				}
			}
		}
		d.kill()
		if entries, err := os.ReadDir(volume); err == nil && len(entries) < filesToCopy {
			if !isFilling(volume) {
				t.Fatalf("%d of %d files, and nothing says so", len(entries), filesToCopy)
			}
			t.Logf("killed with %v in the volume", entries)
			return volume
		}
	}
	t.Fatal("no kill came in time")
	return ""
}

// TestWhatOthersWroteIsKept settles copies that were cut short in volumes that somebody has written to meanwhile.
func TestWhatOthersWroteIsKept(t *testing.T) {
	e := enginetest.Open(t)
	fullImage(t, e)
	for name, c := range map[string]struct {
		left   string
		wanted bool
		want   string
	}{
		"half, then filled":       {left: ".gantry-filling", wanted: true, want: fmt.Sprintln(filesToCopy)},
		"half, not wanted":        {left: ".gantry-filling", want: "0\n"},
		"whole, then moved":       {left: ".gantry-filled", wanted: true, want: "2\n"},
		"whole, not wanted":       {left: ".gantry-filled", want: "2\n"},
		"whole, beside others'":   {left: ".gantry-filled", wanted: true, want: "3\n"},
		"half, beside others'":    {left: ".gantry-filling", wanted: true, want: "1\n"},
		"nothing, beside others'": {wanted: true, want: "1\n"},
	} {
		volume := t.TempDir()
		if c.left != "" {
			for _, f := range []string{"a", "b"} {
				writeFile(t, filepath.Join(volume, c.left, f), "the image's\n")
			}
		}
		if strings.Contains(name, "others") {
			writeFile(t, filepath.Join(volume, "mine"), "mine\n")
			if c.left == ".gantry-filled" {
				writeFile(t, filepath.Join(volume, "a"), "mine\n")
			}
		}
		r := fullVolume("c", volume)
		r.Mounts[0].CopyUp = c.wanted
		if out := output(t, e, r); out != c.want || isFilling(volume) {
			t.Errorf("%s: files: %q, want %q; half filled: %v", name, out, c.want, isFilling(volume))
		}
		if b, err := os.ReadFile(filepath.Join(volume, "a")); err == nil && strings.Contains(name, "others") && string(b) != "mine\n" {
			t.Errorf("%s: what was mine is %q", name, b)
		}
	}
}

// TestAFillFollowsNoLinks has a container of the same volume put a link in the way of the copy.
func TestAFillFollowsNoLinks(t *testing.T) {
	e := enginetest.Open(t)
	fullImage(t, e)
	volume, outside := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "f"), "the machine's\n")
	for _, name := range []string{".gantry-filled", ".gantry-filling"} {
		if err := os.Symlink(outside, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out := output(t, e, fullVolume("c", volume)); out != fmt.Sprintln(filesToCopy) {
		t.Errorf("files: %q", out)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside of the volume: %v, %v", entries, err)
	}
	if isFilling(volume) {
		t.Error("the links are left")
	}
}
