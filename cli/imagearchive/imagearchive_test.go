package imagearchive

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gantryd/gantry/fault"
)

func TestOpenPacksALayout(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); !fault.Is(err, fault.Invalid) {
		t.Errorf("a directory that is no layout: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var names []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, filepath.Base(h.Name))
	}
	if !slices.Contains(names, "oci-layout") {
		t.Errorf("the layout has %q", names)
	}
}
