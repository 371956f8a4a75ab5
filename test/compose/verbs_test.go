package compose_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// reads does what is typed, line by line, without an editor of its own. Ctrl-C ends what it does and not itself.
const reads = `trap : INT; while read -r line; do eval "$line"; done`

// TestTerminals works in containers from a terminal: its size, its keys, leaving and coming back, how the process ends.
func TestTerminals(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)

	t.Run("run -it", func(t *testing.T) {
		l := beginOnTerminal(t, n, 31, 97, "run", "-it", "--rm", lab.Busybox, "sh", "-c", "stty size; tty; "+reads)
		l.await(t, "31 97\r\n/dev/pts/0")
		l.resize(t, 40, 100)
		l.awaitSize(t, "40 100")
		l.put(t, "echo it $((1+1)); sleep 100000; echo sleep ended with $?\n")
		l.await(t, "it 2")
		l.put(t, "\x03")
		l.await(t, "sleep ended with 130")
		l.put(t, "exit 7\n")
		l.ends(t, 7)
	})
	t.Run("exec -it", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "box", lab.Busybox, "sleep", "100000")
		l := beginOnTerminal(t, n, 20, 66, "exec", "-it", "box", "sh", "-c", "stty size; read word; echo got $word; exit 5")
		l.await(t, "20 66")
		l.put(t, "typed\n")
		l.await(t, "got typed")
		l.ends(t, 5)
		l = beginOnTerminal(t, n, 20, 66, "exec", "-T", "box", "sh", "-c", "tty; exit 6")
		l.ends(t, 6)
		if !strings.Contains(l.said(), "not a tty") {
			t.Errorf("-T: %q", l.said())
		}
	})
	t.Run("attach", func(t *testing.T) {
		n.Gantry(t, "run", "-dit", "--name", "shell", lab.Busybox, "sh", "-c", reads)
		l := beginOnTerminal(t, n, 25, 77, "attach", "shell")
		l.awaitSize(t, "25 77")
		l.put(t, "word=kept; echo $((40+1))\n")
		l.await(t, "41")
		l.put(t, "\x10\x11")
		l.ends(t, 0)
		if !strings.Contains(l.said(), "\r\ndetached\r\n") {
			t.Errorf("detached: %q", l.said())
		}
		l = beginOnTerminal(t, n, 25, 77, "attach", "shell")
		l.put(t, "echo $word $((6*7)); exit 3\n")
		l.await(t, "kept 42")
		l.ends(t, 3)
	})
	t.Run("attach without a terminal", func(t *testing.T) {
		n.Gantry(t, "run", "-di", "--name", "reader", lab.Busybox, "sh", "-c", "read word; echo got $word; exit 4")
		l := begin(t, n, "", "attach", "reader")
		l.put(t, "piped\n")
		l.await(t, "got piped")
		l.ends(t, 4)
	})
}

