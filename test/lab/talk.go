package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Talk is what containers of a test say to each other, by the program in the folder talk.
type Talk struct{ dir string }

// Said is one thing that happened to one of them.
type Said struct {
	At   time.Time
	What string // serves, told, ends; answer, failed; held, broken; names, unknown
	Text string // answer, held and broken begin with the host name of who answered, and the address that it saw
}

// NewTalk builds the program and makes the folder for what is said.
func NewTalk(t testing.TB) *Talk {
	t.Helper()
	talk := &Talk{dir: t.TempDir()}
	// Containers' roots are nobody on the host.
	for dir := talk.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Mkdir(talk.dir+"/said", 0o777))
	must(t, os.Chmod(talk.dir+"/said", 0o777))
	build := exec.Command("go", "build", "-o", talk.dir+"/talk", "./test/lab/talk")
	build.Dir, build.Env = Top(t), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return talk
}

// Mounts is the value of `volumes:` of a service that runs /talk and writes to /said.
func (k *Talk) Mounts() string { return fmt.Sprintf(`["%s/talk:/talk:ro", "%[1]s/said:/said"]`, k.dir) }

// Path is where the test finds a file of /said.
func (k *Talk) Path(name string) string { return filepath.Join(k.dir, "said", name) }

// Said is what was written to a file of /said, none if there is none.
func (k *Talk) Said(t testing.TB, name string) []Said {
	t.Helper()
	text, err := os.ReadFile(k.Path(name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []Said
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		at, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		nanos, err := strconv.ParseInt(at, 10, 64)
		must(t, err)
		what, more, _ := strings.Cut(rest, " ")
		out = append(out, Said{time.Unix(0, nanos), what, more})
	}
	return out
}

// All is what was written to all files of /said whose names match a pattern.
func (k *Talk) All(t testing.TB, pattern string) []Said {
	t.Helper()
	files, err := filepath.Glob(k.Path(pattern))
	must(t, err)
	var out []Said
	for _, file := range files {
		out = append(out, k.Said(t, filepath.Base(file))...)
	}
	return out
}

// By is the host name of who answered.
func (s Said) By() string {
	name, _, _ := strings.Cut(s.Text, " ")
	return name
}
