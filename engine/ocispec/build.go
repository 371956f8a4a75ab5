// Package ocispec turns a ContainerSpec, merged with its image's configuration, into the OCI runtime specification that
// runc executes: namespaces, capabilities, seccomp, mounts, devices, limits.
//
// Build is a pure function of its Input but for the device nodes it looks up on the host; it is safe in parallel. It
// neither creates nor starts anything, and resolves no names of users: the engine does that first.
package ocispec

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	dockerseccomp "github.com/moby/profiles/seccomp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/userns"
	"github.com/gantryd/gantry/fault"
)

// InitTarget is where the minimal init is mounted in containers that ask for one.
const InitTarget = "/dev/gantry-init"

// GroupAnnotation names containers that share one shim.
const GroupAnnotation = "io.containerd.runc.v2.group"

// defaultPath is the PATH of containers whose image sets none, as Docker has it.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Input is all that a specification is made of.
type Input struct {
	ID    string
	Spec  *gantryv1.ContainerSpec
	Image imagespec.ImageConfig
	// User is Spec.User (or the image's) with names resolved inside the root file system.
	User specs.User
	// IDBase is the machine's ID of root inside, 0 without a user namespace. UserNS is the path of the one to join, "" for
	// a new one.
	IDBase uint32
	UserNS string
	// Namespaces to join, by path. Netns "host" is the host's network, "" a new one with loopback only.
	Netns, PidNS, IpcNS string
	Mounts              []Mount
	Group               string
	CgroupsPath         string
	Cgroup              CgroupFeatures
	// Rootfs is the path of the root file system; "rootfs" for one that the shim mounts.
	Rootfs string
	// InitPath is the init binary on the host.
	InitPath string
}

// CgroupFeatures says what the machine's control groups can do.
type CgroupFeatures struct {
	Unified bool // version 2
	Swap    bool // swap is accounted
}

// Mount is one resolved mount of a container.
type Mount struct {
	// Type is "bind", "volume" (a bind of a volume's directory) or "tmpfs".
	Type string
	// Source is a host path; unused for tmpfs.
	Source, Target string
	// Subpath is what of a volume is mounted, a path inside of Source; empty for all of it. The engine resolves it.
	Subpath  string
	ReadOnly bool
	// Propagation of a bind, "rprivate" if empty.
	Propagation string
	// Options of a tmpfs ("size=64m", "exec", "uid=1000").
	Options []string
	// Owned says that the source belongs to the container's users on the machine: its owners are not mapped.
	Owned bool
	// CopyUp fills an empty volume with what the image has at Target, owners kept.
	CopyUp bool
}

// Hostname returns the container's host name.
func Hostname(id string, spec *gantryv1.ContainerSpec) string {
	if spec.GetHostname() != "" {
		return spec.GetHostname()
	}
	return id[:min(len(id), 12)]
}

// Build makes the specification.
func Build(in Input) (*specs.Spec, error) {
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: in.Spec.GetReadOnly()},
		Annotations: maps.Clone(in.Spec.GetAnnotations()),
		Linux:       &specs.Linux{CgroupsPath: in.CgroupsPath},
	}
	if in.Group != "" {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[GroupAnnotation] = in.Group
	}
	for _, step := range []func(*specs.Spec, Input) error{
		setProcess, setNamespaces, setUserNamespace, setSysctls, setMounts, setDevices, setResources, setSecurity,
	} {
		if err := step(s, in); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func setProcess(s *specs.Spec, in Input) error {
	args, err := Args(in.Spec, in.Image)
	if err != nil {
		return err
	}
	if in.Spec.GetInit() {
		args = append([]string{InitTarget, "--"}, args...)
	}
	s.Process = &specs.Process{
		Terminal: in.Spec.GetTty(),
		User:     in.User,
		Args:     args,
		Env:      Env(in.ID, in.Spec, in.Image),
		Cwd:      WorkingDir(in.Spec, in.Image),
	}
	if adj := int(in.Spec.GetResources().GetOomScoreAdj()); adj != 0 {
		s.Process.OOMScoreAdj = &adj
	}
	s.Process.Rlimits, err = rlimits(in.Spec.GetUlimits())
	return err
}

// Args merges entry point and command as Docker does: an entry point of the spec drops the image's command.
func Args(spec *gantryv1.ContainerSpec, image imagespec.ImageConfig) ([]string, error) {
	entrypoint, command := image.Entrypoint, image.Cmd
	if spec.GetEntrypoint() != nil {
		entrypoint, command = spec.GetEntrypoint().GetValues(), nil
	}
	if spec.GetCommand() != nil {
		command = spec.GetCommand().GetValues()
	}
	args := slices.Concat(entrypoint, command)
	if len(args) == 0 {
		return nil, fault.New(fault.Invalid, "no command: neither the image %s nor the service names one", spec.GetImage()).
			WithHint("set command: or entrypoint: in the Compose file, or give a command to gantry run")
	}
	return args, nil
}

// Env merges the image's variables, the spec's, and those every container has.
func Env(id string, spec *gantryv1.ContainerSpec, image imagespec.ImageConfig) []string {
	env := []string{defaultPath}
	if spec.GetUtsMode() != "host" {
		env = append(env, "HOSTNAME="+Hostname(id, spec))
	}
	if spec.GetTty() {
		env = append(env, "TERM=xterm")
	}
	return MergeEnv(env, image.Env, spec.GetEnv())
}

// MergeEnv joins lists of "KEY=VALUE"; a later value of a key replaces an earlier one in its place.
func MergeEnv(lists ...[]string) []string {
	var merged []string
	at := map[string]int{}
	for _, kv := range slices.Concat(lists...) {
		key, _, ok := strings.Cut(kv, "=")
		if !ok {
			continue // a name without a value unsets nothing here: Compose resolves it on the client
		}
		if i, seen := at[key]; seen {
			merged[i] = kv
			continue
		}
		at[key] = len(merged)
		merged = append(merged, kv)
	}
	return merged
}

// WorkingDir returns the working directory, absolute and clean.
func WorkingDir(spec *gantryv1.ContainerSpec, image imagespec.ImageConfig) string {
	dir := spec.GetWorkingDir()
	switch {
	case dir == "":
		dir = image.WorkingDir
	case !path.IsAbs(dir):
		dir = path.Join(image.WorkingDir, dir)
	}
	return path.Clean("/" + dir)
}

func setNamespaces(s *specs.Spec, in Input) error {
	add := func(t specs.LinuxNamespaceType, p string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: p})
	}
	add(specs.MountNamespace, "")
	if in.Netns != "host" {
		add(specs.NetworkNamespace, in.Netns)
	}
	if in.Spec.GetPidMode() != "host" {
		add(specs.PIDNamespace, in.PidNS)
	}
	if in.Spec.GetIpcMode() != "host" {
		add(specs.IPCNamespace, in.IpcNS)
	}
	if in.Spec.GetUtsMode() != "host" {
		add(specs.UTSNamespace, "")
		s.Hostname = Hostname(in.ID, in.Spec)
		s.Domainname = in.Spec.GetDomainname()
	}
	if in.Spec.GetCgroupMode() != "host" {
		add(specs.CgroupNamespace, "")
	}
	return nil
}

