package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

// Every command pays for what the packages of the program do when it starts; doc/adr/0010-lazy-start.md.
func TestCommandStartsLight(t *testing.T) {
	cmd := exec.Command(filepath.Join(lab.Binaries(t), "gantry"), "version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1", "GANTRY_HOST=unix:///nowhere")
	var trace bytes.Buffer
	cmd.Stderr = &trace
	_ = cmd.Run() // there is no daemon to ask
	line := regexp.MustCompile(`^init (\S+) @.* (\d+) allocs$`)
	total := 0
	for lines := bufio.NewScanner(&trace); lines.Scan(); {
		m := line.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[2])
		if total += n; n > 3000 {
			t.Errorf("package %s allocates %d objects when the program starts", m[1], n)
		}
	}
	if total == 0 || total > 8000 {
		t.Errorf("%d objects are allocated before main", total)
	}
}
