// Package demands says what a container asks for that amounts to root on the machine it runs on.
//
// Privileged is pure. The API refuses such a container where its environment does not permit it, and so does the node that
// would run it.
package demands

import (
	"path/filepath"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Privileged names the first demand of a spec that is worth as much as privileged, as it is written in a Compose file;
// "" if there is none. guarded are directories of the daemon that lead to all of its containers.
func Privileged(c *gantryv1.ContainerSpec, guarded []string) string {
	if c.GetPrivileged() {
		return "privileged"
	}
	for _, check := range []func(*gantryv1.ContainerSpec) string{devices, capabilities, namespaces, options, root} {
		if demand := check(c); demand != "" {
			return demand
		}
	}
	return binds(c, guarded)
}

// devices lets through those that are made to be shared with programs nobody trusts.
func devices(c *gantryv1.ContainerSpec) string {
	for _, d := range c.GetDevices() {
		if !harmless(d.Source) {
			return "devices: " + d.Source
		}
	}
	for _, r := range c.GetDeviceCgroupRules() {
		return "device_cgroup_rules: " + r
	}
	return ""
}

func harmless(device string) bool {
	device = filepath.Clean(device)
	for _, d := range []string{
		"null", "zero", "full", "random", "urandom", "fuse", "kvm", "net/tun",
	} {
		if device == "/dev/"+d {
			return true
		}
	}
	for _, d := range []string{"dri/", "snd/", "video", "ttyUSB", "ttyACM", "nvidia"} {
		if strings.HasPrefix(device, "/dev/"+d) {
			return true
		}
	}
	return false
}

// capabilities leaves out SYS_PTRACE: it reaches the container's own processes only, unless pid is host, which is a demand too.
func capabilities(c *gantryv1.ContainerSpec) string {
	for _, name := range c.GetCapAdd() {
		switch strings.TrimPrefix(strings.ToUpper(name), "CAP_") {
		case "ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "DAC_READ_SEARCH", "BPF":
			return "cap_add: " + name
		}
	}
	return ""
}

func namespaces(c *gantryv1.ContainerSpec) string {
	switch "host" {
	case c.GetPidMode():
		return "pid: host"
	case c.GetIpcMode():
		return "ipc: host"
	case c.GetUtsMode():
		return "uts: host"
	case c.GetCgroupMode():
		return "cgroup: host"
	}
	return ""
}

func options(c *gantryv1.ContainerSpec) string {
	for _, o := range c.GetSecurityOpt() {
		switch strings.Replace(o, ":", "=", 1) {
		case "seccomp=unconfined", "systempaths=unconfined":
			return "security_opt: " + o
		}
	}
	return ""
}

func root(c *gantryv1.ContainerSpec) string {
	if c.GetRootfs() != "" && filepath.Clean(c.Rootfs) == "/" {
		return "the root file system /"
	}
	return ""
}

func binds(c *gantryv1.ContainerSpec, guarded []string) string {
	for _, m := range c.GetMounts() {
		if m.Type != gantryv1.Mount_TYPE_BIND {
			continue
		}
		if source := filepath.Clean(m.Source); opens(source, guarded) {
			return "a bind mount of " + source
		}
	}
	return ""
}

// opens reports that a directory shows the machine itself, or a part of the daemon.
func opens(dir string, guarded []string) bool {
	if dir == "/" || dir == "/dev" || within(dir, "/proc") || within(dir, "/sys") {
		return true
	}
	for _, g := range guarded {
		if within(dir, g) || within(filepath.Clean(g), dir) {
			return true
		}
	}
	return false
}

func within(path, dir string) bool {
	dir = filepath.Clean(dir)
	return path == dir || strings.HasPrefix(path, dir+"/")
}
