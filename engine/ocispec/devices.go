package ocispec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// setDevices gives the container the device nodes it may have. runc itself adds null, zero, tty and the like.
func setDevices(s *specs.Spec, in Input) error {
	s.Linux.Resources = &specs.LinuxResources{}
	if in.Spec.GetPrivileged() {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		devices, err := devicesUnder("/dev", "/dev")
		s.Linux.Devices = devices
		return err
	}
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range in.Spec.GetDevices() {
		if err := addDevice(s, d); err != nil {
			return err
		}
	}
	for _, r := range in.Spec.GetDeviceCgroupRules() {
		rule, err := parseDeviceRule(r)
		if err != nil {
			return err
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, rule)
	}
	return nil
}

func addDevice(s *specs.Spec, d *gantryv1.Device) error {
	target := d.GetTarget()
	if target == "" {
		target = d.GetSource()
	}
	access := d.GetPermissions()
	if access == "" {
		access = "rwm"
	}
	devices, err := devicesUnder(d.GetSource(), target)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return fault.New(fault.Invalid, "%s is not a device", d.GetSource()).WithHint("ls -l %s on the machine", d.GetSource())
	}
	for _, dev := range devices {
		s.Linux.Devices = append(s.Linux.Devices, dev)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: access,
		})
	}
	return nil
}

// devicesUnder returns the device at source, or all of them if it is a directory, renamed to below target.
func devicesUnder(source, target string) ([]specs.LinuxDevice, error) {
	resolved, err := filepath.EvalSymlinks(source)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "device %s", source).WithHint("ls -l %s on the machine", source)
	}
	var devices []specs.LinuxDevice
	err = filepath.WalkDir(resolved, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || (err == nil && skipDevice(p, resolved)) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && ownMount(p, resolved) {
			return fs.SkipDir
		}
		if d.Type()&(fs.ModeDevice|fs.ModeCharDevice) == 0 {
			return nil
		}
		dev, err := device(p, filepath.Join(target, strings.TrimPrefix(p, resolved)))
		if err == nil {
			devices = append(devices, dev)
		}
		return nil // a device that went away meanwhile is no fault
	})
	return devices, err
}

// ownMount says that a directory below /dev is a file system of each container's own.
func ownMount(p, root string) bool {
	switch strings.TrimPrefix(p, root) {
	case "/pts", "/shm", "/mqueue", "/fd":
		return root == "/dev"
	}
	return false
}

func skipDevice(p, root string) bool {
	return root == "/dev" && (p == "/dev/console" || p == "/dev/ptmx" || p == "/dev/tty")
}

func device(source, target string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(source, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "lstat", Path: source, Err: err}
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: target, Type: kind, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
	}, nil
}

// parseDeviceRule reads "c 10:200 rwm" with "*" for any number.
func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	m := regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`).FindStringSubmatch(rule)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, fault.New(fault.Invalid, "device_cgroup_rules: %q is not of the form \"c 10:200 rwm\"", rule)
	}
	out := specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	if n, err := strconv.ParseInt(m[2], 10, 64); err == nil {
		out.Major = &n
	}
	if n, err := strconv.ParseInt(m[3], 10, 64); err == nil {
		out.Minor = &n
	}
	return out, nil
}