func setUserNamespace(s *specs.Spec, in Input) error {
	if in.IDBase == 0 {
		return nil
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.UserNS})
	// With a path, too: containerd opens the bundle to the group that these lines name.
	ids := []specs.LinuxIDMapping{{HostID: in.IDBase, Size: userns.Size}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	return nil
}

func setSysctls(s *specs.Spec, in Input) error {
	sysctls := map[string]string{}
	if in.Netns != "host" {
		// As Docker: any user may open low ports and ping, inside.
		sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
		if in.IDBase != 0 {
			sysctls["net.ipv4.ping_group_range"] = "0 " + strconv.Itoa(userns.Size-1) // others cannot be said inside
		}
	}
	for name, value := range in.Spec.GetSysctls() {
		if in.Netns == "host" && strings.HasPrefix(name, "net.") {
			return fault.New(fault.Invalid, "sysctl %s cannot be set with the host's network", name).
				WithHint("drop network_mode: host, or set it on the machine: sysctl -w %s=%s", name, value)
		}
		sysctls[name] = value
	}
	s.Linux.Sysctl = sysctls
	return nil
}

func setSecurity(s *specs.Spec, in Input) error {
	opts, err := parseSecurityOptions(in.Spec.GetSecurityOpt())
	if err != nil {
		return err
	}
	privileged := in.Spec.GetPrivileged()
	caps, err := capabilities(in.Spec)
	if err != nil {
		return err
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps}
	if in.User.UID == 0 {
		s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = caps, caps
	}
	s.Process.NoNewPrivileges = !privileged && !opts.allowNewPrivileges
	if !privileged && !opts.openSystemPaths {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	return setSeccomp(s, opts.seccomp, privileged)
}

func setSeccomp(s *specs.Spec, profile string, privileged bool) error {
	switch {
	case profile == "unconfined", profile == "" && privileged:
		return nil
	case profile == "":
		s.Linux.Seccomp = withoutX32(seccomp.DefaultProfile(s))
		return nil
	}
	var err error
	if s.Linux.Seccomp, err = dockerseccomp.LoadProfile(profile, s); err != nil {
		return fault.Wrap(fault.Invalid, err, "security_opt: the seccomp profile cannot be used")
	}
	return nil
}

type securityOptions struct {
	allowNewPrivileges bool
	openSystemPaths    bool
	seccomp            string
}

func parseSecurityOptions(list []string) (securityOptions, error) {
	var o securityOptions
	for _, opt := range list {
		key, value, _ := strings.Cut(opt, "=")
		if k, v, ok := strings.Cut(opt, ":"); ok && k == "no-new-privileges" {
			key, value = k, v
		}
		switch {
		case key == "no-new-privileges":
			o.allowNewPrivileges = value == "false"
		case key == "seccomp":
			o.seccomp = value
		case key == "systempaths" && value == "unconfined":
			o.openSystemPaths = true
		case key == "label", key == "apparmor" && (value == "unconfined" || value == ""):
			// Neither SELinux nor AppArmor confines containers here, so there is nothing to switch off.
		default:
			return o, fault.New(fault.Unsupported, "security_opt %q is not supported", opt).
				WithHint("use no-new-privileges, seccomp=unconfined or seccomp=FILE, or systempaths=unconfined")
		}
	}
	return o, nil
}

func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
