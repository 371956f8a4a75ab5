// Package kernelcheck finds out what the kernel under a daemon can do, by doing it.
//
// Run tries every feature in namespaces of its own, which vanish with the thread that made them, and returns one line per
// feature; Missing turns the required ones that are absent into an error; Table prints all. Nothing is left behind and
// nothing of the machine is changed. All functions are safe in parallel.
package kernelcheck

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// probe tries one feature. It runs on a thread with mount, network, IPC, UTS and cgroup namespaces of its own.
type probe struct {
	feature  string
	required bool
	cost     string // of its absence
	try      func() (detail string, err error)
}

func probes() []probe {
	return []probe{
		{"pid namespaces", true, "containers would see all processes", nsFile("pid")},
		{"user namespaces", false, "root in a container is root of the machine, held by capabilities and seccomp only", nsFile("user")},
		{"cgroups", true, "no limits, no statistics, no clean kill", cgroups},
		{"overlayfs", true, "no container file systems", overlay},
		{"seccomp filters", true, "containers could make every system call", seccomp},
		{"bridge", true, "no container network", link(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}})},
		{"veth pairs", true, "no container network", link(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe1"}, PeerName: "probe2"})},
		{"nftables", true, "no virtual addresses, published ports and isolation", nft},
		{"VXLAN", false, "no overlay between machines", link(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "probe3"}, VxlanId: 1, Port: 4789})},
		{"WireGuard", false, "encrypted overlays run in user space, slower", link(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe4"}})},
		{"TUN", false, "no encrypted overlay in user space", device("/dev/net/tun")},
		{"btrfs", false, "no volumes that are cloned in constant time", filesystem("btrfs")},
		{"KVM", false, "no virtual machines as a sandbox", device("/dev/kvm")},
	}
}

// Run tries everything.
func Run() ([]*gantryv1.KernelCheck, error) {
	type result struct {
		checks []*gantryv1.KernelCheck
		err    error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its namespaces with the thread.
		runtime.LockOSThread()
		checks, err := run()
		done <- result{checks, err}
	}()
	r := <-done
	return r.checks, r.err
}

func run() ([]*gantryv1.KernelCheck, error) {
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if err := unix.Unshare(flags); err != nil {
		return nil, fault.Wrap(fault.Unsupported, err, "namespaces cannot be made on this machine").
			WithHint("run gantryd as root, on Linux 5.10 or newer, outside of an unprivileged container")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fault.Wrap(fault.Unsupported, err, "mounts cannot be made private")
	}
	out := []*gantryv1.KernelCheck{{
		Feature: "mount, network, IPC, UTS and cgroup namespaces", Present: true, Required: true, Detail: "made",
	}}
	for _, p := range probes() {
		c := &gantryv1.KernelCheck{Feature: p.feature, Required: p.required, Cost: p.cost}
		detail, err := p.try()
		c.Present, c.Detail = err == nil, detail
		if err != nil {
			c.Detail = err.Error()
		}
		out = append(out, c)
	}
	return out, nil
}

// Missing is an error that names the required features that are absent; nil if all are there.
func Missing(checks []*gantryv1.KernelCheck) error {
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
func Table(w io.Writer, checks []*gantryv1.KernelCheck) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FEATURE\tHERE\tDETAIL\tWITHOUT IT")
	for _, c := range checks {
		here, cost := "yes", ""
		if !c.Present {
			here, cost = "no", c.Cost
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Feature, here, c.Detail, cost)
	}
	return t.Flush()
}

func nsFile(name string) func() (string, error) {
	return func() (string, error) {
		_, err := os.Stat("/proc/self/ns/" + name)
		return "", err
	}
}

func device(path string) func() (string, error) {
	return func() (string, error) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		return path, f.Close()
	}
}

func filesystem(name string) func() (string, error) {
	return func() (string, error) {
		b, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(b)) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
				return "", nil
			}
		}
		return "", fmt.Errorf("not in /proc/filesystems (modprobe %s)", name)
	}
}

// link makes a network device in the probe's own network namespace.
func link(l netlink.Link) func() (string, error) {
	return func() (string, error) { return "", netlink.LinkAdd(l) }
}

func nft() (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "probe"})
	c.AddChain(&nftables.Chain{
		Name: "probe", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityNATDest,
	})
	return "", c.Flush()
}

func seccomp() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(b), "errno") {
		return "", fmt.Errorf("the kernel offers only: %s", strings.TrimSpace(string(b)))
	}
	return "", nil
}

// overlay mounts one over a tmpfs.
func overlay() (string, error) {
	dir, err := os.MkdirTemp("", "gantry-probe-")
	if err != nil {
		return "", err
	}
	defer os.Remove(dir)
	if err := unix.Mount("probe", dir, "tmpfs", 0, ""); err != nil {
		return "", err
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
			return "", err
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	return "", unix.Mount("overlay", dir+"/merged", "overlay", 0, options)
}

const cgroup2Magic = 0x63677270

// cgroups tells which hierarchy the machine has and whether the controllers that limits need are there.
func cgroups() (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return "", err
	}
	if fs.Type == cgroup2Magic {
		b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return "", err
		}
		return "v2", controllers(strings.Fields(string(b)), "cpu", "memory", "pids")
	}
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return "", err
	}
	var names []string
	kind := "v1"
	for _, e := range entries {
		names = append(names, e.Name())
		if e.Name() == "unified" {
			kind = "v1 (hybrid)"
		}
	}
	return kind, controllers(names, "cpu", "memory", "pids", "devices", "freezer")
}

func controllers(have []string, need ...string) error {
	set := map[string]bool{}
	for _, h := range have {
		set[h] = true
	}
	var missing []string
	for _, n := range need {
		if !set[n] {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("without the controllers %s", strings.Join(missing, ", "))
	}
	return nil
}
