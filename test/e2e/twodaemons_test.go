package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// TestTwoDaemons runs two daemons that share all of one machine but the network namespace, --root and --run, with the same
// application on both. What happens to one, or to the application on it, is not noticed by the other.
func TestTwoDaemons(t *testing.T) {
	a := machine(t)
	b := a.Beside(t)
	b.StartDaemon(t)
	b.ImportBusybox(t)
	shareAllButTheNetwork(t, a, b)
	dir := lab.Project(t, twoServices+"  count: {image: \"busybox:lab\", command: [\"sh\", \"-c\", \""+strings.ReplaceAll(counter, "$", "$$")+"\"], stop_grace_period: 500ms}\n")
	for _, n := range []*lab.Node{a, b} {
		n.GantryIn(t, dir, "up")
	}
	undisturbed := runsAsBefore(t, b, dir)

	a.GantryIn(t, dir, "down")
	awaitNothing(t, a)
	awaitNoStrays(t, a)
	undisturbed("after a down on the other")

	a.GantryIn(t, dir, "up")
	undisturbed("after an up on the other")
	undisturbedA := runsAsBefore(t, a, dir)
	a.KillDaemon(t)
	undisturbed("while the other is dead")
	b.KillDaemon(t)
	a.StartDaemon(t)
	undisturbedA("when it came back first")
	b.StartDaemon(t)
	undisturbed("when it came back second")
	undisturbedA("when both were back")
}

// shareAllButTheNetwork wants the daemons to be in the same namespaces of every kind but one.
func shareAllButTheNetwork(t *testing.T, a, b *lab.Node) {
	t.Helper()
	for _, kind := range []string{"mnt", "pid", "cgroup", "uts", "ipc", "user", "net"} {
		var of [2]string
		for i, n := range []*lab.Node{a, b} {
			of[i], _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.DaemonPID(t), kind))
		}
		if of[0] == "" || (of[0] == of[1]) != (kind != "net") {
			t.Fatalf("%s namespaces of the daemons: %v", kind, of)
		}
	}
}

// runsAsBefore notes what runs of the application, and returns what wants the same of later.
func runsAsBefore(t *testing.T, n *lab.Node, dir string) func(when string) {
	t.Helper()
	now := func() (out string) {
		for _, service := range []string{"base", "count", "web"} {
			want := 1
			if service == "web" {
				want = 2
			}
			for _, view := range n.AwaitReady(t, service, want) {
				out += fmt.Sprintf("%s %s process %d at %s, %d restarts\n", lab.Name(view), view.Instance.Meta.Key, view.Status.Pid,
					view.Status.Address, view.Status.Restarts)
			}
		}
		return out
	}
	before := now()
	return func(when string) {
		t.Helper()
		lab.Eventually(t, 30*time.Second, "published port "+when, func() error { _, err := n.HTTPGet(":8090/"); return err })
		if after := now(); after != before {
			t.Errorf("%s:\n%swas\n%s", when, after, before)
		}
		consecutive(t, n.GantryIn(t, dir, "logs", "--no-log-prefix", "count"))
		awaitNoStrays(t, n)
	}
}
