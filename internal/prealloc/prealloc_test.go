package prealloc

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func taken(t *testing.T, path string) (size, disk int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size(), info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spare")
	if err := File(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	if size, disk := taken(t, path); size != 1<<20 || disk < 1<<20 {
		t.Errorf("%d bytes, %d on disk", size, disk)
	}
	if err := File(path, 1<<60); err == nil {
		t.Error("there is room for 2^60 bytes")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("what could not be made whole is left: %v", err)
	}
}

// TestAhead takes room for holes and beyond the end, and keeps it when the file grows.
func TestAhead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil { // a hole
		t.Fatal(err)
	}
	end, err := Ahead(path, 1<<20, 2<<20)
	if err != nil || end != 3<<20 {
		t.Fatalf("allocated to %d: %v", end, err)
	}
	if size, disk := taken(t, path); size != 1<<20 || disk < 3<<20 {
		t.Errorf("%d bytes, %d on disk", size, disk)
	}
	if err := os.Truncate(path, 2<<20); err != nil {
		t.Fatal(err)
	}
	if size, disk := taken(t, path); size != 2<<20 || disk < 3<<20 {
		t.Errorf("after it has grown: %d bytes, %d on disk", size, disk)
	}
	if end, err := Ahead(path, 1<<20, 1<<60); err != nil || end != 3<<20 {
		t.Errorf("where only the least fits: %d, %v", end, err)
	}
	if _, err := Ahead(path+".not", 1, 1); !os.IsNotExist(err) {
		t.Errorf("of a file that is not there: %v", err)
	}
}
