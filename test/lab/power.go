package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What can be wrong with a machine besides its links, as bits of Node.ill.
const (
	ended uint32 = 1 << iota // the daemon does not run
	paused
	frozen
	stalled
	unplugged
)

// Sound reports whether nothing is wrong with the machine at this moment that the lab did to it: its daemon runs and none of
// its links is cut or loses frames.
func (n *Node) Sound() bool { return n.ill.Load() == 0 && n.whole() }

// DaemonRuns reports whether the daemon runs; it may have ended by itself.
func (n *Node) DaemonRuns() bool { return n.ill.Load()&ended == 0 }

// PauseDaemon stops the daemon in its tracks with SIGSTOP: it answers nothing, its connections stay open.
func (n *Node) PauseDaemon(t testing.TB) {
	t.Helper()
	n.ill.Or(paused)
	must(t, syscall.Kill(n.DaemonPID(t), syscall.SIGSTOP))
}

// ResumeDaemon lets a paused daemon go on.
func (n *Node) ResumeDaemon(t testing.TB) {
	t.Helper()
	must(t, syscall.Kill(n.DaemonPID(t), syscall.SIGCONT))
	n.ill.And(^paused)
}

// Freeze stops everything on the machine at once, containers too, as a host does that pauses a virtual machine.
func (n *Node) Freeze(t testing.TB) {
	t.Helper()
	n.ill.Or(frozen)
	must(t, n.setFreezer(true))
}

// Thaw lets a frozen machine go on.
func (n *Node) Thaw(t testing.TB) {
	t.Helper()
	must(t, n.setFreezer(false))
	n.ill.And(^frozen)
}

// setFreezer uses the freezer of whichever version of cgroups the host has, and waits until it has taken effect.
func (n *Node) setFreezer(freeze bool) error {
	v1 := filepath.Join("/sys/fs/cgroup/freezer", n.cgroup(), "freezer.state")
	if _, err := os.Stat(v1); err == nil {
		state := map[bool]string{true: "FROZEN", false: "THAWED"}[freeze]
		return writeAndAwait(v1, state, v1, state+"\n")
	}
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(top, n.cgroup())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); err != nil {
			continue
		}
		state := map[bool]string{true: "1", false: "0"}[freeze]
		return writeAndAwait(filepath.Join(dir, "cgroup.freeze"), state, filepath.Join(dir, "cgroup.events"), "frozen "+state+"\n")
	}
	return errors.New("lab: the host has no cgroup freezer")
}

func writeAndAwait(path, value, events, want string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return err
	}
	for range 500 {
		if text, err := os.ReadFile(events); err != nil || strings.HasSuffix(string(text), want) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("lab: %s is not %s after 5 s", path, value)
}

// PowerOff is a power cut: every process and mount of the machine is gone at once. The disk stays.
func (n *Node) PowerOff(t testing.TB) {
	t.Helper()
	n.powerOff(t)
}

// PowerOn starts the machine again, and its daemon.
func (n *Node) PowerOn(t testing.TB) {
	t.Helper()
	n.powerOn(t)
	n.StartDaemon(t)
}

// PowerOnly starts the machine again without its daemon.
func (n *Node) PowerOnly(t testing.TB) {
	t.Helper()
	n.powerOn(t)
}

// PowerOn starts all machines that are off, all at once: servers need one another to answer.
func (l *Lab) PowerOn(t testing.TB) {
	t.Helper()
	for _, n := range l.nodes {
		if n.init == 0 {
			n.powerOn(t)
		}
	}
	l.StartDaemons(t)
}

// StartDaemons starts the daemons that do not run, all at once, and waits until all answer.
func (l *Lab) StartDaemons(t testing.TB) {
	t.Helper()
	var started []*Node
	for _, n := range l.nodes {
		if n.daemon == nil {
			must(t, n.launch())
			started = append(started, n)
		}
	}
	for _, n := range started {
		if err := n.awaitDaemon(time.Minute); err != nil {
			t.Fatalf("%s: %v\n%s", n.name, err, tail(n.DaemonLog(), 30))
		}
	}
}

// Retire takes a machine away for good, as one that has left the cluster. Its address is not used again.
func (l *Lab) Retire(t testing.TB, n *Node) {
	t.Helper()
	n.Heal(t)
	n.powerOff(t)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = slices.DeleteFunc(l.nodes, func(other *Node) bool { return other == n })
	l.gone = append(l.gone, n)
}

// Reboot is a power cut: every process and mount is gone, the disk stays. The daemon starts again.
func (n *Node) Reboot(t testing.TB) {
	t.Helper()
	n.PowerOff(t)
	n.PowerOn(t)
}

// Wipe is a power cut after which the disk is empty too. The machine stays off; PowerOn starts it as a new one.
func (n *Node) Wipe(t testing.TB) {
	t.Helper()
	n.powerOff(t)
	entries, err := os.ReadDir(n.root)
	must(t, err)
	for _, entry := range entries {
		must(t, os.RemoveAll(filepath.Join(n.root, entry.Name())))
	}
}
