package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Lab is a network with machines on it.
type Lab struct {
	name   string // unique on the host, at most 10 characters
	dir    string
	bin    string
	subnet int // 198.18.subnet.0/24
	nodes  []*Node
	gone   []*Node // retired

	mu     sync.Mutex    // held to change nodes and harmed
	harmed map[link]harm // links that are not whole
}

// clusters counts the labs of this process.
var clusters atomic.Int32

// Machines starts a lab of n machines with a daemon on each that knows nothing of the others. It skips the test where it is
// not root.
func Machines(t testing.TB, n int) *Lab {
	t.Helper()
	l := Network(t)
	for range n {
		l.AddNode(t, "").StartDaemon(t)
	}
	return l
}

// Network makes a lab without machines.
func Network(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the lab needs root for namespaces, mounts and cgroups")
	}
	name := fmt.Sprintf("gl%s%d", strconv.FormatInt(int64(os.Getpid()), 36), clusters.Add(1))
	// Short, because paths of sockets may have 107 characters only.
	dir := filepath.Join(os.TempDir(), name)
	l := &Lab{name: name, dir: dir, bin: Binaries(t), harmed: map[link]harm{}}
	Sweep(t)
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(os.Getpid())+" "+pidNamespace()), 0o644))
	t.Cleanup(func() { l.remove(t) })
	l.makeBridge(t)
	return l
}

// Node returns the i-th machine.
func (l *Lab) Node(i int) *Node { return l.nodes[i] }

// Nodes returns all machines, those that are off too.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.nodes)
}

// Binaries returns the folder with gantry, gantryd, runc and the shim: GANTRY_BIN, or bin/ of this checkout, made by
// `make build` if gantryd is not there.
func Binaries(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("GANTRY_BIN"); dir != "" {
		return dir
	}
	top := Top(t)
	bin := filepath.Join(top, "bin")
	if _, err := os.Stat(filepath.Join(bin, "gantryd")); err != nil {
		run(t, 20*time.Minute, "make", "-C", top, "build")
	}
	return bin
}

// Top returns the root of the checkout.
func Top(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test's folder")
	return ""
}

// makeBridge joins the lab's machines, and translates their addresses on the way out.
func (l *Lab) makeBridge(t testing.TB) {
	t.Helper()
	used := run(t, time.Minute, "ip", "-4", "addr")
	for l.subnet = os.Getpid() % 200; strings.Contains(used, l.gateway()+"/"); l.subnet = (l.subnet + 1) % 250 {
	}
	run(t, time.Minute, "ip", "link", "add", l.name, "type", "bridge")
	run(t, time.Minute, "ip", "addr", "add", l.gateway()+"/24", "dev", l.name)
	run(t, time.Minute, "ip", "link", "set", l.name, "up")
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
	rules := fmt.Sprintf(`table ip %s { chain post { type nat hook postrouting priority srcnat; ip saddr 198.18.%d.0/24 oifname != "%s" masquerade; }; }`,
		l.name, l.subnet, l.name)
	run(t, time.Minute, "nft", rules)
	l.applyLinks(t)
}

func (l *Lab) gateway() string { return fmt.Sprintf("198.18.%d.1", l.subnet) }

// remove takes everything away in the order that frees it; it goes on past failures and reports them.
func (l *Lab) remove(t testing.TB) {
	for _, n := range append(l.nodes, l.gone...) {
		if t.Failed() {
			t.Logf("%s, end of the daemon's log:\n%s", n.name, tail(n.DaemonLog(), 60))
		}
		n.remove(t)
	}
	l.removeFromHost(t)
	if os.Getenv("LAB_KEEP") != "" && t.Failed() {
		t.Logf("lab: kept %s", l.dir)
		return
	}
	if err := os.RemoveAll(l.dir); err != nil {
		t.Errorf("lab: something of the test is left: %v", err)
	}
}

// removeFromHost removes the lab's bridge, tables and cgroups.
func (l *Lab) removeFromHost(t testing.TB) {
	for _, args := range [][]string{
		{"nft", "delete", "table", "ip", l.name}, {"nft", "delete", "table", "bridge", l.name}, {"ip", "link", "del", l.name},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Logf("lab: %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		tops, _ := filepath.Glob(pattern + l.name + "n*")
		for _, top := range tops {
			removeCgroups(t, top)
		}
	}
}

// Sweep removes labs of processes that ended without a chance to clean up, as after a test's time limit. The machines
// of such a lab are dead already: they die with the process that started them.
func Sweep(t testing.TB) {
	records, _ := filepath.Glob(filepath.Join(os.TempDir(), "gl*", "pid"))
	for _, record := range records {
		text, err := os.ReadFile(record)
		if err != nil {
			continue
		}
		pid, namespace, _ := strings.Cut(string(text), " ")
		if _, err := os.Stat("/proc/" + pid); err == nil || namespace != pidNamespace() {
			continue // it lives, or it cannot be seen from here, as from a machine of the lab
		}
		dir := filepath.Dir(record)
		t.Logf("lab: removing %s, which a dead process left", dir)
		(&Lab{name: filepath.Base(dir)}).removeFromHost(t)
		thawBelow(dir)
		unmountBelow(dir)
		_ = os.RemoveAll(dir)
	}
}

// pidNamespace names the namespace in which this process has its number.
func pidNamespace() string {
	name, _ := os.Readlink("/proc/self/ns/pid")
	return name
}

// Eventually polls until check returns nil, and fails the test with its last error after the timeout.
func Eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s: %v", what, timeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// run runs a command on the host and returns its output; it ends the test if the command fails.
func run(t testing.TB, timeout time.Duration, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tail returns the last n lines of text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