// TestWhatGoesOn follows logs, events and figures while they are made.
func TestWhatGoesOn(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)

	t.Run("logs -f", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "teller", lab.Busybox, "sh", "-c", "echo first; until [ -e /go ]; do sleep 0.1; done; echo last; exit 3")
		l := begin(t, n, "", "logs", "-f", "teller")
		l.await(t, "first")
		n.Gantry(t, "exec", "teller", "touch", "/go")
		l.ends(t, 0)
		if l.said() != "first\nlast\n" {
			t.Errorf("it says %q", l.said())
		}
	})
	t.Run("events", func(t *testing.T) {
		l := begin(t, n, "", "events", "-o", "json")
		// What happens before it listens is not told: until one event is, another is made.
		lab.Eventually(t, time.Minute, "an event", func() error {
			n.Gantry(t, "run", "--rm", lab.Busybox, "true")
			if l.said() == "" {
				return fmt.Errorf("none")
			}
			return nil
		})
		n.Gantry(t, "run", "-d", "--name", "star", lab.Busybox, "sh", "-c", "exit 3")
		var got []string
		lab.Eventually(t, time.Minute, "the end of the last one", func() error {
			got = actions(t, l.said(), "star")
			if len(got) == 0 || got[len(got)-1] != "die" {
				return fmt.Errorf("%s", l.said())
			}
			return nil
		})
		if strings.Join(got, " ") != "create start die" {
			t.Errorf("its events are %v", got)
		}
		l.interrupt(t)
		l.ends(t, 130)
	})
	t.Run("stats", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "busy", lab.Busybox, "sh", "-c", "while :; do :; done")
		l := begin(t, n, "", "stats", "-o", "json", "busy")
		lab.Eventually(t, time.Minute, "three samples", func() error {
			if strings.Count(l.said(), "\n") < 3 {
				return fmt.Errorf("%q", l.said())
			}
			return nil
		})
		for _, line := range strings.SplitAfterN(l.said(), "\n", 4)[:3] {
			var sample map[string]any
			if err := json.Unmarshal([]byte(line), &sample); err != nil || !strings.Contains(line, "memory") {
				t.Errorf("%q: %v", line, err)
			}
		}
		n.Gantry(t, "rm", "-f", "busy")
		l.interrupt(t)
		<-l.done
	})
	t.Run("wait", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "late", lab.Busybox, "sh", "-c", "until [ -e /go ]; do sleep 0.1; done; exit 9")
		l := begin(t, n, "", "wait", "late")
		n.Gantry(t, "exec", "late", "touch", "/go")
		l.ends(t, 0)
		if l.said() != "9\n" {
			t.Errorf("it says %q", l.said())
		}
	})
}

// actions lists what happened to an instance of that name.
func actions(t *testing.T, lines, name string) (got []string) {
	t.Helper()
	for scan := bufio.NewScanner(strings.NewReader(lines)); scan.Scan(); {
		var e struct {
			Action     string
			Attributes struct{ Name string }
		}
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			continue // of the last line only a part may be there yet
		}
		if e.Attributes.Name == name {
			got = append(got, e.Action)
		}
	}
	return got
}

// TestKept makes, lists and removes images, volumes, secrets and configs, and uses them from apps that did not make them.
func TestKept(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	t.Run("image export, rm, import", func(t *testing.T) { imagesComeAndGo(t, n) })
	t.Run("external", func(t *testing.T) { external(t, n) })
	t.Run("volume prune", func(t *testing.T) { volumesArePruned(t, n) })
	t.Run("down -v", func(t *testing.T) { dataGoes(t, n) })
}

