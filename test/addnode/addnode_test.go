// Package addnode_test adds a machine of the lab to a cluster over a real sshd.
//
// Where no sshd is installed, that of Debian is unpacked into a folder of the test: installing it would start it.
package addnode_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// sshServer makes a machine that has nothing but an sshd, and a program ssh on this one's PATH that opens it.
func sshServer(t *testing.T, n *lab.Node) {
	t.Helper()
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal("no ssh on this machine: apt-get install openssh-client")
	}
	sshd := daemonProgram(t)
	dir := t.TempDir()
	for _, key := range []string{"host", "user"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	// Everything that is installed or kept there is the machine's own, and so are its users.
	n.Exec(t, "sh", "-ec", `mkdir -p /run/sshd
		mount -t tmpfs tmpfs /usr/local/bin
		mount -t tmpfs tmpfs /var/lib
		cp -a /etc /run/etc
		mount --bind /run/etc /etc
		grep -q ^sshd: /etc/passwd || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd`)
	daemon := n.Command(sshd, "-D", "-e", "-f", "/dev/null", "-h", filepath.Join(dir, "host"), "-o", "Port=2222", "-o", "PidFile=none",
		"-o", "StrictModes=no", "-o", "PermitRootLogin=yes", "-o", "AuthorizedKeysFile="+filepath.Join(dir, "user.pub"))
	log, err := os.Create(filepath.Join(dir, "sshd.log"))
	if err != nil {
		t.Fatal(err)
	}
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("sshd: %s", text)
		}
		log.Close()
	})
	config := fmt.Sprintf("Host *\nIdentityFile %s\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile %s\nBatchMode yes\n",
		filepath.Join(dir, "user"), filepath.Join(dir, "known"))
	write(t, filepath.Join(dir, "config"), config, 0o600)
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "bin", "ssh"), fmt.Sprintf("#!/bin/sh\nexec %s -F %s \"$@\"\n", ssh, filepath.Join(dir, "config")), 0o755)
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	lab.Eventually(t, time.Minute, "sshd answers", func() error {
		return exec.Command("ssh", "-p", "2222", "root@"+n.Address(), "true").Run()
	})
}

// daemonProgram is the path of an sshd.
func daemonProgram(t *testing.T) string {
	t.Helper()
	const installed = "/usr/sbin/sshd"
	if _, err := os.Stat(installed); err == nil {
		return installed
	}
	dir := t.TempDir()
	get := exec.Command("sh", "-ec", `apt-get download -qq openssh-server libwrap0; for p in *.deb; do dpkg -x $p .; done`)
	get.Dir = dir
	if out, err := get.CombinedOutput(); err != nil {
		t.Skipf("no sshd is installed and Debian's cannot be had: %v\n%s", err, out)
	}
	libraries, err := filepath.Glob(filepath.Join(dir, "*", "lib", "*-linux-gnu"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "sshd") // it wants its own whole path
	write(t, program, fmt.Sprintf("#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s \"$@\"\n", strings.Join(libraries, ":"), filepath.Join(dir, installed)), 0o755)
	return program
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// TestNodeAdd makes a machine with nothing on it a server, and asks a second time.
func TestNodeAdd(t *testing.T) {
	l := lab.Cluster(t, 1)
	server, other := l.Node(0), l.AddNode(t, "")
	sshServer(t, other)
	address := "ssh://root@" + other.Address() + ":2222"
	id := strings.TrimSpace(server.Gantry(t, "node", "add", address, "--programs", lab.Binaries(t), "--server", "--label", "rack=r 1'"))
	t.Cleanup(func() { other.TryExec("sh", "-c", "kill $(pidof gantryd)") })
	nodes, err := server.Machines()
	if err != nil || len(nodes) != 2 {
		t.Fatalf("machines %v, %v", nodes, err)
	}
	for _, n := range nodes {
		if n.Node.Meta.Key == id && (n.Node.Role != "server" || n.Status.GetState() != "ready" || n.Node.Meta.Labels["rack"] != "r 1'") {
			t.Errorf("the new machine is %v", n)
		}
	}
	if got := strings.TrimSpace(server.Gantry(t, "cluster", "token", "ls", "-o", "json")); got != "[]" {
		t.Errorf("tokens are left: %s", got)
	}
	if again := strings.TrimSpace(server.Gantry(t, "node", "add", address, "--programs", lab.Binaries(t))); again != id {
		t.Errorf("asked again: %q and not %q", again, id)
	}
	if got := other.Exec(t, "ls", "-A", "/usr/local/bin"); got != "containerd-shim-runc-v2\ngantry\ngantry-init\ngantryd\nrunc\n" {
		t.Errorf("installed: %q", got)
	}
}

// TestHostOverSSH uses the daemon of another machine with nothing but ssh between.
func TestHostOverSSH(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	sshServer(t, n)
	gantry := func(host string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(lab.Binaries(t), "gantry"), args...)
		cmd.Env = append(os.Environ(), "GANTRY_HOST="+host)
		cmd.Stdin = strings.NewReader("from here\n")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	socket := strings.TrimPrefix(n.Host(), "unix://")
	host := "ssh://root@" + n.Address() + ":2222" + socket
	if out, err := gantry(host, "run", "--rm", "-i", lab.Busybox, "sh", "-c", "cat; hostname; exit 7"); err == nil || !strings.HasPrefix(out, "from here\n") {
		t.Errorf("%v: %q", err, out)
	}
	if out, err := gantry(host+"-none", "ps"); err == nil || !strings.Contains(out, "is not running: there is no socket "+socket+"-none") {
		t.Errorf("a socket that is not there: %v\n%s", err, out)
	}
	if out, err := gantry("ssh://root@"+n.Address()+":2223"+socket, "ps"); err == nil || !strings.Contains(out, "ssh does not reach") {
		t.Errorf("a port that nobody listens on: %v\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "gantry-ssh-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	lab.Eventually(t, 10*time.Second, "no ssh is left", func() error {
		if out, err := exec.Command("pgrep", "-f", "^[^ ]*ssh .*"+socket).Output(); err == nil {
			return fmt.Errorf("processes %s", out)
		}
		return nil
	})
}
