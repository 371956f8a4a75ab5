package compose_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

// habit is a command line as people type it, with how it ends and what it says there.
type habit struct {
	line string
	code int
	want string // pattern that its output or its errors match
}

// everyday is a day with Docker's commands, in order. %s is a folder of the test.
func everyday() []habit {
	return []habit{
		{"run --rm busybox:lab echo hi", 0, "^hi$"},
		{"run --rm -e A=b --env-file %s/env busybox:lab env", 0, "(?m)^A=b$(.|\n)*^B=two words$|^B=two words$(.|\n)*^A=b$"},
		{"run --rm -w /tmp -u nobody --hostname h1 busybox:lab sh -c pwd;id;hostname", 0, "^/tmp\nuid=65534.*\nh1$"},
		{"run --rm --entrypoint cat busybox:lab /etc/passwd", 0, "^root:"},
		{"run --rm --read-only --tmpfs /scratch busybox:lab touch /scratch/x", 0, "^$"},
		{"run --rm --mount type=bind,source=%s,target=/m,readonly busybox:lab cat /m/env", 0, "two words"},
		{"run --rm --ulimit nofile=100:200 busybox:lab sh -c ulimit -n", 0, "^100$"},
		{"run --rm --add-host x:192.0.2.1 busybox:lab cat /etc/hosts", 0, `192\.0\.2\.1\s+x`},
		{"run --rm --cap-drop ALL --cap-add NET_ADMIN busybox:lab grep CapBnd /proc/1/status", 0, "0000000000001000"},
		{"run --rm --init busybox:lab cat /proc/1/comm", 0, "init"},
		{"run --rm -m 64m --cpus .5 --pids-limit 20 --shm-size 10m busybox:lab df -k /dev/shm", 0, "10240"},
		{"run --rm --net none busybox:lab ls /sys/class/net", 0, "^lo$"},
		{"run --rm busybox:lab nosuch", 127, "executable file not found"},
		{"run --rm busybox:lab /etc/passwd", 126, "permission denied"},
		{"run --rm --pull never nosuch:1 true", 125, "nosuch"},
		{"run --rm --gpus all busybox:lab true", 125, "(?m)^hint: reserve a named device"},
		{"run -d --name web --label a=b --restart always --stop-signal SIGINT --health-cmd true --health-interval 1s -p 8097:80 -v data:/data busybox:lab " +
			"sh -c trap 'exit 0' INT; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done", 0, "^[0-9a-f]{12}$"},
		{"ps", 0, `web .* Up .* 0\.0\.0\.0:8097->80/tcp`},
		{"ps -q --filter name=web --filter status=running", 0, "^[0-9a-f]{12}$"},
		{"ps -q --filter label=a=c", 0, "^$"},
		{"exec -i web cat", 0, "^typed$"},
		{"exec -u nobody -w /tmp -e X=1 web sh -c id -un; pwd; echo $X", 0, "^nobody\n/tmp\n1$"},
		{"logs --tail 1 -t web", 0, `(?m)^[0-9T:.-]+Z line [0-9]+$`},
		{"logs -n 2 --since 1h web", 0, `^line [0-9]+(\nline [0-9]+){0,4}$`}, // it may have said less, or say more meanwhile
		{"port web", 0, `^80/tcp -> 0\.0\.0\.0:8097$`},
		{"port web 80", 0, `^0\.0\.0\.0:8097$`},
		{"cp %s/env web:/tmp/", 0, "^$"},
		{"cp web:/tmp/env %s/back", 0, "^$"},
		{"exec web cat /tmp/env", 0, "two words"},
		{"cp web:/nowhere .", 1, "nowhere"},
		{"diff web", 0, `(?m)^A /tmp/env$`},
		{"top web", 0, "sleep|sh -c"},
		{"stats --no-stream web", 0, "web"},
		{"inspect web", 0, `"healthcheck"`},
		{"pause web", 0, "web"},
		{"ps --filter status=paused -q", 0, "^[0-9a-f]{12}$"},
		{"unpause web", 0, "web"},
		{"volume ls -q", 0, "^data$"},
		{"volume rm data", 1, "web"},
		{"kill -s USR2 web", 0, "web"}, // ends it; the policy starts it again
		{"restart -t 1 web", 0, "web"},
		{"stop -t 5 web", 0, "web"},
		{"ps -a", 0, `web .* Exited \(0\)`},
		{"start web", 0, "web"},
		{"rm web", 1, "(?m)^hint: .*rm -f"},
		{"rm -f web", 0, "web"},
		{"volume rm data", 0, "data"},
		{"run -d --name job busybox:lab sh -c sleep 1; exit 9", 0, "^[0-9a-f]{12}$"},
		{"wait job", 0, "^9$"},
		{"rm job", 0, "job"},
		{"build -t made:1 -t made:2 -f %s/Dockerfile --build-arg WORD=hi --target one --progress plain --label l=1 %s", 0, "sha256:[0-9a-f]{64}"},
		{"build -q -t made:3 --no-cache --secret id=s,src=%s/env -f %s/Secret %s", 0, "^sha256:[0-9a-f]{64}$"},
		{"run --rm made:2", 0, "^hi$"},
		{"image ls -q made", 0, "^sha256:[0-9a-f]{64}"},
		{"image tag made:1 other:1", 0, "^$"},
		{"image history made:1", 0, "echo"},
		{"image rm made:2 other:1", 0, "Untagged"},
		{"image push localhost:1/made:1", 1, "(?m)^hint: "},
		{"network ls", 0, "default"},
		{"system df", 0, "(?i)images"},
		{"system prune -f", 0, "removed"},
		{"version", 0, "gantryd"},
		{"events --since 1h --until 0s", 0, "instance start"},
	}
}

