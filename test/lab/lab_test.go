package lab_test

import (
	"fmt"
	"os"
	"os/exec"
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

// TestSweep shows that a lab of a dead process is removed, and that one of a process that is out of sight is not.
func TestSweep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Setenv("TMPDIR", t.TempDir())
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	records := map[string]bool{
		fmt.Sprintf("%d %s", dead.ProcessState.Pid(), namespace):       false,
		fmt.Sprintf("%d %s", os.Getpid(), namespace):                   true,
		fmt.Sprintf("%d %s", dead.ProcessState.Pid(), "pid:[another]"): true,
	}
	kept, i := map[string]bool{}, 0
	for record, keep := range records {
		i++
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("glsweep%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(record), 0o644); err != nil {
			t.Fatal(err)
		}
		kept[dir] = keep
	}
	lab.Sweep(t)
	for dir, want := range kept {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: kept %v, want %v", dir, err == nil, want)
		}
	}
}
