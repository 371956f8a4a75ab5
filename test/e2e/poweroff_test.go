package e2e_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// ending is an app whose services end in different ways.
const ending = `
name: ending
services:
  clerk:
    image: ` + lab.Busybox + `
    command: ["sh", "-c", "trap 'sleep 1; echo closed >>/data/ledger; exit 0' USR1; echo opened >>/data/ledger; while :; do sleep 0.1; done"]
    stop_signal: SIGUSR1
    stop_grace_period: 20s
    volumes: ["./data:/data"]
  deaf:
    image: ` + lab.Busybox + `
    command: ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
    stop_grace_period: 1s
    restart: always
  once:
    image: ` + lab.Busybox + `
    command: ["sh", "-c", "echo began >>/data/once; sleep 1000 & wait"]
    stop_grace_period: 1s
    restart: "no"
    volumes: ["./data:/data"]
`

// A daemon that ends because its machine goes down takes its instances along, as they want to be stopped. The machine of the
// lab has no systemd: a directory and a program stand in for what the daemon asks.
func TestInstancesEndWithTheirMachine(t *testing.T) {
	programs := t.TempDir()
	if err := os.WriteFile(filepath.Join(programs, "systemctl"), []byte("#!/bin/sh\necho stopping\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	n := machine(t)
	dir := t.TempDir()
	rewrite(t, dir, ending)
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o777); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, "data", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	n.GantryIn(t, dir, "up")

	systemd := filepath.Join(n.Run(), "systemd", "system")
	n.StopDaemon(t) // no systemd runs: the daemon alone ends
	n.StartDaemon(t)
	if got := file("ledger"); got != "opened\n" {
		t.Fatalf("after a restart of the daemon the clerk has written %q", got)
	}

	if err := os.MkdirAll(systemd, 0o755); err != nil {
		t.Fatal(err)
	}
	n.StopDaemon(t)
	if got := file("ledger"); got != "opened\nclosed\n" {
		t.Errorf("the clerk has written %q", got)
	}
	if left := n.TryExec("pgrep", "-f", "sleep 1000|trap"); left.Code != 1 {
		t.Errorf("processes are left:\n%s", left.Stdout)
	}
	if err := os.RemoveAll(filepath.Dir(systemd)); err != nil {
		t.Fatal(err)
	}

	n.StartDaemon(t)
	for _, service := range []string{"clerk", "deaf"} {
		lab.Eventually(t, time.Minute, service+" is up again", func() error {
			if out := n.GantryIn(t, dir, "ps", service); !strings.Contains(out, " Up ") {
				return errors.New(out)
			}
			return nil
		})
	}
	if got := file("ledger"); got != "opened\nclosed\nopened\n" {
		t.Errorf("the clerk has written %q", got)
	}
	if got := file("once"); got != "began\n" {
		t.Errorf("what is not to be restarted was: %q", got)
	}
}
