package engine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
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
	_, err := unix.Getxattr(volume, "trusted.gantry.filling", nil)
	return err == nil
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
			files = len(entries)
		}
		d.kill()
		if entries, err := os.ReadDir(volume); err == nil && len(entries) < filesToCopy {
			if !isFilling(volume) {
				t.Fatalf("%d of %d files, and nothing says so", len(entries), filesToCopy)
			}
			return volume
		}
	}
	t.Fatal("no kill came in time")
	return ""
}

// TestAVolumeThatNobodyFilledIsEmpty has a half-filled volume mounted by one that does not want the image's content.
func TestAVolumeThatNobodyFilledIsEmpty(t *testing.T) {
	e := enginetest.Open(t)
	fullImage(t, e)
	volume := t.TempDir()
	if err := unix.Setxattr(volume, "trusted.gantry.filling", []byte("1"), 0); err != nil {
		t.Skip("no such attributes here: ", err)
	}
	if err := os.WriteFile(filepath.Join(volume, "half"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := fullVolume("c", volume)
	r.Mounts[0].CopyUp = false
	if out := output(t, e, r); out != "0\n" || isFilling(volume) {
		t.Errorf("files: %q, half filled: %v", out, isFilling(volume))
	}
}
