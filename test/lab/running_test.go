package lab_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// TestRunning shows that what runs is known without asking the daemon.
func TestRunning(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	dir := lab.Project(t, `
name: shop
services:
  web: {image: "busybox:lab", command: sleep 100000, stop_grace_period: 1s, deploy: {replicas: 3}}
`)
	n.GantryIn(t, dir, "up")
	n.KillDaemon(t)
	slots := map[string]bool{}
	for _, r := range n.Running() {
		slots[r.Slot] = true
	}
	for slot := range 3 {
		if name := fmt.Sprintf("production/shop/web.%d", slot+1); !slots[name] {
			t.Errorf("%s is not seen: %v", name, slots)
		}
	}
	n.StartDaemon(t)
	n.GantryIn(t, dir, "scale", "web=1")
	lab.Eventually(t, 20*time.Second, "one instance", func() error {
		if running := n.Running(); len(running) != 1 {
			return fmt.Errorf("%v run", running)
		}
		return nil
	})
	if !n.Sound() {
		t.Error("a machine with nothing wrong is not sound")
	}
	n.PauseDaemon(t)
	if n.Sound() {
		t.Error("a machine with a paused daemon is sound")
	}
	n.ResumeDaemon(t)
	n.SetClock(t, time.Hour)
	n.Gantry(t, "ps")
	n.KillDaemon(t)
	n.StartDaemon(t)
	n.Gantry(t, "ps")
}
