package ocispec

import (
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// defaultCapabilities is Docker's set.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

// capabilities applies cap_drop and cap_add to the default set, as Docker does: drops first, then adds.
func capabilities(spec *gantryv1.ContainerSpec) ([]string, error) {
	if spec.GetPrivileged() {
		return cap.Current()
	}
	add, err := capNames(spec.GetCapAdd())
	if err != nil {
		return nil, err
	}
	drop, err := capNames(spec.GetCapDrop())
	if err != nil {
		return nil, err
	}
	caps := defaultCapabilities()
	if slices.Contains(add, "ALL") {
		if caps, err = cap.Current(); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "own capabilities")
		}
	}
	if slices.Contains(drop, "ALL") {
		caps = nil
	}
	caps = slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) })
	for _, c := range add {
		if c != "ALL" && !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

// capNames brings names ("net_admin", "CAP_NET_ADMIN", "all") into the kernel's form and refuses unknown ones.
func capNames(list []string) ([]string, error) {
	known := cap.Known()
	names := make([]string, 0, len(list))
	for _, name := range list {
		upper := strings.ToUpper(name)
		if upper != "ALL" && !strings.HasPrefix(upper, "CAP_") {
			upper = "CAP_" + upper
		}
		if upper != "ALL" && !slices.Contains(known, upper) {
			return nil, fault.New(fault.Invalid, "unknown capability %q", name).WithHint("man 7 capabilities lists them")
		}
		names = append(names, upper)
	}
	return names, nil
}

// WorksRemapped says whether a capability means anything in a user namespace. The others are asked of the machine's root
// only, or, like SYS_ADMIN, are wanted for what they do to the machine.
func WorksRemapped(name string) bool {
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "CAP_") {
		upper = "CAP_" + upper
	}
	switch upper {
	case "CAP_NET_ADMIN", "CAP_NET_BROADCAST", "CAP_SYS_PTRACE", "CAP_IPC_OWNER":
		return true
	case "CAP_MKNOD":
		return false // by default everybody has it, for what it is worth; who asks for it makes device nodes
	}
	return slices.Contains(defaultCapabilities(), upper)
}