// words splits a command line; what follows "sh -c" is one word.
func words(line string) []string {
	head, script, found := strings.Cut(line, " sh -c ")
	out := strings.Fields(head)
	if found {
		out = append(out, "sh", "-c", script)
	}
	return out
}

func TestEverydayCommands(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"env": "# comment\nB=two words\n", "in": "typed\n",
		"Dockerfile": "FROM busybox:lab AS one\nARG WORD=none\nENV SAID=$WORD\nRUN echo $WORD >/word\nCMD [\"cat\", \"/word\"]\nFROM one\nCMD [\"false\"]\n",
		"Secret":     "FROM busybox:lab\nRUN --mount=type=secret,id=s grep two /run/secrets/s\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.Gantry(t, "volume", "create", "data")
	for _, h := range everyday() {
		t.Run(h.line, func(t *testing.T) {
			args := words(strings.ReplaceAll(h.line, "%s", dir))
			cmd := n.Command(append([]string{filepath.Join(lab.Binaries(t), "gantry"), "--host", n.Host()}, args...)...)
			cmd.Dir = dir
			cmd.Stdin = strings.NewReader("typed\n")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			said := strings.TrimSpace(out.String())
			if cmd.ProcessState.ExitCode() != h.code || !regexp.MustCompile(h.want).MatchString(said) {
				t.Errorf("%v, exit %d; it says\n%s\nwant exit %d and %s", err, cmd.ProcessState.ExitCode(), said, h.code, h.want)
			}
		})
	}
	t.Run("cp as a stream", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "box", lab.Busybox, "sleep", "100000")
		cmd := n.Command("sh", "-c", "tar -C "+dir+" -c env | "+lab.Binaries(t)+"/gantry -H "+n.Host()+" cp - box:/tmp")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		h, err := tar.NewReader(strings.NewReader(n.Gantry(t, "cp", "box:/tmp/env", "-"))).Next()
		if err != nil || h.Name != "env" || h.Size == 0 {
			t.Errorf("%v, %v", h, err)
		}
	})
	t.Run("a Dockerfile on standard input", func(t *testing.T) {
		for _, args := range []string{"build -q -t stdin:1 -", "build -q -t stdin:2 -f - " + dir} {
			cmd := n.Command(append([]string{lab.Binaries(t) + "/gantry", "-H", n.Host()}, strings.Fields(args)...)...)
			cmd.Stdin = strings.NewReader("FROM busybox:lab\nRUN echo made\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("gantry %s: %v: %s", args, err, out)
			}
		}
	})
}

// TestJail runs a directory, which is what FreeBSD calls a jail.
func TestJail(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	n.Gantry(t, "run", "-d", "--name", "source", lab.Busybox, "sleep", "100000")
	dir := filepath.Join(n.Root(), "jail")
	n.Exec(t, "mkdir", "-p", dir)
	n.Gantry(t, "cp", "source:/bin", dir)
	range4 := strings.TrimSpace(n.Gantry(t, "exec", "source", "sh", "-c", "ip -4 addr show eth0 | grep -o 'inet [0-9.]*' | cut -c6-"))
	address := range4[:strings.LastIndexByte(range4, '.')] + ".77"
	got := n.Gantry(t, "run", "--rm", "--rootfs", dir, "--hostname", "cell", "--ip", address, "/bin/sh", "-c", "hostname; ip -4 addr show eth0 | grep -c "+address+"; echo kept >/made")
	if got != "cell\n1\n" {
		t.Errorf("the jail says %q", got)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(text) != "kept\n" {
		t.Errorf("what it wrote: %q, %v", text, err)
	}
}

// TestSocketBelongsToItsGroup looks at who may use the API.
func TestSocketBelongsToItsGroup(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.StopDaemon(t)
	n.SetFlags("--group", "nogroup")
	n.StartDaemon(t)
	if got := n.Exec(t, "stat", "-c", "%U %G %a", strings.TrimPrefix(n.Host(), "unix://")); got != "root nogroup 660\n" {
		t.Errorf("the socket is %q", got)
	}
	if got := n.TryExec("setpriv", "--reuid=65534", "--regid=65533", "--clear-groups", lab.Binaries(t)+"/gantry", "-H", n.Host(), "ps"); got.Code == 0 {
		t.Errorf("a stranger may use it: %s", got.Stdout)
	}
}
