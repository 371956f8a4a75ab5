package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

// TestMachine shows that machines are apart from each other and from the host, and reach what they should.
func TestMachine(t *testing.T) {
	t.Setenv("GANTRY_BIN", t.TempDir()) // no daemon is started here
	l := lab.Network(t)
	a, b := l.AddNode(t, ""), l.AddNode(t, "")

	for _, to := range []string{b.Address(), a.Gateway()} {
		if !answers(a, to) {
			t.Errorf("%s does not answer", to)
		}
	}
	if pid := strings.TrimSpace(a.Exec(t, "cat", "/proc/1/comm")); pid != "bash" {
		t.Errorf("process 1 is %q", pid)
	}
	if links := a.Exec(t, "ls", "/sys/class/net"); links != "eth0\nlo\n" {
		t.Errorf("links: %q", links)
	}
	for _, line := range strings.Split(strings.TrimSpace(a.Exec(t, "cat", "/proc/self/cgroup")), "\n") {
		if !strings.HasSuffix(line, ":/") {
			t.Errorf("a machine sees cgroups outside its own: %s", line)
		}
	}
	a.Exec(t, "touch", "/run/leftover")
	a.Exec(t, "mount", "-t", "tmpfs", "tmpfs", "/mnt")
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), "tmpfs /mnt ") {
		t.Errorf("a machine's mount reached the host (%v)", err)
	}
	if _, err := os.Stat(filepath.Join("/run", "leftover")); err == nil {
		t.Error("a machine's /run is the host's")
	}
	a.Unplug(t)
	if answers(b, a.Address()) {
		t.Error("an unplugged machine answers")
	}
}

// answers reports whether the address refuses a connection to a closed port, as a reachable machine does.
func answers(from *lab.Node, address string) bool {
	result := from.TryExec("timeout", "0.7", "bash", "-c", "exec 3<>/dev/tcp/"+address+"/1")
	return strings.Contains(result.Stderr, "refused")
}
