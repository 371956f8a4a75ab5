package e2e_test

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// TestFullDisk gives the daemon a small disk, fills it, and frees it again.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, "600M")
	l := lab.Network(t)
	n := l.AddNode(t, disk)
	n.StartDaemon(t)
	n.ImportBusybox(t)
	n.Gantry(t, "run", "-d", "--name", "before", lab.Busybox, "sleep", "100000")

	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	refused(t, n, "", time.Minute, []string{"is full", "gantry system prune"}, "run", "--rm", lab.Busybox, "sh", "-c", "true")
	if view := n.Instance(t, "before"); view == nil || !lab.Ready(view) {
		t.Error("a container that ran before the disk was full does not run")
	}
	n.Gantry(t, "ps")
	n.KillDaemon(t)
	if err := n.TryStartDaemon(20 * time.Second); err != nil && !strings.Contains(n.DaemonLog(), "space") {
		t.Errorf("the daemon on a full disk does not say why it ended: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if n.Try("system", "info").Code != 0 {
		n.StartDaemon(t)
	}
	admitted(t, n)
	if view := n.Instance(t, "before"); view == nil || !lab.Ready(view) {
		t.Error("the container from before is lost")
	}
}

// admitted waits until changes are taken, as they are a moment after there is space.
func admitted(t *testing.T, n *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, "changes are taken", func() error {
		_, err := n.Client(t).Configs.Create(t.Context(), connect.NewRequest(&gantryv1.CreateFileRequest{
			Environment: "production", Name: fmt.Sprint("admitted-", time.Now().UnixNano()), Content: []byte("x"),
		}))
		return err
	})
}

// smallDisk mounts a file system of that size; its folder is short enough for sockets.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, err := os.MkdirTemp("", "gld")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file, at := filepath.Join(dir, "disk"), filepath.Join(dir, "m")
	host(t, "truncate", "-s", size, file)
	host(t, "mkfs.ext4", "-q", "-F", "-m", "0", file)
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	host(t, "mount", "-o", "loop", file, at)
	t.Cleanup(func() { host(t, "umount", "-l", at) })
	return at
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 1; size /= 16 {
		for block := make([]byte, size); ; {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
	}
	_ = f.Sync()
}

func host(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestReadOnlyRoot(t *testing.T) {
	disk := smallDisk(t, "64M")
	host(t, "mount", "-o", "remount,ro", disk)
	n := lab.Network(t).AddNode(t, disk)
	if err := n.TryStartDaemon(30 * time.Second); err == nil {
		t.Fatal("the daemon started on a read-only root")
	}
	if log := n.DaemonLog(); !strings.Contains(log, "read-only") || !strings.Contains(log, disk) {
		t.Errorf("it does not say that its root %s is read-only:\n%s", disk, log)
	}
}

func TestPortTaken(t *testing.T) {
	n := machine(t)
	taken := n.Command("busybox", "nc", "-l", "-p", "8090")
	if err := taken.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Process.Kill(); _ = taken.Wait() })
	lab.Eventually(t, 5*time.Second, "port in use", func() error {
		conn, err := net.DialTimeout("tcp", n.Address()+":8091", time.Second)
		if err == nil {
			conn.Close()
		}
		if strings.Contains(n.Exec(t, "cat", "/proc/net/tcp", "/proc/net/tcp6"), ":1F9A ") {
			return nil
		}
		return fmt.Errorf("nc does not listen")
	})
	refused(t, n, "", 30*time.Second, []string{"8090", "port"}, "run", "--rm", "-p", "8090:80", lab.Busybox, "true")
	n.Gantry(t, "run", "-d", "--name", "first", "-p", "8092:80", lab.Busybox, "sleep", "100000")
	refused(t, n, "", 30*time.Second, []string{"8092", "first"}, "run", "--rm", "-p", "8092:80", lab.Busybox, "true")
	works(t, n)
}

