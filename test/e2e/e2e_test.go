// Package e2e_test drives real daemons through the command line, on machines of the lab.
package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// counter prints a number ten times a second.
const counter = `i=0; while :; do echo line $i; i=$((i+1)); sleep 0.1; done`

// machine is a lab with one machine that has the lab's image.
func machine(t *testing.T) *lab.Node {
	t.Helper()
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	return n
}

// refused runs the command line, wants it to fail within the time, and wants each word in what it says.
func refused(t *testing.T, n *lab.Node, dir string, within time.Duration, words []string, args ...string) {
	t.Helper()
	began := time.Now()
	result := n.TryWithin(2*within, dir, args...)
	if result.Code == 0 {
		t.Fatalf("gantry %s was not refused:\n%s%s", strings.Join(args, " "), result.Stdout, result.Stderr)
	}
	if took := time.Since(began); took > within {
		t.Errorf("gantry %s: refused after %s, at most %s", strings.Join(args, " "), took, within)
	}
	said := result.Stdout + result.Stderr
	for _, word := range words {
		if !strings.Contains(strings.ToLower(said), strings.ToLower(word)) {
			t.Errorf("gantry %s: does not say %q:\n%s", strings.Join(args, " "), word, said)
		}
	}
	for _, never := range []string{"goroutine ", "panic:", "context deadline exceeded\n"} {
		if strings.Contains(said, never) {
			t.Errorf("gantry %s: says %q to a person:\n%s", strings.Join(args, " "), never, said)
		}
	}
}

// works shows that the daemon still starts containers and answers.
func works(t *testing.T, n *lab.Node) {
	t.Helper()
	if out := n.Gantry(t, "run", "--rm", lab.Busybox, "echo", "still works"); !strings.Contains(out, "still works") {
		t.Errorf("run printed %q", out)
	}
}

// consecutive checks that the counter's lines are all there, in order and once, and returns how many.
func consecutive(t *testing.T, log string) int {
	t.Helper()
	next := 0
	for _, line := range strings.Split(strings.TrimSpace(log), "\n") {
		_, number, found := strings.Cut(line, "line ")
		got, err := strconv.Atoi(strings.TrimSpace(number))
		if !found || err != nil || got != next {
			t.Fatalf("after line %d comes %q", next-1, line)
		}
		next++
	}
	return next
}

func TestRun(t *testing.T) {
	n := machine(t)

	t.Run("output and exit code", func(t *testing.T) {
		result := n.Try("run", "--rm", lab.Busybox, "sh", "-c", "echo out; echo err >&2; exit 7")
		if result.Stdout != "out\n" || !strings.Contains(result.Stderr, "err\n") || result.Code != 7 {
			t.Errorf("got %+v", result)
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		awaitNothing(t, n)
	})
	t.Run("detached, exec, logs, stop, rm", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "box", lab.Busybox, "sh", "-c", counter)
		if out := n.Gantry(t, "exec", "box", "hostname"); strings.TrimSpace(out) == "" {
			t.Error("exec printed nothing")
		}
		lab.Eventually(t, 5*time.Second, "log", func() error {
			if !strings.Contains(n.Gantry(t, "logs", "box"), "line 3\n") {
				return fmt.Errorf("line 3 is not there")
			}
			return nil
		})
		n.Gantry(t, "stop", "-t", "1", "box")
		n.Gantry(t, "rm", "box")
		if view := n.Instance(t, "box"); view != nil {
			t.Errorf("box is there after rm: %v", view)
		}
	})
	t.Run("published port", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "web", "-p", "8090:80", lab.Busybox,
			"sh", "-c", "mkdir /tmp/w; echo hello >/tmp/w/index.html; exec httpd -f -v -p 80 -h /tmp/w")
		lab.Eventually(t, 10*time.Second, "page", func() error { _, err := n.HTTPGet(":8090/"); return err })
		if log := n.Try("logs", "web"); !strings.Contains(log.Stdout+log.Stderr, n.Gateway()) {
			t.Errorf("the client's address %s is not kept:\n%s", n.Gateway(), log.Stdout+log.Stderr)
		}
		n.Gantry(t, "rm", "-f", "web")
	})
	awaitNoStrays(t, n)
}

// awaitNothing waits until no instance is left: containers are removed after the command that ended them has answered.
func awaitNothing(t *testing.T, n *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "no instance", func() error {
		if views := n.Instances(t); len(views) != 0 {
			return fmt.Errorf("%d are left", len(views))
		}
		return nil
	})
}

// awaitNoStrays waits until all that is on the machine because of containers belongs to an instance, or is kept ready for the next.
func awaitNoStrays(t *testing.T, n *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "nothing half-made is left", func() error {
		strays, err := n.Strays()
		if err == nil && strays != nil {
			err = fmt.Errorf("%d strays:\n%s", len(strays), strings.Join(strays, "\n"))
		}
		return err
	})
}

