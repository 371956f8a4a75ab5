// Package demo_test runs `make demo` and `make demo-stop` as a person does, on a machine of the lab, and `make demo-cluster`.
package demo_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

func TestDemo(t *testing.T) {
	n := lab.Network(t).AddNode(t, "")
	top := lab.Top(t)
	root, state := filepath.Join(n.Root(), "demo"), filepath.Join(n.Root(), "state")
	password := filepath.Join(top, "examples", "voting", "db_password.txt")
	_, err := os.Stat(password)
	passwordWasThere := err == nil

	run := func(target string) string {
		t.Helper()
		cmd := n.Command("env", "DEMO_ROOT="+root, "DEMO_STATE="+state, "GANTRY_HOST=", "make", "--no-print-directory", "-C", top, target)
		out, err := cmd.CombinedOutput()
		if err != nil {
			log, _ := exec.Command("tail", "-n", "40", filepath.Join(state, "gantryd.log")).Output()
			t.Fatalf("make %s: %v\n%s\n%s", target, err, out, log)
		}
		return string(out)
	}

	first := run("demo")
	for _, port := range []string{"8080", "8081"} {
		if !strings.Contains(first, "http://localhost:"+port) {
			t.Errorf("make demo does not print the address with port %s", port)
		}
		if _, err := n.HTTPGet(":" + port + "/"); err != nil {
			t.Error(err)
		}
	}
	if second := run("demo"); !strings.Contains(second, "nothing had to change") {
		t.Errorf("the second make demo changed something, or does not say that it did not:\n%s", second)
	}

	run("demo-stop")
	for _, path := range []string{root, state} {
		if left, err := os.ReadDir(path); err == nil {
			t.Errorf("%s is left with %d entries", path, len(left))
		}
	}
	if _, err := os.Stat(password); err == nil && !passwordWasThere {
		t.Errorf("%s is left", password)
	}
	if left := n.TryExec("bash", "-c", "ls -d /run/gantry-demo /run/gantry; nft list tables; ls /sys/class/net; find /sys/fs/cgroup -name 'gantry*'").Stdout; left != "eth0\nlo\n" {
		t.Errorf("left on the machine:\n%s", left)
	}
	if left := n.Leftovers(t); left != nil {
		t.Errorf("left on the machine: %s", strings.Join(left, ", "))
	}
	if again := run("demo-stop"); !strings.Contains(again, "gone") {
		t.Errorf("make demo-stop with nothing there: %s", again)
	}
}

// TestDemoCluster has three machines run examples/voting and one of them die: the demonstration fails by itself if a request
// that began after the machine was out has failed.
func TestDemoCluster(t *testing.T) {
	if os.Getenv("FAULTS") == "" {
		t.Skip("takes minutes, most of them for images: make faults; TestNodeLossUnderLoad of test/cluster loses a machine always")
	}
	out, err := exec.Command("make", "--no-print-directory", "-C", lab.Top(t), "demo-cluster").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`==> (\d+) requests, \d+ failed\n(?s:.*)==> the dead machine was out \S+ after the power cut; of the requests that began later, 0 failed\n`)
	if found := said.FindSubmatch(out); found == nil || len(found[1]) < 3 {
		t.Error("it does not say how many of some hundred requests failed")
	}
}
