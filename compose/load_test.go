package compose

import (
	"os"
	"path/filepath"
	"testing"
)

// project writes files into a new directory; the first one is loaded unless o names others.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load loads one compose.yaml as the app "shop".
func load(t testing.TB, yaml string) (*Project, error) {
	t.Helper()
	return Load(t.Context(), Options{ProjectDir: write(t, map[string]string{"compose.yaml": yaml}), ProjectName: "shop"})
}

func TestSmallest(t *testing.T) {
	p, err := load(t, "services:\n  web:\n    image: nginx\n    ports: ['8080:80']\n")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(p.Spec)
}
