package atomicfile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// TestReadFindsDamage flips every bit of a file, and cuts it at every length.
func TestReadFindsDamage(t *testing.T) {
	path := written(t, "content of a record")
	whole, err := atomicfile.Read(path)
	if err != nil || string(whole) != "content of a record" {
		t.Fatalf("%q, %v", whole, err)
	}
	if n, err := unix.Getxattr(path, atomicfile.Attribute, nil); err != nil || n != 64 {
		t.Skipf("%s has no attributes: %v", filepath.Dir(path), err)
	}
	for i := range len(whole) * 8 {
		damaged := bytes.Clone(whole)
		damaged[i/8] ^= 1 << (i % 8)
		refused(t, path, damaged)
	}
	for i := range whole {
		refused(t, path, whole[:i])
	}
	overwrite(t, path, whole)
	if _, err := atomicfile.Read(path); err != nil {
		t.Errorf("mended: %v", err)
	}
}

// TestReadBelievesOthers reads a file that was changed by hand, as the hint says.
func TestReadBelievesOthers(t *testing.T) {
	path := written(t, "before")
	overwrite(t, path, []byte("after"))
	if err := unix.Removexattr(path, atomicfile.Attribute); err != nil {
		t.Skipf("%s has no attributes: %v", filepath.Dir(path), err)
	}
	if got, err := atomicfile.Read(path); err != nil || string(got) != "after" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestReadOfNothing(t *testing.T) {
	if _, err := atomicfile.Read(filepath.Join(t.TempDir(), "missing")); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
}

func written(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "record")
	if err := atomicfile.Write(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// overwrite changes a file as a disk does, without its attributes.
func overwrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTidy(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".new-123", "kept"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := atomicfile.Tidy(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "kept" {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := atomicfile.Tidy(filepath.Join(dir, "none")); err != nil {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func refused(t *testing.T, path string, content []byte) {
	t.Helper()
	overwrite(t, path, content)
	if _, err := atomicfile.Read(path); !fault.Is(err, fault.Corrupt) || !strings.Contains(fault.HintOf(err), path) {
		t.Fatalf("%q was read: %v", content, err)
	}
}
