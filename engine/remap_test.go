package engine_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/engine/userns"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// openRemapping opens an engine whose containers have user namespaces, or skips the test.
func openRemapping(t *testing.T) (*engine.Engine, engine.Options) {
	t.Helper()
	o := enginetest.Options(t)
	if o.Users == nil {
		t.Skip("this machine has no user namespaces for containers")
	}
	e := enginetest.OpenAt(t, o)
	t.Cleanup(func() { enginetest.Close(t, e) })
	return e, o
}

func ownerOf(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st.Uid, st.Gid
}

// netnsOf makes a network namespace as the network's pool has them.
func netnsOf(t testing.TB, m *userns.Maker) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Netns(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func start(t *testing.T, e *engine.Engine, r engine.CreateRequest) engine.State {
	t.Helper()
	if err := e.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	s, err := e.State(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRootInsideIsNotRootOutside(t *testing.T) {
	e, o := openRemapping(t)
	image := enginetest.BusyboxImage(t, e)
	base := o.Users.Base()
	for name, netns := range map[string]string{"own": "", "pool": netnsOf(t, o.Users)} {
		t.Run(name, func(t *testing.T) {
			s := start(t, e, engine.CreateRequest{
				ID: name, Spec: enginetest.Spec(image, "touch /made-"+name+"; chown 7:8 /made-"+name+"; echo ready; exec sleep 1000"), Netns: netns,
			})
			awaitLine(t, e, name, "ready\n")
			proc := filepath.Join("/proc", pid(s))
			ids, err := os.ReadFile(filepath.Join(proc, "uid_map"))
			if want := fmt.Sprintf("%10d %10d %10d\n", 0, base, userns.Size); err != nil || string(ids) != want {
				t.Errorf("uid_map %q, want %q (%v)", ids, want, err)
			}
			if uid, gid := ownerOf(t, proc); uid != base || gid != base {
				t.Errorf("its process is %d:%d's, not %d's", uid, gid, base)
			}
			if s.IDBase != base || s.HostIDs != "" {
				t.Errorf("the state says %d, %q", s.IDBase, s.HostIDs)
			}
			if out, code := exec(t, e, name, "id -u; ls -ln /made-"+name+" | awk '{print $3, $4}'; ls -nd /bin | awk '{print $3}'"); out != "0\n7 8\n0\n" || code != 0 {
				t.Errorf("inside: %q, %d", out, code)
			}
			bringUp(t, e, name)
			// Root's ping opens a raw socket: its capability counts, as the network is its user namespace's. Others have ping
			// sockets, and groups are counted as inside.
			if out, code := execAs(t, e, name, "root", "ping -c1 127.0.0.1"); code != 0 {
				t.Errorf("ping: %q", out)
			}
			out, code := execAs(t, e, name, "app", "id -u; cd /proc/sys/net/ipv4; cat ping_group_range ip_unprivileged_port_start")
			if out != "1000\n0\t65535\n0\n" || code != 0 {
				t.Errorf("low ports and ping of a plain user: %q", out)
			}
			if uid, gid := ownerOf(t, onDisk(t, o, "made-"+name)); uid != base+7 || gid != base+8 {
				t.Errorf("the file is %d:%d's on disk", uid, gid)
			}
			if err := e.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// bringUp gives a container's network a loopback device that is up, which the pool's have.
func bringUp(t *testing.T, e *engine.Engine, id string) {
	t.Helper()
	var out bytes.Buffer
	code, err := e.Exec(t.Context(), id, engine.ExecRequest{Command: []string{"ip", "link", "set", "lo", "up"}, Privileged: true}, engine.IO{Stderr: &out})
	if err != nil || code != 0 {
		t.Fatalf("lo: %v, %d, %s", err, code, &out)
	}
}

func execAs(t *testing.T, e *engine.Engine, id, user, script string) (string, int32) {
	t.Helper()
	var out bytes.Buffer
	req := engine.ExecRequest{Command: []string{"sh", "-c", script}, User: user}
	code, err := e.Exec(t.Context(), id, req, engine.IO{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	return out.String(), code
}

// onDisk finds a file of a container's writable layer.
func onDisk(t *testing.T, o engine.Options, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(o.Root, "containerd", "*", "snapshots", "*", "fs", name))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s on disk: %v, %v", name, found, err)
	}
	return found[0]
}

func TestWhatNeedsTheMachinesRoot(t *testing.T) {
	e, o := openRemapping(t)
	image := enginetest.BusyboxImage(t, e)
	plain := filepath.Join(t.TempDir(), "netns")
	keepNetns(t, plain)
	for why, change := range map[string]func(*engine.CreateRequest){
		"userns_mode: host":                  func(r *engine.CreateRequest) { r.Spec.UsernsMode = "host" },
		"privileged: true":                   func(r *engine.CreateRequest) { r.Spec.Privileged = true },
		"network_mode: host":                 func(r *engine.CreateRequest) { r.Netns = "host" },
		"pid: host":                          func(r *engine.CreateRequest) { r.Spec.PidMode = "host" },
		"ipc: host":                          func(r *engine.CreateRequest) { r.Spec.IpcMode = "host" },
		"uts: host":                          func(r *engine.CreateRequest) { r.Spec.UtsMode = "host" },
		"cgroup: host":                       func(r *engine.CreateRequest) { r.Spec.CgroupMode = "host" },
		"cap_add: SYS_TIME":                  func(r *engine.CreateRequest) { r.Spec.CapAdd = []string{"SYS_TIME"} },
		"user or group 70000 is above 65535": func(r *engine.CreateRequest) { r.Spec.User = "70000:5" },
		"user or group 80000 is above 65535": func(r *engine.CreateRequest) {
			r.Files = []engine.File{{Target: "/f", Content: []byte("x"), GID: 80000}}
		},
		"device_cgroup_rules":      func(r *engine.CreateRequest) { r.Spec.DeviceCgroupRules = []string{"c 10:200 rwm"} },
		"mount propagation rslave": func(r *engine.CreateRequest) { bind(r, t.TempDir()).Propagation = "rslave" },
		"devices": func(r *engine.CreateRequest) {
			r.Spec.Devices = []*gantryv1.Device{{Source: "/dev/null", Target: "/dev/n2"}}
		},
		"cannot be mapped": func(r *engine.CreateRequest) { bind(r, "/proc/sys") },
		"it joins a namespace that belongs to the machine's root": func(r *engine.CreateRequest) { r.Netns = plain },
	} {
		r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, "sleep 1000")}
		change(&r)
		s := start(t, e, r)
		if s.IDBase != 0 || !strings.Contains(s.HostIDs, why) {
			t.Errorf("%s: %d, %q", why, s.IDBase, s.HostIDs)
		}
		if uid, _ := ownerOf(t, filepath.Join("/proc", pid(s))); uid != 0 && uid != 70000 {
			t.Errorf("%s: the process is %d's", why, uid)
		}
		if err := e.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	// What is worth something in a user namespace does not cost it.
	r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu"), Netns: netnsOf(t, o.Users)}
	r.Spec.CapAdd = []string{"net_admin"}
	if out := output(t, e, r); out != "1400\n" {
		t.Errorf("cap_add: NET_ADMIN: %q", out)
	}
}

func bind(r *engine.CreateRequest, source string) *engine.Mount {
	r.Mounts = append(r.Mounts, engine.Mount{Type: engine.MountBind, Source: source, Target: "/bound"})
	return &r.Mounts[len(r.Mounts)-1]
}

// keepNetns makes a network namespace that belongs to the machine's root.
func keepNetns(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := osexec.Command("unshare", "--net="+path, "true").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

// TestVolumeIsTheSameToAll gives one volume to containers of both kinds: the owners of files are as they are inside.
func TestVolumeIsTheSameToAll(t *testing.T) {
	e, _ := openRemapping(t)
	image := enginetest.BusyboxImage(t, e)
	volume, bound := t.TempDir(), t.TempDir()
	for i, c := range []struct{ mode, script, want string }{
		{"", "stat -c '%u %g' /data/seed; echo a >/data/a; chown 1000:2000 /data/a; touch /bound/root; echo $?", "1000 1000\n0\n"},
		{"host", "stat -c '%u %g' /data/seed /data/a /bound/root; touch /data/b", "1000 1000\n1000 2000\n0 0\n"},
		{"", "stat -c '%u %g' /data/a /data/b /bound/root; echo more >>/data/b && cat /data/b", "1000 2000\n0 0\n0 0\nmore\n"},
	} {
		r := engine.CreateRequest{ID: fmt.Sprint("c", i), Spec: enginetest.Spec(image, c.script), Mounts: []engine.Mount{
			{Type: engine.MountVolume, Source: volume, Target: "/data", CopyUp: true},
			{Type: engine.MountBind, Source: bound, Target: "/bound"},
		}}
		r.Spec.UsernsMode = c.mode
		if out := output(t, e, r); out != c.want {
			t.Errorf("%d (%q): %q, want %q", i, c.mode, out, c.want)
		}
	}
	if uid, gid := ownerOf(t, filepath.Join(volume, "a")); uid != 1000 || gid != 2000 {
		t.Errorf("on disk it is %d:%d's", uid, gid)
	}
}

// TestCopyKeepsOwnersOfAUserNamespace copies into and out of containers, running and not.
func TestCopyKeepsOwnersOfAUserNamespace(t *testing.T) {
	e, _ := openRemapping(t)
	image := enginetest.BusyboxImage(t, e)
	r := engine.CreateRequest{ID: "c", Spec: enginetest.Spec(image, "sleep 1000"), Mounts: []engine.Mount{
		{Type: engine.MountVolume, Source: t.TempDir(), Target: "/vol"}, {Type: engine.MountTmpfs, Target: "/mem"},
	}}
	if err := e.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	tree := func(name string) []enginetest.Entry {
		return []enginetest.Entry{enginetest.FileEntry(name+"/f", 0o640, 5, 6, "x")}
	}
	copyTo(t, e, "/tmp", tree("before"))
	if _, err := e.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/tmp", "/vol", "/mem"} {
		copyTo(t, e, dir, tree("after"))
	}
	out, _ := exec(t, e, "c", "stat -c '%u %g' /tmp/before /tmp/before/f /tmp/after/f /vol/after /vol/after/f /mem/after/f")
	if out != "0 0\n5 6\n5 6\n0 0\n5 6\n5 6\n" {
		t.Errorf("owners inside: %q", out)
	}
	for _, path := range []string{"/tmp/before/f", "/vol/after/f"} {
		if h := copiedOwner(t, e, path); h != "5 6" {
			t.Errorf("%s: owner in the archive: %s", path, h)
		}
	}
}

func copyTo(t *testing.T, e *engine.Engine, dir string, entries []enginetest.Entry) {
	t.Helper()
	if err := e.CopyTo(t.Context(), "c", dir, bytes.NewReader(enginetest.Tar(t, entries))); err != nil {
		t.Fatalf("copy to %s: %v", dir, err)
	}
}

func copiedOwner(t *testing.T, e *engine.Engine, path string) string {
	t.Helper()
	r, err := e.CopyFrom(t.Context(), "c", path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := tar.NewReader(r).Next()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(h.Uid, " ", h.Gid)
}

// TestFilesThatRaiseRights runs programs of the image that give a plain user what ping needs, which is the
// capability of the user namespace and none of the machine's.
func TestFilesThatRaiseRights(t *testing.T) {
	e, o := openRemapping(t)
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	// cap_net_raw+ep, as the kernel keeps it in the attribute.
	netRaw := "\x01\x00\x00\x02\x00\x20\x00\x00" + strings.Repeat("\x00", 12)
	capable := enginetest.FileEntry("bin/busybox-capable", 0o755, 0, 0, string(busybox))
	capable.Header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": netRaw}
	layer := append(enginetest.BusyboxLayer(t), enginetest.FileEntry("bin/busybox-setuid", 0o4755, 0, 0, string(busybox)), capable)
	enginetest.Image(t, e, "raises:test", imagespec.ImageConfig{}, layer)
	for _, mode := range []string{"", "host"} {
		for _, program := range []string{"busybox-setuid", "busybox-capable", "busybox"} {
			r := engine.CreateRequest{ID: "c", Netns: netnsOf(t, o.Users), Spec: enginetest.Spec("raises:test", "exec sleep 1000")}
			r.Spec.SecurityOpt, r.Spec.UsernsMode = []string{"no-new-privileges:false"}, mode
			start(t, e, r)
			bringUp(t, e, "c")
			out, code := execAs(t, e, "c", "app", "/bin/"+program+" ping -c1 127.0.0.1")
			if want := program != "busybox"; (code == 0) != want {
				t.Errorf("%q: %s: %d, %q", mode, program, code, out)
			}
			if err := e.Remove(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestContainersFromBeforeGoOn opens an engine with user namespaces on containers of one without, and the other way round.
func TestContainersFromBeforeGoOn(t *testing.T) {
	o := enginetest.Options(t)
	if o.Users == nil {
		t.Skip("this machine has no user namespaces for containers")
	}
	without := o
	without.Users = nil
	e := enginetest.OpenAt(t, without)
	image := enginetest.BusyboxImage(t, e)
	restart := func(id string) error {
		if err := e.Stop(t.Context(), id, -1); err != nil {
			t.Fatal(err)
		}
		_, err := e.Start(t.Context(), id)
		return err
	}
	reopen := func(o engine.Options) {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = enginetest.OpenAt(t, o)
	}
	if s := start(t, e, engine.CreateRequest{ID: "old", Spec: enginetest.Spec(image, "exec sleep 1000")}); s.IDBase != 0 || s.HostIDs == "" {
		t.Errorf("without user namespaces: %+v", s)
	}
	exec(t, e, "old", "touch /mine")
	reopen(o)
	// The engine closed above is of the same process and keeps its connection to the shim: when the shim ends, it clears away
	// beside the new one, which a daemon that has ended cannot. A start in that moment may fail.
	err := restart("old")
	for tries := 0; err != nil && tries < 3; tries++ {
		_, err = e.Start(t.Context(), "old")
	}
	if err != nil {
		t.Errorf("one from before: %v", err)
	}
	if out, _ := exec(t, e, "old", "stat -c %u /mine; touch /mine && echo fine"); out != "0\nfine\n" {
		t.Errorf("its files: %q", out)
	}
	if s := start(t, e, engine.CreateRequest{ID: "new", Spec: enginetest.Spec(image, "exec sleep 1000")}); s.IDBase != o.Users.Base() {
		t.Errorf("with user namespaces: %+v", s)
	}
	reopen(without)
	if out, _ := exec(t, e, "new", "id -u"); out != "0\n" {
		t.Errorf("a daemon without user namespaces cannot serve one that runs in one: %q", out)
	}
	if err := restart("new"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("started without its user namespace: %v", err)
	}
	reopen(o)
	if _, err := e.Start(t.Context(), "new"); err != nil {
		t.Errorf("with user namespaces again: %v", err)
	}
	enginetest.Close(t, e)
}

// Linux before 6.3 cannot map the owners of a tmpfs, so secrets are written with those of the range.
func TestSecretsBelongToTheUsersInside(t *testing.T) {
	o := enginetest.Options(t)
	if o.Users == nil {
		t.Skip("this machine has no user namespaces for containers")
	}
	e := enginetest.OpenAt(t, o)
	image, base := enginetest.BusyboxImage(t, e), o.Users.Base()
	files := []engine.File{{Target: "/run/secrets/pw", Content: []byte("x"), UID: 1000, GID: 7, Mode: 0o400}}
	look := func(when string) {
		if out, code := exec(t, e, "s", "stat -c '%u %g %a' /run/secrets/pw"); out != "1000 7 400\n" || code != 0 {
			t.Errorf("%s: inside: %q, %d", when, out, code)
		}
		if out, code := execAs(t, e, "s", "app", "cat /run/secrets/pw"); out != "x" || code != 0 {
			t.Errorf("%s: its owner reads %q, %d", when, out, code)
		}
	}
	s := start(t, e, engine.CreateRequest{ID: "s", Spec: enginetest.Spec(image, "exec sleep 1000"), Files: files})
	if s.IDBase != base {
		t.Errorf("root is %d, because of %q", s.IDBase, s.HostIDs)
	}
	look("at first")
	again := func() {
		if err := errors.Join(e.Stop(t.Context(), "s", -1), e.SetFiles("s", files)); err != nil {
			t.Fatal(err)
		}
	}
	again()
	if _, err := e.Start(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	look("given again")

	// A container of an earlier version maps the owners by its mounts, which are part of its configuration.
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(o.Root, "containers", "s", "container.json")
	b, err := os.ReadFile(config)
	if err != nil || !bytes.Contains(b, []byte(`"FilesOwned":true`)) {
		t.Fatalf("its configuration: %s, %v", b, err)
	}
	if err := atomicfile.Write(config, bytes.ReplaceAll(b, []byte(`"FilesOwned":true,`), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	e = enginetest.OpenAt(t, o)
	again()
	if uid, gid := ownerOf(t, filepath.Join(o.Run, "files", "s", "0")); uid != 1000 || gid != 7 {
		t.Errorf("files of an earlier version's container are %d:%d's", uid, gid)
	}
	enginetest.Close(t, e)
}
