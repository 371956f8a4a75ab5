package e2e_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// sharing is an app whose services join one another's namespaces, with a volume and a secret.
const sharing = `
services:
  first:
    image: BUSYBOX
    command: ["sh", "-c", "cat /run/secrets/word >/data/word; echo ready; sleep 1000"]
    volumes: ["data:/data", "./bound:/bound"]
    secrets: [word]
  joined:
    image: BUSYBOX
    command: ["sh", "-c", "sleep 1000"]
    network_mode: "service:first"
    pid: "service:first"
    depends_on: [first]
    volumes: ["data:/data"]
  pidonly:
    image: BUSYBOX
    command: ["sh", "-c", "sleep 1000"]
    pid: "service:first"
    depends_on: [first]
  plain:
    image: BUSYBOX
    command: ["sh", "-c", "sleep 1000"]
    userns_mode: host
    volumes: ["data:/data"]
volumes: {data: {}}
secrets: {word: {file: ./word}}
`

// TestRootIsNobody looks from the machine at who root in containers is, before and after a kill of the daemon.
func TestRootIsNobody(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, strings.ReplaceAll(sharing, "BUSYBOX", lab.Busybox))
	if err := os.Mkdir(filepath.Join(dir, "bound"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "word"), []byte("open sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.GantryIn(t, dir, "up")
	for _, killed := range []bool{false, true} {
		if killed {
			n.KillDaemon(t)
			n.StartDaemon(t)
		}
		for service, why := range map[string]string{
			"first": "", "joined": "", "pidonly": "it shares namespaces that belong to different users of the machine", "plain": "userns_mode: host",
		} {
			view := n.AwaitReady(t, service, 1)[0]
			ids := n.GantryIn(t, dir, "exec", service, "cat", "/proc/self/uid_map")
			checkRoot(t, view.GetStatus(), why, strings.Fields(ids))
		}
		if out := n.GantryIn(t, dir, "exec", "first", "sh", "-c", "stat -c '%u %a' /data/word /bound /run/secrets/word; touch /bound/x; cat /data/word"); out != "0 644\n0 700\n0 444\nopen sesame" {
			t.Errorf("killed %v: first sees %q", killed, out)
		}
		for _, service := range []string{"plain", "joined"} {
			if out := n.GantryIn(t, dir, "exec", service, "stat", "-c", "%u", "/data/word"); out != "0\n" {
				t.Errorf("killed %v: %s sees the owner %q", killed, service, out)
			}
		}
		for _, service := range []string{"pidonly", "joined"} {
			if out := n.GantryIn(t, dir, "exec", service, "ps"); strings.Count(out, "sleep 1000") != 3 {
				t.Errorf("killed %v: %s does not see the processes of first:\n%s", killed, service, out)
			}
		}
	}
}

// checkRoot holds what the daemon says of an instance's root against the kernel's table: first ID inside, outside, how many.
func checkRoot(t *testing.T, s *gantryv1.InstanceStatus, why string, table []string) {
	t.Helper()
	if s.RootReason != why || (s.RootId == 0) != (why != "") {
		t.Errorf("root is %d, %q; want %q", s.RootId, s.RootReason, why)
	}
	if want := strconv.FormatUint(uint64(s.RootId), 10); len(table) != 3 || table[1] != want {
		t.Errorf("the kernel has %v, want %s", table, want)
	}
}

// TestBuildStepsHaveANetwork builds as the machine's root in a network namespace that belongs to other users.
func TestBuildStepsHaveANetwork(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, "services: {}\n")
	dockerfile := "FROM " + lab.Busybox + "\nRUN cat /proc/self/uid_map >/ids && ls /sys/class/net >/devices && ping -c1 " + n.Gateway() + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	n.GantryIn(t, dir, "build", "-t", "built:test", ".")
	out := n.Gantry(t, "run", "--rm", "built:test", "cat", "/devices", "/ids")
	if !strings.Contains(out, "eth0") || !strings.Contains(out, " 0 4294967295\n") {
		t.Errorf("the step saw %q", out)
	}
}