const twoServices = `
name: shop
services:
  web:
    image: busybox:lab
    command: sh -c 'mkdir -p /tmp/w; hostname >/tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w'
    ports: ["8090:80"]
    healthcheck: {test: ["CMD", "wget", "-q", "-O-", "http://127.0.0.1/"], interval: 1s, start_period: 5s}
    depends_on: {base: {condition: service_healthy}}
    deploy: {replicas: 2}
    stop_grace_period: 500ms
  base:
    image: busybox:lab
    command: sh -c 'sleep 1; touch /tmp/ready; exec sleep 100000'
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ready"], interval: 1s}
    stop_grace_period: 500ms
`

func TestComposeApp(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, twoServices)

	if code := n.TryIn(dir, "plan").Code; code != 2 {
		t.Errorf("plan of a new app: exit %d, want 2", code)
	}
	n.GantryIn(t, dir, "up")
	if code := n.TryIn(dir, "plan").Code; code != 0 {
		t.Errorf("plan after up: exit %d, want 0", code)
	}
	web := n.AwaitReady(t, "web", 2)
	base := n.AwaitReady(t, "base", 1)
	for _, view := range web {
		if !view.Status.StartedAt.AsTime().After(base[0].Status.StartedAt.AsTime()) {
			t.Errorf("%s started before the service it depends on", lab.Name(view))
		}
	}
	served := map[string]bool{}
	for range 20 {
		page, err := n.HTTPGet(":8090/")
		if err != nil {
			t.Fatal(err)
		}
		served[page] = true
	}
	if len(served) != 2 {
		t.Errorf("20 requests were served by %d of 2 instances", len(served))
	}

	t.Run("up again changes nothing", func(t *testing.T) {
		n.GantryIn(t, dir, "up")
		if again := n.AwaitReady(t, "web", 2); ids(again) != ids(web) {
			t.Errorf("instances were %s, are %s", ids(web), ids(again))
		}
	})
	t.Run("scale", func(t *testing.T) {
		n.GantryIn(t, dir, "scale", "web=4")
		n.AwaitReady(t, "web", 4)
		n.GantryIn(t, dir, "scale", "web=1")
		if one := n.AwaitReady(t, "web", 1); lab.Name(one[0]) != "web.1" {
			t.Errorf("%s is kept instead of web.1", lab.Name(one[0]))
		}
	})
	t.Run("killed is replaced", func(t *testing.T) {
		before := n.AwaitReady(t, "web", 1)[0].Status.Pid
		n.GantryIn(t, dir, "kill", "web.1")
		lab.Eventually(t, 30*time.Second, "new process", func() error {
			view := n.Instance(t, "web.1")
			if view == nil || !lab.Ready(view) || view.Status.Pid == before {
				return fmt.Errorf("%v", view)
			}
			return nil
		})
	})
	t.Run("update and roll back", func(t *testing.T) {
		changed := strings.Replace(twoServices, "hostname >", "echo second >", 1)
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
		if plan := n.TryIn(dir, "plan"); plan.Code != 2 || !strings.Contains(plan.Stdout, "command") {
			t.Errorf("plan does not show the changed command: exit %d\n%s", plan.Code, plan.Stdout)
		}
		n.GantryIn(t, dir, "up")
		awaitPage(t, n, func(page string) bool { return page == "second\n" })
		n.GantryIn(t, dir, "rollback", "web")
		awaitPage(t, n, func(page string) bool { return page != "second\n" })
	})
	t.Run("down", func(t *testing.T) {
		n.GantryIn(t, dir, "down")
		awaitNothing(t, n)
		if page, err := n.HTTPGet(":8090/"); err == nil {
			t.Errorf("the port still answers: %q", page)
		}
		works(t, n)
	})
}

func awaitPage(t *testing.T, n *lab.Node, want func(string) bool) {
	t.Helper()
	lab.Eventually(t, 60*time.Second, "page of the wanted release", func() error {
		for range 6 {
			page, err := n.HTTPGet(":8090/")
			if err != nil || !want(page) {
				return fmt.Errorf("%q, %v", page, err)
			}
		}
		return nil
	})
}

func ids(views []*gantryv1.InstanceView) string {
	var out []string
	for _, view := range views {
		out = append(out, view.Instance.Meta.Key)
	}
	return strings.Join(out, " ")
}

func TestUpThatFails(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: broken
services:
  good: {image: "busybox:lab", command: sleep 100000}
  bad:
    image: busybox:lab
    command: sh -c 'echo the disk of the reader is missing; exit 3'
`)
	refused(t, n, dir, time.Minute, []string{"bad", "the disk of the reader is missing", "3"}, "up", "--timeout", "20s")
	n.AwaitReady(t, "good", 1)
	if log := n.GantryIn(t, dir, "logs", "bad"); !strings.Contains(log, "the disk of the reader") {
		t.Errorf("the failed container is not kept for inspection:\n%s", log)
	}
}
