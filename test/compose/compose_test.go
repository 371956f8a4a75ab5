// Package compose_test shows that keys of Compose files do in real containers what the support matrix says.
//
// One app holds them; what a container sees of a key is asked for inside of it. Package compose has the tests of the loader.
package compose_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

const file = `
name: keys
services:
  process:
    image: busybox:lab
    entrypoint: ["sh", "-c"]
    command: ["echo started; trap 'echo told >/data/told; exit 0' USR1; while :; do sleep 0.1; done"]
    environment: {PLAIN: one, FILLED: "${FROM_DOTENV:?}", DEFAULTED: "${NOWHERE:-other}"}
    env_file: [vars.env]
    user: "1234:1235"
    group_add: ["4242"]
    working_dir: /tmp
    hostname: box
    domainname: example.test
    init: true
    stop_signal: SIGUSR1
    stop_grace_period: 20s
    read_only: true
    cap_drop: [ALL]
    cap_add: [NET_BIND_SERVICE]
    security_opt: ["no-new-privileges:true"]
    sysctls: {net.core.somaxconn: "321"}
    extra_hosts: ["legacy:192.0.2.9"]
    dns: [192.0.2.53]
    dns_search: [corp.test]
    shm_size: 5m
    ulimits: {nofile: {soft: 111, hard: 222}}
    pids_limit: 50
    cpus: 0.5
    mem_limit: 64m
    labels: {tier: front}
    deploy: {labels: {team: red}}
    tmpfs: ["/scratch:size=1m"]
    platform: linux/amd64
    pull_policy: never
    volumes:
      - data:/data
      - ./site:/site:ro
      - /anonymous
      - {type: tmpfs, target: /typed, tmpfs: {size: 2m}}
      - {type: volume, source: shared, target: /part, volume: {subpath: sub}}
    secrets:
      - pw
      - {source: of_env, target: renamed, mode: 0440, uid: "1234"}
    configs: [{source: conf, target: /etc/conf}]
    depends_on: {fill: {condition: service_completed_successfully}}
  fill:
    image: busybox:lab
    command: sh -c 'mkdir -p /all/sub; echo filled >/all/sub/file; chmod -R a+rwX /all /d; date +%s >/all/sub/when'
    volumes: [shared:/all, data:/d]
  privileged:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    privileged: true
  device:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    devices: ["/dev/null:/dev/zilch:rw"]
  built:
    build:
      context: .
      dockerfile: Other.Dockerfile
      target: wanted
      args: {WORD: hello}
      secrets: [pw]
    stop_grace_period: 100ms
    volumes: [copied:/copied]
  front:
    image: busybox:lab
    command: sh -c 'mkdir /w; echo page >/w/index.html; httpd -p 81 -h /w; httpd -p 82 -h /w; exec httpd -f -p 83 -h /w'
    stop_grace_period: 100ms
    networks: {front: {aliases: [first]}}
    ports: ["8101-8102:81-82", "127.0.0.1:8103:83", "8104:84/udp"]
    expose: ["85"]
  back:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    networks: [back]
  both:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    networks: [front, back]
  alone: {image: "busybox:lab", command: sleep 100000, network_mode: none, stop_grace_period: 100ms}
  host: {image: "busybox:lab", command: sleep 100000, network_mode: host, stop_grace_period: 100ms}
  beside: {image: "busybox:lab", command: sleep 100000, network_mode: "service:both", stop_grace_period: 100ms}
  within: {image: "busybox:lab", command: sleep 100000, network_mode: "container:base", stop_grace_period: 100ms}
  bridged: {image: "busybox:lab", command: sleep 100000, network_mode: bridge, stop_grace_period: 100ms}
  many:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    deploy: {replicas: 2, resources: {limits: {memory: 32m, pids: 40}}}
  quiet: {image: "busybox:lab", command: sh -c 'echo unheard; exec sleep 100000', logging: {driver: none}, scale: 2, stop_grace_period: 100ms}
  rotated:
    image: busybox:lab
    command: sh -c 'i=0; while [ $$i -lt 8000 ]; do echo "line $$i of what is said"; i=$$((i+1)); [ $$((i%400)) != 0 ] || sleep 0.1; done; exec sleep 100000'
    logging: {driver: json-file, options: {max-size: 50k, max-file: "2"}}
    stop_grace_period: 100ms
  told:
    image: busybox:lab
    command: sh -c 'while :; do echo to syslog; sleep 0.5; done'
    logging: {driver: syslog, options: {syslog-address: "udp://127.0.0.1:5514", tag: told}}
    stop_grace_period: 100ms
  limited:
    image: busybox:lab
    command: sh -c 'exit 3'
    deploy: {restart_policy: {condition: on-failure, delay: 100ms, max_attempts: 2}, update_config: {order: stop-first, parallelism: 1}}
    profiles: [failing]
  patient:
    image: busybox:lab
    command: sh -c 'sleep 0.5; exit 3'
    deploy: {restart_policy: {condition: on-failure, delay: 100ms, max_attempts: 1, window: 300ms}}
    profiles: [failing]
  hidden: {image: "busybox:lab", profiles: [other]}
volumes: {data: {}, shared: {}, copied: {}}
networks: {front: {}, back: {}}
secrets: {pw: {file: pw.txt}, of_env: {environment: OF_ENV}}
configs: {conf: {content: "made of ${FROM_DOTENV}"}}
`