func TestHealthCheckHangs(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: hang
services:
  box:
    image: busybox:lab
    command: sleep 100000
    healthcheck: {test: ["CMD", "sleep", "99999"], interval: 1s, timeout: 1s, retries: 2}
`)
	refused(t, n, dir, time.Minute, []string{"box", "health"}, "up", "--timeout", "15s")
	if view := n.Instance(t, "box.1"); view == nil || view.Status.Health != gantryv1.InstanceStatus_HEALTH_UNHEALTHY {
		t.Errorf("want unhealthy, got %v", view)
	}
	time.Sleep(5 * time.Second)
	if hanging := strings.Count(n.Exec(t, "ps", "axo", "args"), "sleep 99999\n"); hanging > 1 {
		t.Errorf("%d hanging checks pile up", hanging)
	}
	works(t, n)
}

func TestSIGTERMIgnored(t *testing.T) {
	n := machine(t)
	n.Gantry(t, "run", "-d", "--name", "deaf", lab.Busybox, "sh", "-c", `trap "" TERM; while :; do sleep 1; done`)
	began := time.Now()
	stopped := n.Try("stop", "-t", "2", "deaf")
	if took := time.Since(began); took < 1900*time.Millisecond || took > 6*time.Second {
		t.Errorf("stop -t 2 took %s", took)
	}
	if view := n.Instance(t, "deaf"); view == nil || view.Status.ExitCode != 137 || view.Status.KilledAfter.AsDuration() != 2*time.Second {
		t.Errorf("want exit code 137 after 2 s, got %v", view)
	}
	for what, said := range map[string]string{
		"stop": stopped.Stderr, "ps": n.Gantry(t, "ps", "-a"), "inspect": n.Gantry(t, "inspect", "deaf"), "events": recentEvents(t, n),
	} {
		want := map[string]string{"stop": "deaf did not end within 2s and was killed", "inspect": `"killedAfter": "2s"`}[what]
		if want = cmp.Or(want, "did not end within 2s"); !strings.Contains(said, want) {
			t.Errorf("gantry %s does not say %q:\n%s", what, want, said)
		}
	}
	// One that ends in time is not said to have been killed.
	n.Gantry(t, "run", "-d", "--name", "meek", "--stop-signal", "KILL", lab.Busybox, "sleep", "100000")
	if said := n.Try("stop", "-t", "20", "meek"); strings.Contains(said.Stderr, "killed") {
		t.Errorf("stop said %q", said.Stderr)
	}
	if view := n.Instance(t, "meek"); view == nil || view.Status.ExitCode != 137 || view.Status.KilledAfter != nil {
		t.Errorf("want exit code 137 by its own stop signal, got %v", view)
	}
}

// recentEvents are the events of the last ten minutes.
func recentEvents(t *testing.T, n *lab.Node) string {
	t.Helper()
	return n.Gantry(t, "events", "--since", "10m", "--until", "0s")
}

func TestForkBomb(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: bomb
services:
  bomb:
    image: busybox:lab
    pids_limit: 50
    command: sh -c 'b() { b | b & }; (while :; do b; sleep 0.05; done) & exec sleep 100000'
    stop_grace_period: 1s
  neighbour:
    image: busybox:lab
    pids_limit: 50
    command: sh -c 'mkdir /w; echo well >/w/index.html; exec httpd -f -p 80 -h /w'
    ports: ["8090:80"]
    healthcheck: {test: ["CMD", "true"], interval: 1s, timeout: 10s}
    stop_grace_period: 1s
`)
	n.GantryIn(t, dir, "up", "-d")
	before := n.AwaitReady(t, "neighbour", 1)[0]
	lab.Eventually(t, time.Minute, "the limit is reached", func() error {
		if got := n.AwaitReady(t, "bomb", 1)[0].Status.GetPidsLimitReached(); got != 50 {
			return fmt.Errorf("the limit that was reached is said to be %d", got)
		}
		return nil
	})
	if count := strings.Count(n.Exec(t, "ps", "axo", "args"), "\n"); count > 150 {
		t.Errorf("%d processes on the machine, 50 were allowed in the container", count)
	}
	for what, said := range map[string]string{
		"ps": n.GantryIn(t, dir, "ps"), "inspect": n.GantryIn(t, dir, "inspect", "bomb.1"), "events": recentEvents(t, n),
	} {
		want := map[string]string{"inspect": `"pidsLimitReached": "50"`}[what]
		if want = cmp.Or(want, "reached its limit of 50 processes"); !strings.Contains(said, want) {
			t.Errorf("gantry %s does not say %q:\n%s", what, want, said)
		}
	}
	works(t, n)
	if page, err := n.HTTPGet(":8090/"); err != nil || page != "well\n" {
		t.Errorf("the neighbour does not answer: %q, %v", page, err)
	}
	after := n.Instance(t, "neighbour.1")
	if !lab.Ready(after) || after.Status.Restarts != 0 || after.Status.Pid != before.Status.Pid || after.Status.PidsLimitReached != 0 {
		t.Errorf("the neighbour suffered: %v", after)
	}
	n.GantryIn(t, dir, "down")
	awaitNothing(t, n)
}

