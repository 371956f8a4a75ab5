package build

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestContextDirectoriesAreKeptAndBounded(t *testing.T) {
	b := &Builder{opts: Options{Root: t.TempDir(), Run: t.TempDir()}, inUse: map[string]bool{}}
	take := func(key string) (string, func()) {
		t.Helper()
		dir, release, err := b.ContextDir(key)
		if err != nil {
			t.Fatal(err)
		}
		return dir, release
	}
	one, release := take("a")
	two, releaseTwo := take("a")
	if one == two {
		t.Fatal("two builds share a directory")
	}
	write(t, filepath.Join(one, "f"), "x")
	releaseTwo()
	release()
	if _, err := os.Stat(two); err == nil {
		t.Error("the second directory stays")
	}
	again, release := take("a")
	equal(t, "directory", again, one)
	if _, err := os.Stat(filepath.Join(again, "f")); err != nil {
		t.Error(err)
	}
	for i := range keptContexts + 5 {
		_, done := take(fmt.Sprint(i))
		done()
	}
	if _, err := os.Stat(one); err != nil {
		t.Error("a directory in use was dropped")
	}
	release()
	entries, err := os.ReadDir(filepath.Join(b.opts.Root, "contexts"))
	if err != nil || len(entries) > keptContexts+1 {
		t.Errorf("%d directories are kept, %v", len(entries), err)
	}
}