const dockerfile = `FROM busybox:lab AS base
ARG WORD=none
RUN echo $WORD >/word && mkdir /copied && echo from the image >/copied/file
FROM base AS wanted
RUN --mount=type=secret,id=pw cp /run/secrets/pw /kept
CMD ["sleep", "100000"]
FROM base
CMD ["false"]
`

// project writes the app with the files that it names.
func project(t *testing.T) string {
	t.Helper()
	dir := lab.Project(t, file)
	for name, text := range map[string]string{
		".env": "FROM_DOTENV=dotenv\nOF_ENV=shown to nobody\n", "vars.env": "FROM_FILE=two words\n", "pw.txt": "hunter2",
		"site/index.html": "bound\n", "Other.Dockerfile": dockerfile,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fact is what a container sees of a key: the whole answer matches the pattern.
type fact struct{ key, service, ask, want string }

func facts() []fact {
	const anyNumber = `[0-9]+`
	return []fact{
		{"entrypoint and command", "process", `cat /proc/*/cmdline | tr '\0' ' ' | grep -c 'sh -c echo started'`, anyNumber},
		{"environment", "process", "echo $PLAIN $FILLED $DEFAULTED", "one dotenv other"},
		{"env_file", "process", "echo $FROM_FILE", "two words"},
		{"user", "process", "id -u; id -g", "1234\n1235"},
		{"group_add", "process", "id -G", "1235 4242"},
		{"working_dir", "process", "pwd", "/tmp"},
		{"hostname", "process", "hostname", "box"},
		{"domainname", "process", "cat /proc/sys/kernel/domainname", `example\.test`},
		{"init", "process", "cat /proc/1/comm", "(gantry-init|init)"},
		{"read_only", "process", "touch /etc/x 2>&1", ".*Read-only file system"},
		{"cap_drop and cap_add", "process", "grep CapBnd /proc/1/status", `CapBnd:\s+0000000000000400`},
		{"security_opt", "process", "grep NoNewPrivs /proc/1/status", `NoNewPrivs:\s+1`},
		{"sysctls", "process", "cat /proc/sys/net/core/somaxconn", "321"},
		{"extra_hosts", "process", "grep legacy /etc/hosts", `192\.0\.2\.9\s+legacy`},
		{"dns_search", "process", "grep search /etc/resolv.conf", `search corp\.test`},
		{"shm_size", "process", "df -k /dev/shm | tail -1", `shm\s+5120 .*`},
		{"ulimits", "process", "ulimit -Sn; ulimit -Hn", "111\n222"},
		{"pids_limit", "process", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", "50"},
		{"mem_limit", "process", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", "67108864"},
		{"deploy: resources", "many", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", "33554432\n40"},
		{"cpus", "process", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null", "50000.*"},
		{"tmpfs", "process", "df -k /scratch | tail -1; touch /scratch/x && echo written", `tmpfs\s+1024 .*\nwritten`},
		{"volumes: named", "process", "touch /data/x && echo written", "written"},
		{"volumes: bind, read-only", "process", "cat /site/index.html; touch /site/x 2>&1", "bound\n.*Read-only file system"},
		{"volumes: anonymous", "process", "grep -c ' /anonymous ' /proc/mounts", "1"},
		{"volumes: tmpfs", "process", "df -k /typed | tail -1", `tmpfs\s+2048 .*`},
		{"volumes: subpath", "process", "cat /part/file; ls /part | grep -c sub", "filled\n0"},
		{"volumes: copy-up", "built", "cat /copied/file; touch /copied/x && echo written", "from the image\nwritten"},
		{"secrets: file", "process", "cat /run/secrets/pw", "hunter2"},
		{"secrets: environment", "process", "cat /run/secrets/renamed; stat -c '%a %u' /run/secrets/renamed", "shown to nobody.*440 1234"},
		{"secrets are in no environment", "process", "env | grep -c 'hunter2\\|shown to nobody'", "0"},
		{"configs", "process", "cat /etc/conf", "made of dotenv"},
		{"privileged", "privileged", "grep CapEff /proc/1/status", `CapEff:\s+000001ff[0-9a-f]{8}`},
		{"devices", "device", "echo gone >/dev/zilch && stat -c %F /dev/zilch", "character special file"},
		{"build: args and target", "built", "cat /word", "hello"},
		{"build: secrets", "built", "cat /kept", "hunter2"},
		{"networks: aliases", "both", "nslookup first >/dev/null 2>&1 && echo found", "found"},
		{"networks: within one", "front", "nslookup both >/dev/null 2>&1 && echo found", "found"},
		{"networks: isolated", "front", "nslookup back >/dev/null 2>&1 || echo unknown", "unknown"},
		{"network_mode: none", "alone", "ls /sys/class/net", "lo"},
		{"network_mode: host", "host", "ls /sys/class/net | grep -c gantry0", "1"},
		{"network_mode: bridge", "bridged", "ls /sys/class/net | grep -c eth0", "1"},
	}
}

func TestKeysInContainers(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	n.Gantry(t, "system", "set-environment", "production", "--allow-privileged")
	n.Gantry(t, "run", "-d", "--name", "base", lab.Busybox, "sleep", "100000")
	var syslog net.PacketConn
	err := n.InNetwork(func() (err error) {
		syslog, err = net.ListenPacket("udp", "127.0.0.1:5514")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syslog.Close() })
	dir := project(t)
	n.GantryIn(t, dir, "up", "--timeout", "4m")

	for _, f := range facts() {
		t.Run(f.key, func(t *testing.T) {
			got := n.TryIn(dir, "exec", f.service, "sh", "-c", f.ask)
			if !regexp.MustCompile(`^(?s:` + f.want + `)$`).MatchString(strings.TrimSpace(got.Stdout)) {
				t.Errorf("%s says %q (%s), want %s", f.ask, got.Stdout, got.Stderr, f.want)
			}
		})
	}
	t.Run("network_mode: service: and container:", func(t *testing.T) {
		address := func(name string) string {
			return strings.TrimSpace(n.GantryIn(t, dir, "exec", name, "cat", "/sys/class/net/eth0/address"))
		}
		if address("beside") != address("both") || address("within") != strings.TrimSpace(n.Gantry(t, "exec", "base", "cat", "/sys/class/net/eth0/address")) {
			t.Error("the namespaces are not the same")
		}
	})
	t.Run("dns", func(t *testing.T) {
		// The one that is named is nowhere: names of the app are found all the same, others are not.
		n.GantryIn(t, dir, "exec", "process", "nslookup", "many.")
		if got := n.TryIn(dir, "exec", "process", "nslookup", "example.test."); got.Code == 0 {
			t.Errorf("a name of the world is answered: %s", got.Stdout)
		}
	})
	t.Run("ports", func(t *testing.T) {
		for _, port := range []string{":8101/", ":8102/"} {
			if page, err := n.HTTPGet(port); err != nil || page != "page\n" {
				t.Errorf("%s: %q, %v", port, page, err)
			}
		}
		if page, err := n.HTTPGet(":8103/"); err == nil {
			t.Errorf("a port on 127.0.0.1 answers others: %q", page)
		}
		inside := n.Exec(t, "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc 127.0.0.1 8103`)
		if !strings.Contains(inside, "page") {
			t.Errorf("127.0.0.1:8103 says %q", inside)
		}
		if got := n.GantryIn(t, dir, "port", "front", "84/udp"); got != "0.0.0.0:8104\n" {
			t.Errorf("the UDP port is %q", got)
		}
	})
	t.Run("labels", func(t *testing.T) {
		if got := n.GantryIn(t, dir, "ps", "-q", "--filter", "label=tier=front"); strings.Count(got, "\n") != 1 {
			t.Errorf("with the label: %q", got)
		}
	})
	t.Run("scale and replicas", func(t *testing.T) { n.AwaitReady(t, "many", 2); n.AwaitReady(t, "quiet", 2) })
	t.Run("profiles", func(t *testing.T) {
		if view := n.Instance(t, "hidden.1"); view != nil {
			t.Errorf("a service of another profile runs: %v", view)
		}
	})
	t.Run("output json", func(t *testing.T) { programsRead(t, n, dir) })
	t.Run("logging", func(t *testing.T) { logging(t, n, dir, syslog) })
	t.Run("stop_signal", func(t *testing.T) {
		n.GantryIn(t, dir, "stop", "process")
		if code := n.Instance(t, "process.1").Status.ExitCode; code != 0 {
			t.Errorf("ended with %d", code)
		}
		n.GantryIn(t, dir, "start", "process")
		if got := n.GantryIn(t, dir, "exec", "process", "cat", "/data/told"); got != "told\n" {
			t.Errorf("the signal left %q", got)
		}
	})
	t.Run("restart_policy", func(t *testing.T) {
		result := n.TryIn(dir, "up", "--profile", "failing", "limited")
		view := n.Instance(t, "limited.1")
		if result.Code != 1 || view == nil || view.Status.Restarts != 2 || view.Status.ExitCode != 3 {
			t.Errorf("up ended with %d, the instance is %v", result.Code, view)
		}
	})
	t.Run("restart_policy: window", func(t *testing.T) {
		n.TryIn(dir, "up", "-d", "--profile", "failing", "patient")
		lab.Eventually(t, time.Minute, "more restarts than attempts: each run is long enough", func() error {
			if view := n.Instance(t, "patient.1"); view == nil || view.Status.Restarts < 3 {
				return fmt.Errorf("%v", view)
			}
			return nil
		})
	})
}

// programsRead has everything that lists or shows something do it as JSON, of a daemon that has some of everything.
func programsRead(t *testing.T, n *lab.Node, dir string) {
	t.Helper()
	for _, line := range []string{
		"ls", "ps", "ps -A", "plan", "release ls", "rollout ls", "rollout show process", "explain process", "events --since 10m --until 0s",
		"convert", "inspect process", "diff process", "top process", "port front", "stats --no-stream", "image ls", "image inspect busybox:lab",
		"image history busybox:lab", "volume ls", "volume inspect keys/data", "network ls", "network inspect keys/front", "secret ls", "config ls",
		"node ls", "node show " + n.Name(), "cluster status", "cluster token ls", "system info", "system df", "system environments", "version",
	} {
		got := n.TryIn(dir, append(strings.Fields(line), "-o", "json")...)
		values := 0
		dec := json.NewDecoder(strings.NewReader(got.Stdout))
		for {
			var v any
			err := dec.Decode(&v)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Errorf("gantry %s -o json: %v\n%.500s", line, err, got.Stdout)
				break
			}
			values++
		}
		if values == 0 || got.Code != 0 {
			t.Errorf("gantry %s -o json: exit %d, %d values: %s", line, got.Code, values, got.Stderr)
		}
	}
}

func logging(t *testing.T, n *lab.Node, dir string, syslog net.PacketConn) {
	t.Helper()
	if got := n.TryIn(dir, "logs", "quiet"); strings.Contains(got.Stdout, "unheard") {
		t.Errorf("none: %q", got.Stdout)
	}
	lab.Eventually(t, 20*time.Second, "the last line", func() error {
		if got := n.GantryIn(t, dir, "logs", "--tail", "1", "rotated"); !strings.Contains(got, "line 7999 of") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if all := n.GantryIn(t, dir, "logs", "rotated"); strings.Contains(all, "line 0 of") || !strings.Contains(all, "line 7900 of") {
		t.Errorf("json-file: %d bytes are kept", len(all))
	}
	buf := make([]byte, 512)
	if err := syslog.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if count, _, err := syslog.ReadFrom(buf); err != nil || !strings.Contains(string(buf[:count]), "told") || !strings.Contains(string(buf[:count]), "to syslog") {
		t.Errorf("syslog heard %q, %v", buf[:count], err)
	}
}

const chain = `
name: chain
services:
  db:
    image: busybox:lab
    command: sh -c 'sleep 1; touch /tmp/ready; exec sleep 100000'
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ready"], interval: 1s}
    stop_grace_period: 100ms
    environment: {RELEASE: "1"}
  web:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    depends_on: {db: {condition: service_healthy, restart: true}}
  calm:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    depends_on: {db: {condition: service_healthy}}
`

// TestDependentsAreRestarted follows depends_on with restart: true through `gantry restart` and a rollout.
func TestDependentsAreRestarted(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	dir := lab.Project(t, chain)
	n.GantryIn(t, dir, "up", "--timeout", "2m")
	started := func(name string) time.Time {
		t.Helper()
		return n.AwaitReady(t, name, 1)[0].Status.StartedAt.AsTime()
	}
	web, calm := started("web"), started("calm")
	follows := func(what string) {
		t.Helper()
		lab.Eventually(t, time.Minute, what+": web starts after db", func() error {
			db := n.Instance(t, "db.1")
			now := n.Instance(t, "web.1").Status
			if db == nil || now.Phase != gantryv1.InstanceStatus_PHASE_RUNNING || !now.StartedAt.AsTime().After(web) || !now.StartedAt.AsTime().After(db.Status.StartedAt.AsTime()) {
				return fmt.Errorf("web since %v, before %v; db %v", now.StartedAt.AsTime(), web, db)
			}
			return nil
		})
		web = started("web")
		if again := started("calm"); !again.Equal(calm) {
			t.Errorf("%s: calm was restarted too", what)
		}
	}
	n.GantryIn(t, dir, "restart", "db")
	follows("restart")
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(strings.Replace(chain, `RELEASE: "1"`, `RELEASE: "2"`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	n.GantryIn(t, dir, "up", "--timeout", "2m")
	follows("rollout")
}