func imagesComeAndGo(t *testing.T, n *lab.Node) {
	archive := filepath.Join(t.TempDir(), "image.tar")
	n.Gantry(t, "image", "export", lab.Busybox, "-o", archive)
	n.Gantry(t, "image", "rm", lab.Busybox)
	if got := n.Try("run", "--rm", "--pull", "never", lab.Busybox, "true"); got.Code != 125 {
		t.Fatalf("the image is there after rm: exit %d, %s", got.Code, got.Stderr)
	}
	if got := n.Gantry(t, "image", "import", archive); !strings.Contains(got, lab.Busybox) {
		t.Errorf("import says %q", got)
	}
	if got := n.Gantry(t, "run", "--rm", "--pull", "never", lab.Busybox, "echo", "back"); got != "back\n" {
		t.Errorf("run says %q", got)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "Dockerfile"), "FROM scratch\nCOPY Dockerfile /made\nENV A=b\n")
	n.Gantry(t, "build", "-q", "-t", "told:1", dir)
	steps := strings.Split(strings.TrimSpace(n.Gantry(t, "image", "history", "told:1")), "\n")
	if len(steps) != 3 || !strings.Contains(steps[1], "ENV A=b") || !strings.Contains(steps[2], "COPY Dockerfile /made") {
		t.Errorf("the history, newest first:\n%s", strings.Join(steps, "\n"))
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const owner = `
name: owner
services:
  server:
    image: busybox:lab
    command: sh -c 'mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w'
    stop_grace_period: 100ms
    networks: [between, inner]
networks: {between: {name: between}, inner: {}}
`

const guest = `
name: guest
services:
  uses:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    networks: [between]
    secrets: [pw]
    configs: [{source: conf, target: /etc/conf}]
    volumes: [shared:/shared]
secrets: {pw: {external: true}}
configs: {conf: {external: true}}
volumes: {shared: {external: true}}
networks: {between: {external: true}}
`

// external runs an app all of whose secrets, configs, volumes and networks were there before it, and are after it.
func external(t *testing.T, n *lab.Node) {
	dir := lab.Project(t, guest)
	kept := []struct{ noun, name, make string }{
		{"network", "between", ""}, {"volume", "shared", ""}, {"secret", "pw", "hunter2"}, {"config", "conf", "plain words"},
	}
	for _, k := range kept {
		got := n.TryIn(dir, "up", "--timeout", "60s")
		if got.Code != 1 || !strings.Contains(got.Stderr, k.name) || !strings.Contains(got.Stderr, "hint: ") {
			t.Errorf("up without the %s: exit %d, %s", k.noun, got.Code, got.Stderr)
		}
		switch {
		case k.make != "":
			file := filepath.Join(t.TempDir(), k.name)
			write(t, file, k.make)
			n.Gantry(t, k.noun, "create", k.name, file)
		case k.noun == "volume":
			n.Gantry(t, "volume", "create", k.name)
			n.Gantry(t, "run", "--rm", "-v", "shared:/d", lab.Busybox, "sh", "-c", "echo before >/d/file")
		case k.noun == "network":
			n.GantryIn(t, lab.Project(t, owner), "up", "--timeout", "60s")
		}
		if list := n.Gantry(t, k.noun, "ls"); !strings.Contains(list, k.name) || k.make != "" && strings.Contains(list, k.make) {
			t.Errorf("%s ls:\n%s", k.noun, list)
		}
	}
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	for ask, want := range map[string]string{
		"cat /run/secrets/pw": "hunter2", "cat /etc/conf": "plain words", "cat /shared/file": "before\n",
		`printf 'GET / HTTP/1.0\r\n\r\n' | nc server.owner 80 | tail -1`: "page\n",
	} {
		if got := n.TryIn(dir, "exec", "uses", "sh", "-c", ask); got.Stdout != want {
			t.Errorf("%s: %q, %s", ask, got.Stdout, got.Stderr)
		}
	}
	for _, k := range kept[1:] {
		if got := n.Try(k.noun, "rm", k.name); got.Code != 1 || !strings.Contains(got.Stderr, "guest") {
			t.Errorf("%s rm while it is used: exit %d, %s", k.noun, got.Code, got.Stderr)
		}
	}
	n.GantryIn(t, dir, "down", "-v")
	onNetwork(t, n)
	if got := n.Gantry(t, "run", "--rm", "-v", "shared:/d", lab.Busybox, "cat", "/d/file"); got != "before\n" {
		t.Errorf("after down -v the volume of others has %q", got)
	}
	awaitNone(t, n, "owner/server.1")
	for _, k := range kept[1:] {
		n.Gantry(t, k.noun, "rm", k.name)
		if list := n.Gantry(t, k.noun, "ls"); strings.Contains(list, k.name) {
			t.Errorf("%s ls after rm:\n%s", k.noun, list)
		}
	}
	n.Gantry(t, "down", "-p", "owner")
}

// onNetwork joins networks of an app by their names.
func onNetwork(t *testing.T, n *lab.Node) {
	const ask = `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 %s 80 | tail -1`
	for _, network := range []string{"between", "owner/inner"} {
		if got := n.Gantry(t, "run", "--rm", "--network", network, lab.Busybox, "sh", "-c", fmt.Sprintf(ask, "server.owner")); got != "page\n" {
			t.Errorf("run --network %s: %q", network, got)
		}
	}
	if got := n.Gantry(t, "run", "--rm", "--app", "owner", "--network", "owner/inner", lab.Busybox, "sh", "-c", fmt.Sprintf(ask, "server")); got != "page\n" {
		t.Errorf("run --app owner: %q", got)
	}
	address := n.Instance(t, "server.1").Status.Address
	if got := n.Try("run", "--rm", lab.Busybox, "sh", "-c", fmt.Sprintf(ask, address)); strings.Contains(got.Stdout, "page") {
		t.Errorf("without --network %s answers %q", address, got.Stdout)
	}
	if got := n.Try("run", "--rm", "--network", "nowhere", lab.Busybox, "true"); got.Code != 125 || !strings.Contains(got.Stderr, "nowhere") {
		t.Errorf("--network nowhere: exit %d, %s", got.Code, got.Stderr)
	}
}

// awaitNone waits until no instances are left but these.
func awaitNone(t *testing.T, n *lab.Node, but ...string) {
	t.Helper()
	lab.Eventually(t, time.Minute, "no instance", func() error {
		for _, view := range n.Instances(t) {
			if name := view.Instance.App + "/" + lab.Name(view); !slices.Contains(but, name) {
				return fmt.Errorf("%s is there", name)
			}
		}
		return nil
	})
}

func volumesArePruned(t *testing.T, n *lab.Node) {
	anonymous := filepath.Join(n.Root(), "volumes/data/*/of-no-name")
	n.Gantry(t, "volume", "create", "named")
	n.Gantry(t, "volume", "create", "used")
	n.Gantry(t, "run", "--name", "holder", "-v", "/anonymous", "-v", "used:/used", lab.Busybox, "sh", "-c", "touch /anonymous/of-no-name")
	if files, err := filepath.Glob(anonymous); len(files) != 1 {
		t.Errorf("the anonymous volume: %v, %v", files, err)
	}
	if got := n.Try("volume", "prune"); got.Code != 1 || !strings.Contains(got.Stderr, "--force") {
		t.Errorf("prune asks nobody: exit %d, %s", got.Code, got.Stderr)
	}
	if got := n.Try("volume", "prune", "-f"); got.Stdout != "" || !strings.Contains(got.Stderr, "0 volumes removed") || !strings.Contains(got.Stderr, "prune -a") {
		t.Errorf("prune of anonymous ones: %+v", got)
	}
	if got := n.Gantry(t, "volume", "prune", "-f", "-a"); got != "named\n" {
		t.Errorf("prune -a removes %q", got)
	}
	n.Gantry(t, "rm", "holder")
	awaitNone(t, n)
	if files, err := filepath.Glob(anonymous); len(files) != 0 {
		t.Errorf("an anonymous volume without its instance: %v, %v", files, err)
	}
	n.Gantry(t, "volume", "prune", "-f", "-a")
	if got := n.Gantry(t, "volume", "ls", "-q"); got != "" {
		t.Errorf("after prune -a: %q", got)
	}
}

const withData = `
name: kept
services:
  box: {image: "busybox:lab", command: sleep 100000, stop_grace_period: 100ms, volumes: ["data:/d"]}
volumes: {data: {}}
`

func dataGoes(t *testing.T, n *lab.Node) {
	dir := lab.Project(t, withData)
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	n.GantryIn(t, dir, "exec", "box", "sh", "-c", "echo word >/d/file")
	n.GantryIn(t, dir, "down")
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	if got := n.GantryIn(t, dir, "exec", "box", "cat", "/d/file"); got != "word\n" {
		t.Errorf("after down and up: %q", got)
	}
	where := regexp.MustCompile(`"/[^"]*/volumes/[^"]*"`).FindString(n.Gantry(t, "volume", "inspect", "kept/data"))
	path := strings.Trim(where, `"`)
	if text, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(text) != "word\n" {
		t.Fatalf("the data is not at %s: %q, %v", path, text, err)
	}
	n.GantryIn(t, dir, "down", "-v")
	if _, err := os.Stat(path); err == nil {
		t.Errorf("%s is there after down -v", path)
	}
	if got := n.Gantry(t, "volume", "ls", "-q"); got != "" {
		t.Errorf("volumes after down -v: %q", got)
	}
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	if got := n.TryIn(dir, "exec", "box", "cat", "/d/file"); got.Code == 0 {
		t.Errorf("after down -v and up: %q", got.Stdout)
	}
}
