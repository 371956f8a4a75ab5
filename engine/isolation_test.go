package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

// output runs a script in a container as requested and returns its standard output.
func output(t *testing.T, e *engine.Engine, r engine.CreateRequest) string {
	t.Helper()
	if err := e.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	enginetest.AwaitExit(t, e, r.ID)
	stdout, stderr := enginetest.Logs(t, e, r.ID)
	if err := e.Remove(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	return stdout + stderr
}

func TestDefaultsConfine(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	script := `grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status
		cat /proc/1/comm; ip -o link | wc -l; hostname; echo $FROM_IMAGE
		mount -t tmpfs none /mnt 2>&1; echo x 2>&1 >/proc/sys/kernel/hostname
		mknod /tmp/sda b 8 0 && head -c1 /tmp/sda 2>&1; df -k /dev/shm | tail -1 | awk '{print $2}'; cat /proc/self/cgroup | sort -u -t: -k3 | head -1`
	out := output(t, e, engine.CreateRequest{ID: "c0ffee", Spec: enginetest.Spec(image, script)})
	for _, want := range []string{
		"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t00000000a80425fb", "sh\n1\nc0ffee\nyes\n", "65536\n",
		"permission denied", "Read-only file system", "Operation not permitted",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(out, ":/\n") {
		t.Errorf("the control group is not private:\n%s", out)
	}
}

// hiddenPaths prints how much of each path of the kernel's a container sees: bytes of a file, entries of a directory.
const hiddenPaths = `for p in /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi \
	/proc/timer_list /sys/firmware; do
	if [ -d $p ]; then n=$(ls -A $p | wc -l); elif [ -e $p ]; then n=$(head -c 9 $p | wc -c); else n=0; fi; echo seen $p $n; done; `

func TestPathsOfTheKernel(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	for _, mode := range []string{"", "host"} {
		r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, hiddenPaths+"cat /proc/mounts; exec 2>&1; echo x >/proc/sys/kernel/hostname")}
		r.Spec.UsernsMode = mode
		out := output(t, e, r)
		for line := range strings.Lines(out) {
			if path, seen := strings.CutPrefix(line, "seen "); seen && !strings.HasSuffix(path, " 0\n") {
				t.Errorf("userns %q: not hidden: %s", mode, path)
			}
		}
		for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
			if _, err := os.Stat(path); err == nil && !strings.Contains(out, "proc "+path+" proc ro,") {
				t.Errorf("userns %q: %s is not read-only:\n%s", mode, path, out)
			}
		}
		if !strings.Contains(out, "sysfs /sys sysfs ro,") || !strings.Contains(out, "Read-only file system") {
			t.Errorf("userns %q: /sys or /proc/sys can be written:\n%s", mode, out)
		}
	}
	// The paths are there, and a privileged container sees them.
	r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, hiddenPaths)}
	r.Spec.Privileged = true
	if out := output(t, e, r); strings.Contains(out, "/proc/interrupts 0\n") || strings.Contains(out, "/proc/timer_list 0\n") {
		t.Errorf("privileged:\n%s", out)
	}
}

// TestDeviceRules has root of the machine make device nodes, so that nothing but the rules keeps it from the devices.
func TestDeviceRules(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	const nodes = `mknod /tmp/loop b 7 0 && mknod /tmp/fuse c 10 229 && echo made
		for d in loop fuse; do true </tmp/$d && echo $d read; true >>/tmp/$d && echo $d written; done 2>&1
		`
	const refused = "made\nsh: can't open /tmp/loop: Operation not permitted\nsh: can't create /tmp/loop: Operation not permitted\n" +
		"sh: can't open /tmp/fuse: Operation not permitted\nsh: can't create /tmp/fuse: Operation not permitted\n"
	run := func(script string, change func(*gantryv1.ContainerSpec)) string {
		r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, script)}
		r.Spec.UsernsMode = "host"
		change(r.Spec)
		return output(t, e, r)
	}
	t.Run("no device but the usual", func(t *testing.T) {
		out := run(nodes+`for d in null zero full random urandom tty ptmx; do [ -c /dev/$d ] || echo no $d; done
			echo x >/dev/null && head -c1 /dev/zero /dev/full /dev/random /dev/urandom >/dev/null && echo usual; ls /dev | grep -c -E 'sd|vd|loop|mem|kmsg'`,
			func(*gantryv1.ContainerSpec) {})
		if out != refused+"usual\n0\n" {
			t.Errorf("output %q", out)
		}
	})
	t.Run("a rule", func(t *testing.T) {
		out := run(nodes, func(s *gantryv1.ContainerSpec) { s.DeviceCgroupRules = []string{"b 7:* r"} })
		if strings.Contains(out, "can't open /tmp/loop: Operation not permitted") || !strings.Contains(out, "can't create /tmp/loop: Operation not permitted") ||
			!strings.Contains(out, "can't open /tmp/fuse: Operation not permitted") {
			t.Errorf("b 7:* may be read and nothing else: %q", out)
		}
	})
	t.Run("a device to read", func(t *testing.T) {
		node := filepath.Join(t.TempDir(), "loop")
		if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))); err != nil {
			t.Fatal(err)
		}
		out := run("exec 2>&1; true </dev/l; true >>/dev/l", func(s *gantryv1.ContainerSpec) {
			s.Devices = []*gantryv1.Device{{Source: node, Target: "/dev/l", Permissions: "r"}}
		})
		if strings.Contains(out, "can't open /dev/l: Operation not permitted") || !strings.Contains(out, "can't create /dev/l: Operation not permitted") {
			t.Errorf("output %q", out)
		}
	})
}

