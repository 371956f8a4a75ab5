package appname

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNameInComposeFile(t *testing.T) {
	for content, want := range map[string]struct {
		name  string
		plain bool
	}{
		"services: {}\n":                   {"", true},
		"name: shop\n":                     {"shop", true},
		"services:\n  a:\n    name: x\n":   {"", true},
		"a: b\nname: \"quoted\" # why\n":   {"quoted", true},
		"name: ${X:-y}\n":                  {"", false},
		"{\"name\": \"json\"}\n":           {"", false},
		"\"name\": quoted-key\n":           {"", false},
		"# name: not\nname:   spaced   \n": {"spaced", true},
	} {
		path := filepath.Join(t.TempDir(), "compose.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if name, plain, err := nameIn(path); name != want.name || plain != want.plain || err != nil {
			t.Errorf("%q: %q %v %v", content, name, plain, err)
		}
	}
}

func TestProjectName(t *testing.T) {
	for dir, want := range map[string]string{"My.Dir": "mydir", "_-x_y": "x_y", "Zürich 1": "zrich1"} {
		if got := projectName(dir); got != want {
			t.Errorf("%q: %q", dir, got)
		}
	}
}