func TestOutOfMemory(t *testing.T) {
	n := machine(t)
	n.Gantry(t, "run", "-d", "--name", "neighbour", lab.Busybox, "sleep", "100000")
	result := n.Try("run", "--name", "hog", "--memory", "32m", lab.Busybox, "sh", "-c", `x=0123456789; while :; do x=$x$x; done`)
	if result.Code != 137 {
		t.Errorf("exit %d, want 137", result.Code)
	}
	view := n.Instance(t, "hog")
	if view == nil || !view.Status.OomKilled {
		t.Errorf("not reported as killed for its memory: %v", view)
	}
	if said := strings.ToLower(result.Stderr); !strings.Contains(said, "memory") {
		t.Errorf("the command line does not say why: %q", said)
	}
	if view := n.Instance(t, "neighbour"); !lab.Ready(view) {
		t.Error("the neighbour suffered")
	}
}

func TestCorruptImports(t *testing.T) {
	n := machine(t)
	whole, err := os.ReadFile(lab.BusyboxArchive(t))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, body := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "truncated": whole[:len(whole)/2], "flipped": flipped,
		"zeros": make([]byte, 1<<20),
	} {
		path := filepath.Join(t.TempDir(), name+".tar")
		if err := os.WriteFile(path, body, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, n, "", 30*time.Second, []string{name + ".tar"}, "image", "import", path)
	}
	works(t, n)
}

func TestHugeComposeFile(t *testing.T) {
	n := machine(t)
	const head = "services:\n  box:\n    image: busybox:lab\n    command: sleep 100000\n    stop_grace_period: 1s\n"

	t.Run("10 MB of comments are read", func(t *testing.T) {
		dir := lab.Project(t, head+strings.Repeat("# padding\n", 990_000))
		n.GantryIn(t, dir, "up")
		n.AwaitReady(t, "box", 1)
		n.GantryIn(t, dir, "down")
	})
	t.Run("10 MB of environment are too much for a process", func(t *testing.T) {
		var huge strings.Builder
		huge.WriteString(head + "    environment:\n")
		for i := 0; huge.Len() < 9_900_000; i++ {
			fmt.Fprintf(&huge, "      KEY_%d: \"%s\"\n", i, strings.Repeat("x", 1000))
		}
		dir := lab.Project(t, huge.String())
		refused(t, n, dir, 90*time.Second, []string{"box"}, "up", "--timeout", "60s")
		n.GantryIn(t, dir, "down")
	})
	t.Run("beyond the limit", func(t *testing.T) {
		refused(t, n, lab.Project(t, head+strings.Repeat("# padding\n", 2_000_000)), 10*time.Second, []string{"compose.yaml", "larger"}, "up")
	})
	refused(t, n, lab.Project(t, aliasBomb()), 30*time.Second, []string{"compose"}, "up")
	works(t, n)
}

