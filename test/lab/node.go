package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "embed"
)

//go:embed node.sh
var nodeScript string

// Node is one machine of the lab.
type Node struct {
	lab      *Lab
	index    int // in the lab
	name     string
	addr     string
	dir      string // run/ and gantryd.log are here
	root     string // what survives a reboot
	holder   *exec.Cmd
	init     int    // process 1 of the machine, as the host numbers it
	netns    string // of its daemon, where that is not the machine's
	daemon   *exec.Cmd
	exited   chan error // closed by the daemon's end
	flags    []string
	bin      string        // of its programs; the lab's if empty
	join     []string      // flags that make it part of a cluster
	ill      atomic.Uint32 // what is wrong with it
	relay    *relay        // of Delay
	disk     *disk         // of its own, or nil
	volatile *volatile     // a disk that loses what is not synced, or nil
	clock    time.Duration // what the daemon's clock is wrong by
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// AddNode puts another machine on the network, without a daemon. root is where its daemon keeps its state; "" for a folder
// of the lab.
func (l *Lab) AddNode(t testing.TB, root string) *Node {
	t.Helper()
	n := l.newNode(t)
	if root != "" {
		n.root = root
	}
	n.powerOn(t)
	return n
}

// AddMachine is AddNode for a machine of a shape, of which the numbers and flags do not count.
func (l *Lab) AddMachine(t testing.TB, shape Shape) *Node {
	t.Helper()
	n := l.newNode(t)
	n.prepare(t, shape)
	n.powerOn(t)
	return n
}

// newNode makes a machine that is off.
func (l *Lab) newNode(t testing.TB) *Node {
	t.Helper()
	i := len(l.nodes) + len(l.gone)
	dir := filepath.Join(l.dir, fmt.Sprintf("n%d", i))
	n := &Node{
		lab: l, index: i, name: fmt.Sprintf("%sn%d", l.name, i), dir: dir, root: filepath.Join(dir, "root"),
		addr: fmt.Sprintf("198.18.%d.%d", l.subnet, 10+i),
	}
	n.ill.Store(ended)
	must(t, os.MkdirAll(n.root, 0o711))
	must(t, os.WriteFile(filepath.Join(dir, "node.sh"), []byte(nodeScript), 0o644))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	return n
}

// Name is the machine's host name, by which the cluster knows it.
func (n *Node) Name() string { return n.name }

// Address is the machine's IPv4 address on the lab's network.
func (n *Node) Address() string { return n.addr }

// Gateway is the address from which the test itself reaches the machine.
func (n *Node) Gateway() string { return n.lab.gateway() }

// Root is the folder of the daemon's state.
func (n *Node) Root() string { return n.root }

// Run is the folder of the daemon's sockets.
func (n *Node) Run() string { return n.run() }

// Host is the value of GANTRY_HOST for the machine's daemon.
func (n *Node) Host() string { return "unix://" + n.socket() }

func (n *Node) socket() string { return filepath.Join(n.dir, "s") }
func (n *Node) run() string    { return filepath.Join(n.dir, "run") }
func (n *Node) cgroup() string { return n.name }

// powerOn starts process 1 and plugs the machine in.
func (n *Node) powerOn(t testing.TB) {
	t.Helper()
	must(t, os.RemoveAll(n.run()))
	must(t, os.MkdirAll(n.run(), 0o755))
	args := []string{filepath.Join(n.dir, "node.sh"), n.cgroup(), n.name, n.run()}
	if n.volatile != nil {
		args = append(args, n.volatile.args...)
	}
	n.holder = exec.Command("bash", args...)
	n.holder.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	var errs bytes.Buffer
	n.holder.Stderr = &errs
	out, err := n.holder.StdoutPipe()
	must(t, err)
	must(t, n.holder.Start())
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		_ = n.holder.Process.Kill()
		t.Fatalf("lab: machine %s did not start: %v: %s", n.name, n.holder.Wait(), errs.String())
	}
	n.init = firstChild(t, n.holder.Process.Pid)
	n.Plug(t)
}

// Plug connects the machine to the lab's network.
func (n *Node) Plug(t testing.TB) {
	t.Helper()
	// After a power cut the kernel takes a moment to remove the end that went with the machine's namespace.
	_ = exec.Command("ip", "link", "del", n.name).Run() // mostly there is none
	run(t, time.Minute, "ip", "link", "add", n.name, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.init))
	run(t, time.Minute, "ip", "link", "set", n.name, "master", n.lab.name, "up")
	n.Exec(t, "ip", "addr", "add", n.addr+"/24", "dev", "eth0")
	n.Exec(t, "ip", "link", "set", "eth0", "up")
	n.Exec(t, "ip", "route", "add", "default", "via", n.lab.gateway())
	n.ill.And(^unplugged)
}

