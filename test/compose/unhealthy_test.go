package compose_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// The check of an instance fails as soon as there is a file with its name, and writes down when it first did.
const ill = `
name: ill
services:
  web:
    image: busybox:lab
    command: sh -c 'exec /talk serve :80 /said/web-$$(hostname)'
    healthcheck:
      test: "f=/said/ill-$$(hostname); [ ! -e $$f ] || { [ -s $$f ] || /talk now >$$f; exit 1; }"
      interval: 500ms
      retries: 1
    stop_grace_period: 100ms
    deploy: {replicas: 2}
    volumes: MOUNTS
  asks:
    image: busybox:lab
    command: /talk ask /said/asks web:80
    stop_grace_period: 100ms
    depends_on: {web: {condition: service_healthy}}
    volumes: MOUNTS
`

// TestUnhealthyInstanceLeavesTheAddress makes connections to the virtual address from another container, one after the other,
// while an instance turns unhealthy: the last that it gets is made within a second of the check that fails.
func TestUnhealthyInstanceLeavesTheAddress(t *testing.T) {
	within := 10 * time.Second // of a machine that does much else
	if os.Getenv("FAULTS") != "" {
		within = time.Second
	}
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	talk := lab.NewTalk(t)
	dir := lab.Project(t, strings.ReplaceAll(ill, "MOUNTS", talk.Mounts()))
	n.GantryIn(t, dir, "up", "--timeout", "2m")
	n.AwaitReady(t, "web", 2)
	sick := strings.TrimSpace(n.GantryIn(t, dir, "exec", "web.1", "hostname"))
	awaitAnswers(t, talk, "of both", 20, func(theirs int) bool { return theirs > 0 && theirs < 20 }, sick)

	if err := os.WriteFile(talk.Path("ill-"+sick), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(talk.Path("ill-"+sick), 0o666); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	lab.Eventually(t, 30*time.Second, "unhealthy", func() error {
		if view := n.Instance(t, "web.1"); view.Status.Health != gantryv1.InstanceStatus_HEALTH_UNHEALTHY {
			return fmt.Errorf("%v", view.Status.Health)
		}
		return nil
	})
	awaitAnswers(t, talk, "of the healthy one", 100, func(theirs int) bool { return theirs == 0 }, sick)
	failed := talk.Said(t, "ill-"+sick)
	if len(failed) != 1 {
		t.Fatalf("the check has failed %d times for the first time", len(failed))
	}
	var last lab.Said
	for _, s := range talk.Said(t, "asks") {
		if s.What == "failed" {
			t.Errorf("a connection failed: %s", s.Text)
		}
		if s.What == "answer" && s.By() == sick {
			last = s
		}
	}
	late := last.At.Sub(failed[0].At)
	t.Logf("the last connection to it was made %s after the check had failed", late)
	if late > within {
		t.Errorf("want at most %s", within)
	}

	if err := os.Remove(talk.Path("ill-" + sick)); err != nil {
		t.Fatal(err)
	}
	awaitAnswers(t, talk, "of both again", 20, func(theirs int) bool { return theirs > 0 && theirs < 20 }, sick)
}

// awaitAnswers waits until of the last answers so many are of one instance as are right.
func awaitAnswers(t *testing.T, talk *lab.Talk, what string, of int, right func(theirs int) bool, name string) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, "answers "+what, func() error {
		all := talk.Said(t, "asks")
		theirs := 0
		for _, s := range all[max(0, len(all)-of):] {
			if s.By() == name {
				theirs++
			}
		}
		if len(all) < of || !right(theirs) {
			return fmt.Errorf("%d of the last %d, of %d", theirs, of, len(all))
		}
		return nil
	})
}