// aliasBomb is a few hundred bytes that stand for nine to the power of ten values.
func aliasBomb() string {
	aliases := "name: bomb\nx-a: &a [x,x,x,x,x,x,x,x,x]\n"
	for from := 'a'; from < 'j'; from++ {
		aliases += fmt.Sprintf("x-%c: &%c [%s]\n", from+1, from+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", from), 9), ","))
	}
	aliases += "services:\n  box: {image: \"busybox:lab\", labels: *j}\n"
	return aliases
}

// TestNoCgroup takes away the right to make cgroups under the daemon's parent.
func TestNoCgroup(t *testing.T) {
	n := machine(t)
	n.Exec(t, "bash", "-c", `for d in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do mount -o remount,ro,bind "$d" 2>/dev/null || mount --bind -o ro "$d" "$d"; done`)
	refused(t, n, "", 30*time.Second, []string{"cgroup"}, "run", "--rm", lab.Busybox, "true")
	n.Gantry(t, "ps")
	n.Exec(t, "bash", "-c", `for d in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do mount -o remount,rw,bind "$d"; done`)
	works(t, n)
}

func TestPrivilegedIsRefused(t *testing.T) {
	n := machine(t)
	refused(t, n, "", 30*time.Second, []string{"privileged"}, "run", "--rm", "--privileged", lab.Busybox, "true")
}

// TestDiskFillsMidway has a container, a build and two imports use up the disk while they work. Each says that it is full and
// what to do, leaves nothing half made, and a neighbour goes on.
func TestDiskFillsMidway(t *testing.T) {
	const room = 170 << 20 // what is left before each: with less, changes are refused before they begin
	disk := smallDisk(t, "700M")
	n := lab.Network(t).AddNode(t, disk)
	n.StartDaemon(t)
	n.ImportBusybox(t)
	n.Gantry(t, "run", "-d", "--name", "neighbour", "-p", "8090:80", lab.Busybox, "sh", "-c", "mkdir /w; echo well >/w/index.html; exec httpd -f -p 80 -h /w")
	neighbour := n.Instance(t, "neighbour")
	dir := lab.Project(t, "name: none\nservices: {}\n")
	for name, body := range map[string]string{"step": "FROM busybox:lab\nRUN cat /dev/zero >/fill\n", "Dockerfile": "FROM busybox:lab\nCOPY . /\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, room+16<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	lab.WriteImage(t, filepath.Join(dir, "noise.tar"), "noise:lab", map[string][]byte{"noise": noise})                  // its layer has no room
	lab.WriteImage(t, filepath.Join(dir, "zero.tar"), "zero:lab", map[string][]byte{"zero": make([]byte, room+16<<20)}) // nor has what is in it

	ballast := filepath.Join(disk, "ballast")
	for _, c := range []struct {
		name  string
		words []string
		args  []string
	}{
		{"container", []string{"no space left"}, []string{"run", "--rm", lab.Busybox, "sh", "-c", "cat /dev/zero >/fill"}},
		{"build step", []string{"step:2", "no space left", "gantry system prune"}, []string{"build", "-f", "step", "-t", "full:lab", "empty"}},
		{"build context", []string{"no space left", "gantry system prune"}, []string{"build", "-t", "full:lab", "."}},
		{"import of a large layer", []string{"noise.tar", "no room on the disk", "gantry system prune"}, []string{"image", "import", "noise.tar"}},
		{"import of a layer that grows", []string{"zero.tar", "the disk is full", "gantry system prune"}, []string{"image", "import", "zero.tar"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			leave(t, ballast, room)
			admitted(t, n)
			before := stored(t, n)
			refused(t, n, dir, time.Minute, c.words, c.args...)
			if page, err := n.HTTPGet(":8090/"); err != nil || page != "well\n" {
				t.Errorf("the neighbour does not answer: %q, %v", page, err)
			}
			lab.Eventually(t, time.Minute, "nothing half made is left", func() error {
				strays, err := n.Strays()
				if err != nil {
					return err
				}
				// A build keeps the steps that went well.
				if after := stored(t, n); after != before && c.args[0] != "build" || strays != nil {
					return fmt.Errorf("stored before:\n%s\nafter:\n%s\nstrays: %q", before, after, strays)
				}
				if free := freeBytes(t, disk); free < room*9/10 {
					return fmt.Errorf("%d of %d MB are free again", free>>20, room>>20)
				}
				return nil
			})
		})
	}
	if view := n.Instance(t, "neighbour"); !lab.Ready(view) || view.Status.Pid != neighbour.Status.Pid {
		t.Errorf("the neighbour suffered: %v", view)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	admitted(t, n)
}

// stored lists what the daemon's containerd keeps.
func stored(t *testing.T, n *lab.Node) string {
	t.Helper()
	all, err := n.Stored()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// leave makes a file of such a size that so many bytes are left on its disk.
func leave(t *testing.T, path string, bytes int64) {
	t.Helper()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	host(t, "fallocate", "-l", fmt.Sprint(freeBytes(t, filepath.Dir(path))-bytes), path)
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}
