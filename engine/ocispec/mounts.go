package ocispec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/fault"
)

const defaultShmSize = 64 << 20

func setMounts(s *specs.Spec, in Input) error {
	mounts := systemMounts(in)
	for _, m := range sortedByDepth(in.Mounts) {
		om, err := userMount(m)
		if err != nil {
			return err
		}
		if in.IDBase != 0 && !m.Owned {
			mapOwners(&om)
		}
		mounts = slices.DeleteFunc(mounts, func(sys specs.Mount) bool { return sys.Destination == om.Destination })
		mounts = append(mounts, om)
		widenRootPropagation(s, m.Propagation)
	}
	if in.Spec.GetInit() {
		init := specs.Mount{Destination: InitTarget, Type: "bind", Source: in.InitPath, Options: []string{"bind", "ro", "rprivate"}}
		if in.IDBase != 0 {
			mapOwners(&init)
		}
		mounts = append(mounts, init)
	}
	s.Mounts = mounts
	return nil
}

// mapOwners makes a bind show its files with the owners they have on the machine: root's are root's inside.
func mapOwners(m *specs.Mount) {
	if m.Type == "bind" {
		m.Options = append(slices.Clone(m.Options), "ridmap")
	}
}

// systemMounts are those every container has, in the order that runc must make them.
func systemMounts(in Input) []specs.Mount {
	privileged := in.Spec.GetPrivileged()
	access := "ro"
	if privileged {
		access = "rw"
	}
	shm := in.Spec.GetShmSize()
	if shm == 0 {
		shm = defaultShmSize
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		sysMount(in, access),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{access, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if in.Spec.GetIpcMode() == "host" {
		return append(mounts, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}})
	}
	return append(mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}})
}

// sysMount is sysfs. It can only be mounted by who owns the network namespace, so with the host's it is bound instead.
func sysMount(in Input, access string) specs.Mount {
	if in.Netns == "host" {
		return specs.Mount{Destination: "/sys", Type: "none", Source: "/sys",
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", access}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
}

// sortedByDepth orders mounts so that a parent directory comes before what is mounted inside it.
func sortedByDepth(mounts []Mount) []Mount {
	sorted := slices.Clone(mounts)
	slices.SortStableFunc(sorted, func(a, b Mount) int { return depth(a.Target) - depth(b.Target) })
	return sorted
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func userMount(m Mount) (specs.Mount, error) {
	target := path.Clean(m.Target)
	if !path.IsAbs(target) || target == "/" {
		return specs.Mount{}, fault.New(fault.Invalid, "mount target %q must be an absolute path below /", m.Target)
	}
	switch m.Type {
	case "tmpfs":
		return tmpfsMount(m, target), nil
	case "bind", "volume":
		return bindMount(m, target)
	}
	return specs.Mount{}, fault.New(fault.Invalid, "mount type %q of %s is not one of bind, volume, tmpfs", m.Type, m.Target)
}

func tmpfsMount(m Mount, target string) specs.Mount {
	opts := []string{"nosuid", "nodev"}
	if !slices.Contains(m.Options, "exec") {
		opts = append(opts, "noexec")
	}
	opts = append(opts, m.Options...)
	if !slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "mode=") }) {
		opts = append(opts, "mode=1777")
	}
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: opts}
}

func bindMount(m Mount, target string) (specs.Mount, error) {
	propagation := m.Propagation
	if propagation == "" {
		propagation = "rprivate"
	}
	if !slices.Contains([]string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}, propagation) {
		return specs.Mount{}, fault.New(fault.Invalid, "mount propagation %q of %s is unknown", propagation, m.Target)
	}
	opts := []string{"rbind", propagation}
	if m.ReadOnly {
		opts = append(opts, "ro", "rro") // mounts below it too
	}
	return specs.Mount{Destination: target, Type: "bind", Source: m.Source, Options: opts}, nil
}

// widenRootPropagation lets mounts of the host reach a bind that asks for it.
func widenRootPropagation(s *specs.Spec, propagation string) {
	switch strings.TrimPrefix(propagation, "r") {
	case "shared":
		s.Linux.RootfsPropagation = "shared"
	case "slave":
		if s.Linux.RootfsPropagation == "" {
			s.Linux.RootfsPropagation = "rslave"
		}
	}
}
