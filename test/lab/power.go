package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PauseDaemon stops the daemon in its tracks with SIGSTOP: it answers nothing, its connections stay open.
func (n *Node) PauseDaemon(t testing.TB) {
	t.Helper()
	must(t, syscall.Kill(n.DaemonPID(t), syscall.SIGSTOP))
}

// ResumeDaemon lets a paused daemon go on.
func (n *Node) ResumeDaemon(t testing.TB) {
	t.Helper()
	must(t, syscall.Kill(n.DaemonPID(t), syscall.SIGCONT))
}

// Freeze stops everything on the machine at once, containers too, as a host does that pauses a virtual machine.
func (n *Node) Freeze(t testing.TB) {
	t.Helper()
	must(t, n.setFreezer(true))
}

// Thaw lets a frozen machine go on.
func (n *Node) Thaw(t testing.TB) {
	t.Helper()
	must(t, n.setFreezer(false))
}

// setFreezer uses the freezer of whichever version of cgroups the host has, and waits until it has taken effect.
func (n *Node) setFreezer(frozen bool) error {
	v1 := filepath.Join("/sys/fs/cgroup/freezer", n.cgroup(), "freezer.state")
	if _, err := os.Stat(v1); err == nil {
		state := map[bool]string{true: "FROZEN", false: "THAWED"}[frozen]
		return writeAndAwait(v1, state, v1, state+"\n")
	}
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(top, n.cgroup())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); err != nil {
			continue
		}
		state := map[bool]string{true: "1", false: "0"}[frozen]
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
