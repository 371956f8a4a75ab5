package daemon

import (
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// lock makes the root and keeps other daemons off it.
func lock(root string) (func() error, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the root directory %s", root).
			WithHint("is the file system read-only or full? choose another with --root")
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot write to the root directory %s", root).
			WithHint("is the file system read-only or full? df -h %s", root)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.Wrap(fault.Conflict, err, "another gantryd uses the root directory %s", root).
			WithHint("stop it, or choose another --root")
	}
	// What the last daemon was writing when it was killed. A disk that refuses this refuses more in a moment.
	for _, dir := range []string{root, filepath.Join(root, "identity")} {
		_ = atomicfile.Tidy(dir)
	}
	return f.Close, nil
}

func socketPath(listen string) string { return strings.TrimPrefix(listen, "unix://") }

// listen opens a Unix socket that only root and the group may use. A socket that a killed daemon left is replaced; one that
// answers is not.
func listen(address, group string) (net.Listener, error) {
	path := socketPath(address)
	if !strings.HasPrefix(address, "unix://") || !filepath.IsAbs(path) {
		return nil, fault.New(fault.Invalid, "cannot listen on %q", address).WithHint("use --listen unix:///absolute/path")
	}
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fault.New(fault.Conflict, "another program answers on %s", path).WithHint("is gantryd running already? gantry version")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the directory of the socket %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot replace the socket %s", path)
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot listen on %s", path)
	}
	if err := admit(path, group); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// admit opens the socket to a group, if the machine has it.
func admit(path, group string) error {
	if group == "" {
		return nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return nil // only root then, until somebody makes the group
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the group %s has the odd ID %q", group, g.Gid)
	}
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot open the socket %s to the group %s", path, group)
	}
	return nil
}

// info is what does not change about this machine while the daemon runs.
func (d *daemon) info(n *gantryv1.Node) *gantryv1.InfoResponse {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // cannot fail with a valid pointer
	var mem unix.Sysinfo_t
	_ = unix.Sysinfo(&mem)
	return &gantryv1.InfoResponse{
		Node: n.Meta.Key, Hostname: n.Name, Version: d.Version.GetVersion(), Kernel: unix.ByteSliceToString(uts.Release[:]),
		Os: runtime.GOOS, Arch: runtime.GOARCH, Cpus: int32(runtime.NumCPU()), Memory: int64(mem.Totalram) * int64(mem.Unit),
		Root: d.Root, Run: d.Config.Run, Subnet: n.Subnet, RegistryAddress: d.Registry, Checks: d.checks,
		StartedAt: timestamppb.New(d.started), Devices: devices(d.Devices), Pids: maxPids(),
	}
}

func devices(numbers map[string]int) map[string]int32 {
	out := make(map[string]int32, len(numbers))
	for name, n := range numbers {
		out[name] = int32(n)
	}
	return out
}

// maxPids is the kernel's limit of processes; 0 if it cannot be read.
func maxPids() int64 {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // 0 is what is not known
	return n
}
