package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// TestShell has a person look around in a cluster of one machine and leave; a command that fails is none of the shell's business.
func TestShell(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the lab needs root for namespaces, mounts and cgroups")
	}
	program := filepath.Join(t.TempDir(), "shell")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "-n", "1")
	cmd.Stdin = strings.NewReader(`echo "the machine is $(n0 hostname)"
echo "the node is $(g0 node ls --quiet | wc -l) of one"
gantry no-such-command 2>/dev/null || echo "exit $?"
gantry ps
exit 3
`)
	var errs strings.Builder
	cmd.Stderr = &errs
	text, err := cmd.Output()
	out := string(text)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs.String())
	}
	name := regexp.MustCompile(`(?m)^0 +(\S+) +198\.18\.`).FindStringSubmatch(out)
	if name == nil {
		t.Fatalf("no machine is named:\n%s", out)
	}
	for _, want := range []string{"starting a cluster of 1 machines\n", "g0 ps", "gantry image import /", "the machine is " + name[1] + "\n", "the node is 1 of one\n", "exit 64\n", "ADDRESS   PORTS\n", "removing the cluster\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s%s", want, out, errs.String())
		}
	}
	lab.Eventually(t, time.Minute, "the machine's link is gone", func() error { // the kernel takes a moment
		if _, err := os.Stat("/sys/class/net/" + name[1]); err == nil {
			return errors.New(name[1])
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(os.TempDir(), strings.TrimSuffix(name[1], "n0"))); err == nil {
		t.Errorf("the cluster's folder is left: %s", name[1])
	}
}
