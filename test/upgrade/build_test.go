package upgrade_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

// edit replaces a piece of a file that is there exactly once. A file of which nothing is replaced is a new one.
type edit struct{ file, old, new string }

// build makes programs from the repository with changes to the schema and the code, at most one per file of code, and returns
// their folder. The checkout stays as it is.
func build(t *testing.T, schema, code []edit) string {
	t.Helper()
	top, dir := lab.Top(t), t.TempDir()
	replaced := map[string]string{}
	for i, e := range code {
		replaced[filepath.Join(top, e.file)] = write(t, filepath.Join(dir, fmt.Sprint(i), "edited.go"), e.apply(t, top))
	}
	for path, generated := range generate(t, top, dir, schema) {
		replaced[path] = generated
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	for _, program := range entries(t, lab.Binaries(t)) { // what does not read the state stays
		if program != "gantryd" {
			link(t, filepath.Join(lab.Binaries(t), program), filepath.Join(bin, program))
		}
	}
	command(t, top, "go", "build", "-overlay", write(t, filepath.Join(dir, "overlay.json"), string(overlay)),
		"-ldflags", "-s -w -X main.version=other", "-o", filepath.Join(bin, "gantryd"), "./cmd/gantryd")
	return bin
}

// generate returns the generated files that differ, by the paths of those they replace.
func generate(t *testing.T, top, dir string, schema []edit) map[string]string {
	t.Helper()
	protos, out, plugins := filepath.Join(dir, "api"), filepath.Join(dir, "gen"), filepath.Join(dir, "plugins")
	var names []string
	for _, name := range entries(t, filepath.Join(top, "api/gantry/v1")) {
		names = append(names, "gantry/v1/"+name)
		text, err := os.ReadFile(filepath.Join(top, "api/gantry/v1", name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(protos, "gantry/v1", name), string(text))
	}
	for _, e := range schema {
		write(t, filepath.Join(protos, e.file), e.apply(t, protos))
	}
	command(t, top, "go", "build", "-o", plugins+"/", "google.golang.org/protobuf/cmd/protoc-gen-go")
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, protos, "protoc", append([]string{"-I", ".", "--plugin", filepath.Join(plugins, "protoc-gen-go"), "--go_out", out,
		"--go_opt=module=github.com/gantryd/gantry/api/gen"}, names...)...)
	files := map[string]string{}
	for _, name := range entries(t, filepath.Join(out, "gantry/v1")) {
		files[filepath.Join(top, "api/gen/gantry/v1", name)] = filepath.Join(out, "gantry/v1", name)
	}
	return files
}

func (e edit) apply(t *testing.T, top string) string {
	t.Helper()
	if e.old == "" {
		return e.new
	}
	text, err := os.ReadFile(filepath.Join(top, e.file))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), e.old); n != 1 {
		t.Fatalf("%s has %q %d times", e.file, e.old, n)
	}
	return strings.Replace(string(text), e.old, e.new, 1)
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func link(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(from, to); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
