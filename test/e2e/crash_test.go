package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

func TestDaemonKilledContainersStay(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: crash
services:
  count: {image: "busybox:lab", command: ["sh", "-c", "`+strings.ReplaceAll(counter, "$", "$$")+`"]}
  sick:
    image: busybox:lab
    command: sleep 100000
    healthcheck: {test: ["CMD", "test", "!", "-e", "/tmp/sick"], interval: 1s, retries: 1}
`)
	n.GantryIn(t, dir, "up")
	before := n.AwaitReady(t, "count", 1)[0]
	for range 5 {
		n.KillDaemon(t)
		n.StartDaemon(t)
	}
	after := n.AwaitReady(t, "count", 1)[0]
	if before.Instance.Meta.Key != after.Instance.Meta.Key || before.Status.Pid != after.Status.Pid {
		t.Errorf("the container did not survive: %v, then %v", before.Status, after.Status)
	}
	if processes := strings.Count(n.Exec(t, "ps", "axo", "args"), "sh -c "+counter[:20]); processes != 1 {
		t.Errorf("the counter runs %d times", processes)
	}
	lab.Eventually(t, 10*time.Second, "log goes on", func() error {
		count := consecutive(t, n.GantryIn(t, dir, "logs", "--no-log-prefix", "count"))
		if lived := time.Since(before.Status.StartedAt.AsTime()); count < int(lived/(150*time.Millisecond)) {
			return fmt.Errorf("%d lines in %s", count, lived)
		}
		return nil
	})
	n.GantryIn(t, dir, "exec", "sick", "touch", "/tmp/sick")
	lab.Eventually(t, 20*time.Second, "health check goes on", func() error {
		if view := n.Instance(t, "sick.1"); view != nil && lab.Ready(view) {
			return fmt.Errorf("still healthy")
		}
		return nil
	})
}

// TestDaemonKilledAtAnyPoint kills the daemon at random moments of up, scale and down, and wants the end to be right.
func TestDaemonKilledAtAnyPoint(t *testing.T) {
	n := machine(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := lab.Project(t, `
name: churn
services:
  box: {image: "busybox:lab", command: sleep 100000, stop_grace_period: 1s}
`)
	wanted := []int{3, 1, 5, 0, 2, 4, 1, 3}
	n.GantryIn(t, dir, "up")
	for round, want := range wanted {
		n.GantryIn(t, dir, "scale", "-d", fmt.Sprintf("box=%d", want))
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		n.KillDaemon(t)
		time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		n.StartDaemon(t)
		n.AwaitReady(t, "box", want)
		if got := strings.Count(n.Exec(t, "ps", "axo", "args"), "sleep 100000\n"); got != want {
			t.Fatalf("round %d: %d processes for %d instances", round, got, want)
		}
	}
	n.GantryIn(t, dir, "down")
	lab.Eventually(t, 30*time.Second, "clean machine", func() error {
		if left := n.Leftovers(t); !poolOnly(left) {
			return fmt.Errorf("left: %s", strings.Join(left, ", "))
		}
		return nil
	})
	works(t, n)
}

func TestReboot(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: reboot
services:
  db:
    image: busybox:lab
    command: sh -c 'echo boot >>/data/boots; exec sleep 100000'
    volumes: ["data:/data"]
  web:
    image: busybox:lab
    command: sh -c 'mkdir -p /tmp/w; cat /etc/hostname >/tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w'
    ports: ["8090:80"]
    depends_on: [db]
  stopped: {image: "busybox:lab", command: sleep 100000}
volumes: {data: }
`)
	n.GantryIn(t, dir, "up")
	n.GantryIn(t, dir, "stop", "stopped")
	n.Reboot(t)
	n.AwaitReady(t, "db", 1)
	n.AwaitReady(t, "web", 1)
	if boots := n.GantryIn(t, dir, "exec", "db", "cat", "/data/boots"); boots != "boot\nboot\n" {
		t.Errorf("the volume holds %q", boots)
	}
	lab.Eventually(t, 10*time.Second, "published port", func() error { _, err := n.HTTPGet(":8090/"); return err })
	if view := n.Instance(t, "stopped.1"); view != nil && lab.Ready(view) {
		t.Error("a service that was stopped runs after the reboot")
	}
}

// TestTwoDaemons runs daemons with different roots in two namespaces of one host, with the same application on both.
func TestTwoDaemons(t *testing.T) {
	c := lab.Machines(t, 2)
	dir := lab.Project(t, twoServices)
	for i := range 2 {
		c.Node(i).ImportBusybox(t)
		c.Node(i).GantryIn(t, dir, "up")
	}
	c.Node(0).GantryIn(t, dir, "down")
	c.Node(1).AwaitReady(t, "web", 2)
	if _, err := c.Node(1).HTTPGet(":8090/"); err != nil {
		t.Errorf("the other daemon's application suffered: %v", err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	n := machine(t)
	const canary = "canary-5f1d0c77-secret"
	dir := lab.Project(t, `
name: vault
services:
  reader:
    image: busybox:lab
    command: sleep 100000
    secrets: [key]
  other: {image: "busybox:lab", command: sleep 100000}
secrets:
  key: {file: ./key}
`, "key", canary)
	n.GantryIn(t, dir, "up")
	if got := n.GantryIn(t, dir, "exec", "reader", "cat", "/run/secrets/key"); got != canary {
		t.Errorf("the secret is %q", got)
	}
	if n.TryIn(dir, "exec", "other", "cat", "/run/secrets/key").Code == 0 {
		t.Error("another service reads the secret")
	}
	for _, args := range [][]string{{"inspect", "reader.1"}, {"secret", "ls", "--output", "json"}, {"events", "--since", "1h", "--until", "0s"}} {
		if result := n.TryIn(dir, args...); strings.Contains(result.Stdout+result.Stderr, canary) {
			t.Errorf("gantry %s shows the secret", strings.Join(args, " "))
		}
	}
	if strings.Contains(n.DaemonLog(), canary) {
		t.Error("the daemon's log shows the secret")
	}
	n.StopDaemon(t)
	if found := grep(t, n.Root(), canary); found != nil {
		t.Errorf("the secret is on disk in the clear: %v", found)
	}
	n.StartDaemon(t)
	n.AwaitReady(t, "reader", 1)
}

// grep lists the files under dir that hold text.
func grep(t *testing.T, dir, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil
		}
		body, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(body), text) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