// Unplug takes the machine off the network.
func (n *Node) Unplug(t testing.TB) {
	t.Helper()
	n.ill.Or(unplugged)
	run(t, time.Minute, "ip", "link", "del", n.name)
}

// Readdress gives a machine of a cluster, whose daemon does not run, another address, with which it is started next.
func (n *Node) Readdress(t testing.TB) {
	t.Helper()
	old := n.addr
	n.addr = fmt.Sprintf("198.18.%d.%d", n.lab.subnet, 200+n.index)
	n.join = []string{"--advertise", n.addr}
	n.Exec(t, "ip", "addr", "del", old+"/24", "dev", "eth0") // the default route goes with it
	n.Exec(t, "ip", "addr", "add", n.addr+"/24", "dev", "eth0")
	n.Exec(t, "ip", "route", "add", "default", "via", n.lab.gateway())
}

// firstChild returns the only child of a process.
func firstChild(t testing.TB, pid int) int {
	t.Helper()
	child, err := onlyChild(pid)
	must(t, err)
	return child
}

func onlyChild(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// powerOff kills everything on the machine at once.
func (n *Node) powerOff(t testing.TB) {
	if n.init == 0 {
		return
	}
	// What is frozen cannot die.
	if n.ill.Load()&stalled != 0 {
		n.ResumeDisk(t)
	}
	_ = n.setFreezer(false)
	n.ill.Store(ended)
	if err := n.loseUnsynced(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(n.init, syscall.SIGKILL); err != nil {
		t.Logf("lab: %s: %v", n.name, err)
	}
	// The daemon first: process 1 ends when all others have been waited for.
	if n.daemon != nil && !n.awaitExit(30*time.Second) {
		t.Errorf("lab: %s: gantryd outlived its machine", n.name)
		n.daemon = nil
	}
	_ = n.holder.Wait()
	n.init = 0
	if n.volatile != nil {
		n.volatile.awaitUnmounted(t)
	}
	n.Delay(t, 0)
}

// remove takes the machine away for good.
func (n *Node) remove(t testing.TB) {
	n.powerOff(t)
	if n.disk != nil {
		n.disk.remove()
	}
}

// SetFlags gives the daemon further flags from its next start on.
func (n *Node) SetFlags(flags ...string) { n.flags = flags }

// SetPrograms has the daemon started from another folder from its next start on, one that holds gantryd and all that belongs
// beside it. The command line stays the lab's.
func (n *Node) SetPrograms(dir string) { n.bin = dir }

// StartDaemon starts gantryd and waits until it answers.
func (n *Node) StartDaemon(t testing.TB) {
	t.Helper()
	if err := n.TryStartDaemon(60 * time.Second); err != nil {
		t.Fatalf("%s: %v\n%s", n.name, err, tail(n.DaemonLog(), 30))
	}
}

// TryStartDaemon starts gantryd and returns an error if it ends, or does not answer in time.
func (n *Node) TryStartDaemon(timeout time.Duration) error {
	if err := n.launch(); err != nil {
		return err
	}
	return n.awaitDaemon(timeout)
}

// launch starts gantryd and does not wait for it.
func (n *Node) launch() error {
	log, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{filepath.Join(cmp.Or(n.bin, n.lab.bin), "gantryd"), "--root", n.root, "--run", n.run(), "--listen", n.Host()}, n.join...)
	args = append(args, n.flags...)
	cmd := exec.Command("nsenter", n.enter(args)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		n.ill.Or(ended)
		exited <- err
		close(exited)
	}()
	n.daemon, n.exited = cmd, exited
	return nil
}

func (n *Node) awaitDaemon(timeout time.Duration) error {
	deadline := time.After(timeout)
	for {
		select {
		case err := <-n.exited:
			n.daemon = nil
			return fmt.Errorf("gantryd ended: %v", err)
		case <-deadline:
			return errors.New("gantryd does not answer: " + n.Try("system", "info").Stderr)
		case <-time.After(30 * time.Millisecond):
			if n.Try("system", "info").Code == 0 {
				n.ill.And(^ended)
				return n.skewClock()
			}
		}
	}
}

// enter is the arguments of nsenter that run args as root of the machine, in its cgroups too.
func (n *Node) enter(args []string) []string {
	if n.netns != "" {
		args = append([]string{"nsenter", "--net=" + n.netns, "--"}, args...)
	}
	target := strconv.Itoa(n.init)
	flags := []string{"--target", target, "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--"}
	// nsenter does not change cgroups: join them by the machine's own view of /sys.
	join := `for d in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do echo 0 >"$d/cgroup.procs"; done; exec "$@"`
	return append(append(flags, "bash", "-c", join, "lab"), args...)
}

// KillDaemon ends the daemon with SIGKILL and waits until it is gone. Containers stay.
func (n *Node) KillDaemon(t testing.TB) {
	t.Helper()
	n.endDaemon(t, syscall.SIGKILL)
}

// StopDaemon ends the daemon with SIGTERM and waits until it is gone. Containers stay.
func (n *Node) StopDaemon(t testing.TB) {
	t.Helper()
	n.endDaemon(t, syscall.SIGTERM)
}

func (n *Node) endDaemon(t testing.TB, signal syscall.Signal) {
	t.Helper()
	pid := n.DaemonPID(t)
	n.ill.Or(ended)
	must(t, syscall.Kill(pid, signal))
	if !n.awaitExit(30 * time.Second) {
		t.Fatalf("%s: gantryd did not end within 30 s of %v\n%s", n.name, signal, tail(n.DaemonLog(), 30))
	}
}

// awaitExit waits until the daemon is gone. nsenter stops itself when the daemon is stopped, and must go on to see its end.
func (n *Node) awaitExit(timeout time.Duration) bool {
	deadline := time.After(timeout)
	for {
		_ = syscall.Kill(n.daemon.Process.Pid, syscall.SIGCONT)
		select {
		case <-n.exited:
			n.daemon = nil
			return true
		case <-deadline:
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// DaemonPID is the daemon's process, as the host numbers it. nsenter forks to enter the process namespace.
func (n *Node) DaemonPID(t testing.TB) int {
	t.Helper()
	if n.daemon == nil {
		t.Fatalf("%s: the daemon does not run", n.name)
	}
	return firstChild(t, n.daemon.Process.Pid)
}

func (n *Node) logPath() string { return filepath.Join(n.dir, "gantryd.log") }

// DaemonLog is what the daemon has written since the machine was made.
func (n *Node) DaemonLog() string {
	text, _ := os.ReadFile(n.logPath())
	return string(text)
}

// Gantry runs the command line against the machine's daemon, ends the test if it fails, and returns its stdout.
func (n *Node) Gantry(t testing.TB, args ...string) string {
	t.Helper()
	return n.GantryIn(t, "", args...)
}

// GantryIn is Gantry in a folder.
func (n *Node) GantryIn(t testing.TB, dir string, args ...string) string {
	t.Helper()
	result := n.TryIn(dir, args...)
	if result.Code != 0 {
		t.Fatalf("gantry %s: exit %d\n%s%s", strings.Join(args, " "), result.Code, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// Try runs the command line against the machine's daemon and returns how it ended.
func (n *Node) Try(args ...string) Result { return n.TryIn("", args...) }

// TryIn is Try in a folder.
func (n *Node) TryIn(dir string, args ...string) Result {
	return n.TryWithin(15*time.Minute, dir, args...)
}

// TryWithin is TryIn for at most that time; then the command line is killed.
func (n *Node) TryWithin(limit time.Duration, dir string, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.lab.bin, "gantry"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GANTRY_HOST="+n.Host())
	return finish(cmd)
}

// Exec runs a command on the machine, ends the test if it fails, and returns its output.
func (n *Node) Exec(t testing.TB, args ...string) string {
	t.Helper()
	result := n.TryExec(args...)
	if result.Code != 0 {
		t.Fatalf("%s: %s: exit %d\n%s%s", n.name, strings.Join(args, " "), result.Code, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// TryExec runs a command on the machine and returns how it ended.
func (n *Node) TryExec(args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return finish(exec.CommandContext(ctx, "nsenter", n.enter(args)...))
}

// Command prepares a command on the machine, for those who start it themselves.
func (n *Node) Command(args ...string) *exec.Cmd { return exec.Command("nsenter", n.enter(args)...) }

func finish(cmd *exec.Cmd) Result {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	result := Result{Stdout: out.String(), Stderr: errs.String(), Code: cmd.ProcessState.ExitCode()}
	if err != nil && result.Code <= 0 {
		result.Code, result.Stderr = 255, result.Stderr+err.Error()
	}
	return result
}

// HTTPGet reads a page as a client on the lab's network sees it; url may begin with a port: ":8080/".
func (n *Node) HTTPGet(url string) (string, error) {
	if strings.HasPrefix(url, ":") {
		url = "http://" + n.addr + url
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err == nil && res.StatusCode >= 400 {
		err = fmt.Errorf("%s: %s: %s", url, res.Status, body)
	}
	return string(body), err
}

// removeCgroups removes a cgroup and those below it, deepest first.
func removeCgroups(t testing.TB, top string) {
	var dirs []string
	_ = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		if err := removeCgroup(dir); err != nil {
			t.Logf("lab: %v", err)
		}
	}
}

// removeCgroup waits out the moment in which killed processes still leave.
func removeCgroup(dir string) error {
	for range 100 {
		err := os.Remove(dir)
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s is still in use", dir)
}
