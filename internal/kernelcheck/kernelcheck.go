// Package kernelcheck finds out what the machine under a daemon can do, by doing it.
//
// Run tries every feature on threads with namespaces of their own, which vanish with the threads, and returns one line
// per feature; Missing makes an error of the required ones that are absent; Table prints all. Nothing is left behind and
// nothing outside of the namespaces is changed, but for a control group and a folder that live for a moment. All
// functions are safe in parallel.
package kernelcheck

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/ownthread"
)

// Check is what was found out about one feature.
type Check struct {
	Feature  string
	Present  bool
	Required bool
	// Detail is what was found, or why the feature is absent.
	Detail string
	// Cost is what the absence of the feature costs.
	Cost string
}

// probe tries one feature.
type probe struct {
	feature  string
	required bool
	cost     string // of its absence
	try      func(scratch string) (detail string, err error)
	// alone asks for a thread of its own: what it does to the thread cannot be undone.
	alone bool
}

func probes() []probe {
	return []probe{
		{feature: "PID namespaces", required: true, cost: "containers would see all processes", try: unshare(unix.CLONE_NEWPID), alone: true},
		{feature: "user namespaces", cost: "root in a container is root of the machine, held by capabilities and seccomp only", try: userNamespaces},
		{feature: "control groups", required: true, cost: "no limits, no statistics, no clean kill", try: cgroups},
		{feature: "overlayfs", required: true, cost: "no container file systems", try: overlay},
		{feature: "idmapped overlay mounts", cost: "root in a container is not remapped to an unprivileged user", try: idmapped},
		{feature: "seccomp filters", required: true, cost: "containers could make every system call", try: seccomp, alone: true},
		{feature: "bridge", required: true, cost: "no container network", try: bridge},
		{feature: "veth pairs", required: true, cost: "no container network", try: veth},
		{feature: "nftables", required: true, cost: "no virtual addresses, published ports and isolation", try: nft},
		{feature: "IP forwarding", required: true, cost: "containers reach nothing outside of the machine", try: forwarding},
		{feature: "VXLAN", cost: "no overlay between machines", try: vxlan},
		{feature: "WireGuard", cost: "encrypted overlays run in user space, slower", try: wireguard},
		{feature: "TUN devices", cost: "no encrypted overlay in user space", try: tun},
		{feature: "btrfs", cost: `no volumes on the driver "pool", which clones in constant time`, try: btrfs},
		{feature: "AppArmor", cost: "one layer of protection less; seccomp and capabilities hold", try: apparmor},
		{feature: "KVM", cost: "no virtual machines as a sandbox", try: kvm},
	}
}

// Run tries everything. Root is the daemon's folder: its file system is the one that matters. It must exist, and be one caller's
// at a time.
func Run(root string) ([]Check, error) {
	var out []Check
	err := onThread(func() error {
		scratch, remove, err := scratchFolder(root)
		if err != nil {
			return err
		}
		defer remove()
		out = append(out, Check{
			Feature: "mount, network, IPC, UTS, cgroup namespaces", Present: true, Required: true,
			Cost: "no containers", Detail: kernelRelease(),
		})
		for _, p := range probes() {
			out = append(out, p.run(scratch))
		}
		return nil
	})
	return out, err
}

func (p probe) run(scratch string) Check {
	c := Check{Feature: p.feature, Required: p.required, Cost: p.cost}
	try := func() (err error) {
		c.Detail, err = p.try(scratch)
		return err
	}
	var err error
	if p.alone {
		err = onThread(try)
	} else {
		err = try()
	}
	if c.Present = err == nil; !c.Present {
		c.Detail = err.Error()
	}
	return c
}

const ownNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// onThread runs do on a thread with namespaces of its own, which end with it.
func onThread(do func() error) error {
	return ownthread.Run(func() error { return inOwnNamespaces(do) })
}

func inOwnNamespaces(do func() error) error {
	if err := unix.Unshare(ownNamespaces); err != nil {
		return fault.Wrap(fault.Unsupported, err, "namespaces cannot be made on this machine").
			WithHint("run gantryd as root, on Linux 5.10 or newer, outside of an unprivileged container")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fault.Wrap(fault.Unsupported, err, "mounts cannot be made private").WithHint("run gantryd as root")
	}
	return do()
}

// Missing is an error that names the required features that are absent; nil if all are there.
func Missing(checks []Check) error {
	var names []string
	for _, c := range checks {
		if c.Required && !c.Present {
			names = append(names, fmt.Sprintf("%s (%s)", c.Feature, c.Detail))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Unsupported, "this machine lacks what Gantry needs: %s", strings.Join(names, ", ")).
		WithHint("load the kernel's modules (modprobe overlay bridge veth nf_tables), or use a kernel that has them")
}

// Table prints the checks, one a line, with what an absence costs.
func Table(w io.Writer, checks []Check) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FEATURE\tHERE\tDETAIL\tWITHOUT IT")
	for _, c := range checks {
		here, cost := "yes", ""
		if !c.Present {
			here, cost = "no", c.Cost
			if c.Required {
				here = "MISSING"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Feature, here, c.Detail, cost)
	}
	return t.Flush()
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}