func TestSpecReachesTheContainer(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	for _, c := range []struct {
		name, script, want string
		change             func(*engine.CreateRequest)
	}{
		{"user and groups", "id", "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra),4242", func(r *engine.CreateRequest) {
			r.Spec.User, r.Spec.GroupAdd = "app", []string{"4242"}
		}},
		{"no capabilities for others than root", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000", func(r *engine.CreateRequest) { r.Spec.User = "1234:5678" }},
		{"capabilities", "grep CapBnd /proc/self/status", "CapBnd:\t0000000000001001", func(r *engine.CreateRequest) {
			r.Spec.CapDrop, r.Spec.CapAdd = []string{"ALL"}, []string{"net_admin", "CAP_CHOWN"}
		}},
		{"environment", `echo "$A-$FROM_IMAGE-$HOSTNAME"`, "1-no-box\n", func(r *engine.CreateRequest) {
			r.Spec.Env, r.Spec.Hostname = []string{"A=1", "FROM_IMAGE=no"}, "box"
		}},
		{"working directory is made", "pwd", "/new/dir\n", func(r *engine.CreateRequest) { r.Spec.WorkingDir = "/new/dir" }},
		{"read-only root", "touch /x 2>&1; touch /tmp/y && echo fine", "Read-only file system\nfine\n", func(r *engine.CreateRequest) {
			r.Spec.ReadOnly = true
			r.Mounts = []engine.Mount{{Type: "tmpfs", Target: "/tmp", Options: []string{"size=1m"}}}
		}},
		{"limits", "ulimit -n; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", "123\n33554432\n", func(r *engine.CreateRequest) {
			r.Spec.Ulimits = []*gantryv1.Ulimit{{Name: "nofile", Soft: 123, Hard: 123}}
			r.Spec.Resources = &gantryv1.Resources{Memory: 32 << 20, NanoCpus: 5e8}
		}},
		{"sysctl", "sysctl -n net.ipv4.ip_forward kernel.msgmax", "1\n9000\n", func(r *engine.CreateRequest) {
			r.Spec.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}
		}},
		{"out of memory first", "cat /proc/self/oom_score_adj", "500\n", func(r *engine.CreateRequest) {
			r.Spec.Resources = &gantryv1.Resources{OomScoreAdj: 500}
		}},
		{"memory file system of a user", "stat -c '%u %g %a' /m", "1000 7 700\n", func(r *engine.CreateRequest) {
			r.Mounts = []engine.Mount{{Type: engine.MountTmpfs, Target: "/m", Options: []string{"uid=1000", "gid=7", "mode=700"}}}
		}},
		{"init", "cat /proc/1/comm; (sleep 0.01 &) ; echo $$", "gantry-init\n", func(r *engine.CreateRequest) { r.Spec.Init = true }},
		{"device", "ls -l /dev/full2 && head -c1 /dev/full2 | wc -c", "1\n", func(r *engine.CreateRequest) {
			r.Spec.Devices = []*gantryv1.Device{{Source: "/dev/full", Target: "/dev/full2", Permissions: "r"}}
		}},
		{"shared memory", "df -k /dev/shm | tail -1 | awk '{print $2}'", "1024\n", func(r *engine.CreateRequest) { r.Spec.ShmSize = 1 << 20 }},
		{"hosts and resolver", "cat /etc/hosts /etc/resolv.conf /etc/hostname", "1.2.3.4 db\nnameserver 9.9.9.9\nbox\n", func(r *engine.CreateRequest) {
			r.Hosts, r.ResolvConf, r.Spec.Hostname = []byte("1.2.3.4 db\n"), []byte("nameserver 9.9.9.9\n"), "box"
		}},
		{"host's network", "ls /sys/class/net | wc -l; [ $(readlink /proc/self/ns/net) = " + netns(t) + " ] && echo same", "same\n", func(r *engine.CreateRequest) { r.Netns = "host" }},
		{"privileged", "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; mount -t tmpfs none /tmp && echo mounted", "NoNewPrivs:\t0\nSeccomp:\t0\nmounted", func(r *engine.CreateRequest) { r.Spec.Privileged = true }},
		{"seccomp unconfined", "grep Seccomp: /proc/self/status", "Seccomp:\t0", func(r *engine.CreateRequest) { r.Spec.SecurityOpt = []string{"seccomp=unconfined"} }},
		{"own seccomp profile", "mkdir /d", "Operation not permitted", func(r *engine.CreateRequest) {
			r.Spec.SecurityOpt = []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`}
		}},
		{"secret", "cat /run/secrets/pw; stat -c '%a %u %g' /run/secrets/pw; df /run/secrets/pw | grep -c tmpfs; touch /run/secrets/pw", "hunter2400 1000 7\n1\n", func(r *engine.CreateRequest) {
			r.Files = []engine.File{{Target: "/run/secrets/pw", Content: []byte("hunter2"), UID: 1000, GID: 7, Mode: 0o400}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, c.script)}
			c.change(&r)
			if out := output(t, e, r); !strings.Contains(out, c.want) {
				t.Errorf("output %q, want %q in it", out, c.want)
			}
		})
	}
}

func netns(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return "'" + ns + "'"
}

func TestSecretsAreNotOnDisk(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	const secret = "correct-horse-battery-staple"
	r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(enginetest.BusyboxImage(t, e), "sleep 1000"),
		Files: []engine.File{{Target: "/s", Content: []byte(secret)}}}
	if err := e.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(o.Root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if strings.Contains(string(b), secret) {
			t.Errorf("%s holds the secret", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestVolumes(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	volume := t.TempDir()
	mounts := []engine.Mount{{Type: engine.MountVolume, Source: volume, Target: "/data", CopyUp: true}}
	out := output(t, e, engine.CreateRequest{ID: "a", Spec: enginetest.Spec(image, "cat /data/seed; stat -c '%u %a' /data /data/seed; echo mine >/data/seed"), Mounts: mounts})
	if out != "seeded\n1000 750\n1000 640\n" {
		t.Errorf("copy-up: %q", out)
	}
	if out := output(t, e, engine.CreateRequest{ID: "b", Spec: enginetest.Spec(image, "cat /data/seed"), Mounts: mounts}); out != "mine\n" {
		t.Errorf("a filled volume is left alone: %q", out)
	}
	mounts[0].ReadOnly = true
	if out := output(t, e, engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, "touch /data/x"), Mounts: mounts}); !strings.Contains(out, "Read-only") {
		t.Errorf("read-only: %q", out)
	}
}

func TestJail(t *testing.T) {
	e := enginetest.Open(t)
	dir := t.TempDir()
	enginetest.Unpack(t, dir, enginetest.BusyboxLayer(t))
	r := engine.CreateRequest{ID: "jail", Spec: enginetest.Spec("", "id -un; hostname; echo left >/trace")}
	r.Spec.Rootfs, r.Spec.Hostname, r.Spec.User = dir, "cell", "app"
	r.Spec.User = "root"
	if out := output(t, e, r); out != "root\ncell\n" {
		t.Errorf("output %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "trace")); err != nil || string(b) != "left\n" {
		t.Errorf("the directory itself is the root: %v, %q", err, b)
	}
}

func TestSharedNamespaces(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	id := enginetest.Run(t, e, "first", enginetest.Spec(image, "sleep 1000"))
	s, err := e.State(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ns := func(name string) string { return filepath.Join("/proc", pid(s), "ns", name) }
	out := output(t, e, engine.CreateRequest{
		ID: "second", Spec: enginetest.Spec(image, "ps | grep -c '[s]leep 1000'; readlink /proc/self/ns/net"),
		Netns: ns("net"), PidNS: ns("pid"), IpcNS: ns("ipc"),
	})
	want, err := os.Readlink(ns("net"))
	if err != nil || out != "1\n"+want+"\n" {
		t.Errorf("%v, output %q", err, out)
	}
}

func TestContainersOfAGroupShareAShim(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	image := enginetest.BusyboxImage(t, e)
	for _, id := range []string{"a", "b", "c"} {
		r := engine.CreateRequest{ID: id, Spec: enginetest.Spec(image, "sleep 1000"), Group: "env/app/service"}
		if err := e.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if n := sharedShims(o, "a", "b", "c"); n != 1 {
		t.Errorf("%d shims", n)
	}
	// One ends; the others do not notice.
	if err := e.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b", "c"} {
		if out, code := exec(t, e, id, "echo ok"); out != "ok\n" {
			t.Errorf("%s: %q, %d", id, out, code)
		}
	}
}
