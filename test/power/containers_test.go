package power_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// TestContainersSurvivePowerCuts cuts the power soon after an image was imported and a container was started from it. The
// image's files, the container's own and what the container has synced are there again; it is the same container.
func TestContainersSurvivePowerCuts(t *testing.T) {
	n := lab.Form(t, lab.Shape{Servers: 1, Volatile: lab.Ext4}).Node(0)
	n.ImportBusybox(t)
	// Only its own file is synced: a sync of everything would do the engine's work.
	const script = `cat /marker; dd if=/etc/hostname of=/marker conv=fsync 2>/dev/null; exec sleep 1000`
	var names, ids []string
	for i := range 3 {
		name := fmt.Sprintf("c%d", i)
		ids = append(ids, strings.TrimSpace(n.Gantry(t, "run", "-d", "--restart", "always", "--name", name, lab.Busybox, "sh", "-c", script)))
		names = append(names, name)
		lab.Eventually(t, 20*time.Second, "marker of "+name, func() error {
			if res := n.Try("exec", name, "sh", "-c", "test -s /marker"); res.Code != 0 {
				return fmt.Errorf("%s", res.Stderr)
			}
			return nil
		})
		n.PowerOff(t)
		n.PowerOn(t)
		for j, name := range names {
			lab.Eventually(t, 20*time.Second, name+" after the cut", func() error { return same(n, name, ids[j]) })
		}
	}
	for line := range strings.Lines(n.DaemonLog()) {
		if strings.Contains(line, "half-made") {
			t.Error(line)
		}
	}
}

// same looks whether a container has what it has written, and the files that it was given.
func same(n *lab.Node, name, id string) error {
	res := n.Try("exec", name, "sh", "-c", "cat /marker && grep -q localhost /etc/hosts && grep -q nameserver /etc/resolv.conf && cat /etc/hostname")
	if res.Code != 0 {
		return fmt.Errorf("exit %d: %s%s", res.Code, res.Stderr, n.Try("logs", name).Stdout)
	}
	if marker, host, _ := strings.Cut(strings.TrimSpace(res.Stdout), "\n"); marker != host || !strings.HasPrefix(id, host) {
		return fmt.Errorf("its marker is of %q, its name is %q, it was %q", marker, host, id)
	}
	return nil
}
