package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// rewrite puts another Compose file into a project's directory.
func rewrite(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const rolled = `
name: rolled
services:
  web:
    image: busybox:lab
    command: COMMAND
    stop_grace_period: 1s
    deploy: {replicas: 3, update_config: {failure_action: rollback, parallelism: 1}}
    x-gantry: {update: UPDATE}
`

func rolledAs(command, update string) string {
	return strings.NewReplacer("COMMAND", command, "UPDATE", update).Replace(rolled)
}

// TestRollout takes a service to a release that fails, and back by itself; by a canary to one that works; and refuses a plan of
// the time before.
func TestRollout(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, rolledAs("sleep 100001", "{}"))
	plan := n.TryWithin(time.Minute, dir, "plan")
	index := regexp.MustCompile(`--check-index (\d+)`).FindStringSubmatch(plan.Stdout)
	if index == nil {
		t.Fatalf("the plan has no index:\n%s%s", plan.Stdout, plan.Stderr)
	}
	n.GantryIn(t, dir, "up", "--timeout", "60s", "--check-index", index[1])
	refused(t, n, dir, time.Minute, []string{"has changed since it was planned"}, "up", "--check-index", index[1])

	rewrite(t, dir, rolledAs(`sh -c 'echo the cellar is flooded; exit 3'`, "{}"))
	refused(t, n, dir, time.Minute, []string{"has gone back to release 1", "the cellar is flooded", "last log lines of web.1"}, "up", "--timeout", "50s")
	n.AwaitReady(t, "web", 3)
	if out := n.GantryIn(t, dir, "rollout", "show", "web"); !strings.Contains(out, "rolled back") {
		t.Errorf("the rollout says\n%s", out)
	}

	rewrite(t, dir, rolledAs("sleep 100003", "{strategy: canary, canary: [{count: 1, weight: 10, approval: true}]}"))
	n.GantryIn(t, dir, "up", "--timeout", "60s")
	if out := n.GantryIn(t, dir, "rollout", "ls"); !strings.Contains(out, "paused, waits for approval") {
		t.Errorf("nobody waits for approval:\n%s", out)
	}
	n.GantryIn(t, dir, "rollout", "resume", "web")
	if out := n.GantryIn(t, dir, "rollout", "show", "-f", "web"); !strings.Contains(out, "release 1 -> 3, done") {
		t.Errorf("the canary did not become all:\n%s", out)
	}
	n.GantryIn(t, dir, "rollback", "web", "--wait-timeout", "60s")
	n.GantryIn(t, dir, "stop", "-t", "0", "web")
}
