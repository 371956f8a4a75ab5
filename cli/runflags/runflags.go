// Package runflags turns the flags of `gantry run` into a container spec, with Docker's names and meanings.
//
// Add the flags with Register, then call Spec once they are parsed. The parsers of single values are exported for
// other commands. The package reads files that flags name and the environment it is given, and reaches nothing else.
package runflags

import (
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/fault"
)

// Flags holds what was given. The zero value is ready for Register.
type Flags struct {
	publish, volumes, mounts, tmpfs        []string
	env, envFiles, labels, labelFiles      []string
	annotations                            []string
	networks, dns, dnsSearch, dnsOptions   []string
	addHosts, groupAdd                     []string
	capAdd, capDrop, securityOpt           []string
	ulimits, devices, deviceRules, sysctls []string
	logOpts                                []string
	memory, memoryReservation, memorySwap  string
	cpus, shmSize, restart, entrypoint     string
	stopTimeout                            string
	healthInterval, healthTimeout          string
	healthStart, healthStartInterval       string
	healthRetries                          int32
	healthCmd                              string
	noHealth                               bool
	logDriver                              string
	ip, pull                               string
	aliases, expose                        []string
	publishAll                             bool
	blkioWeight                            uint32
	cpuShares, pids                        int64
	cpuPeriod, cpuQuota                    int64
	cpusetCpus, cpusetMems                 string
	oomScoreAdj                            int32
	spec                                   gantryv1.ContainerSpec
	set                                    *pflag.FlagSet
}

// Register adds all flags to fs.
func (f *Flags) Register(fs *pflag.FlagSet) {
	f.set = fs
	f.registerProcess(fs)
	f.registerFiles(fs)
	f.registerNetwork(fs)
	f.registerLimits(fs)
	f.registerSecurity(fs)
	f.registerHealth(fs)
}

func (f *Flags) registerProcess(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable: NAME=VALUE, or NAME to pass on")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "read environment variables from a file")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "set a label: NAME=VALUE")
	fs.StringArrayVar(&f.labelFiles, "label-file", nil, "read labels from a file")
	fs.StringArrayVar(&f.annotations, "annotation", nil, "set an OCI annotation: NAME=VALUE")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "replace the image's entrypoint")
	fs.StringVarP(&f.spec.WorkingDir, "workdir", "w", "", "working directory in the container")
	fs.StringVarP(&f.spec.User, "user", "u", "", "user[:group], names or numbers")
	fs.StringArrayVar(&f.groupAdd, "group-add", nil, "add a supplementary group")
	fs.BoolVarP(&f.spec.Tty, "tty", "t", false, "give the process a terminal")
	fs.BoolVarP(&f.spec.StdinOpen, "interactive", "i", false, "connect standard input")
	fs.BoolVar(&f.spec.Init, "init", false, "run a small init as first process")
	fs.StringVar(&f.spec.StopSignal, "stop-signal", "", "signal that asks the process to end")
	fs.StringVar(&f.stopTimeout, "stop-timeout", "", "time between that signal and SIGKILL")
	fs.StringVar(&f.restart, "restart", "", "no, always, unless-stopped or on-failure[:TIMES]")
	fs.StringVar(&f.spec.Platform, "platform", "", "platform of the image: linux/arm64")
	fs.StringVar(&f.pull, "pull", "missing", "when to pull: missing, always, never")
	fs.StringVar(&f.logDriver, "log-driver", "", "json-file, syslog or none")
	fs.StringArrayVar(&f.logOpts, "log-opt", nil, "option of the log driver: NAME=VALUE")
}

func (f *Flags) registerFiles(fs *pflag.FlagSet) {
	fs.StringVar(&f.spec.Rootfs, "rootfs", "", "run in this directory instead of an image")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "mount a volume or path: [SOURCE:]TARGET[:OPTIONS]")
	fs.StringArrayVar(&f.mounts, "mount", nil, "mount: type=bind|volume|tmpfs,source=…,target=…")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "mount a tmpfs: TARGET[:OPTIONS]")
	fs.BoolVar(&f.spec.ReadOnly, "read-only", false, "make the root file system read-only")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm")
}

func (f *Flags) registerNetwork(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: [[IP:]HOST:]CONTAINER[/udp]")
	fs.StringArrayVar(&f.networks, "network", nil, "bridge, none, host, service:NAME, container:NAME or a network")
	fs.StringArrayVar(&f.networks, "net", nil, "short for --network")
	_ = fs.MarkHidden("net") // Docker has it so
	fs.StringArrayVar(&f.aliases, "network-alias", nil, "further name on the networks of --network")
	fs.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish every port that the image or --expose names, on any free port")
	fs.StringArrayVar(&f.expose, "expose", nil, "further port for -P: CONTAINER[-CONTAINER][/udp]")
	fs.StringVar(&f.ip, "ip", "", "address to use on the bridge")
	fs.StringVar(&f.spec.MacAddress, "mac-address", "", "hardware address to use")
	fs.StringVar(&f.spec.Hostname, "hostname", "", "host name in the container")
	fs.StringVar(&f.spec.Domainname, "domainname", "", "domain name in the container")
	fs.StringArrayVar(&f.addHosts, "add-host", nil, "add an entry to /etc/hosts: NAME:ADDRESS")
	fs.StringArrayVar(&f.dns, "dns", nil, "use this DNS server")
	fs.StringArrayVar(&f.dnsSearch, "dns-search", nil, "DNS search domain")
	fs.StringArrayVar(&f.dnsOptions, "dns-option", nil, "DNS resolver option")
}

func (f *Flags) registerLimits(fs *pflag.FlagSet) {
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit: 512m")
	fs.StringVar(&f.memoryReservation, "memory-reservation", "", "memory that stays when the machine is short")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "memory and swap together, -1 for no limit")
	fs.StringVar(&f.cpus, "cpus", "", "CPUs that may be used: 1.5")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "share of CPU time when it is short")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "CFS period in microseconds")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "CFS quota in microseconds")
	fs.StringVar(&f.cpusetCpus, "cpuset-cpus", "", "CPUs to run on: 0-2,4")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes to use")
	fs.Uint32Var(&f.blkioWeight, "blkio-weight", 0, "share of block I/O when it is short, 10 to 1000")
	fs.Int64Var(&f.pids, "pids-limit", 0, "limit of processes, -1 for none")
	fs.Int32Var(&f.oomScoreAdj, "oom-score-adj", 0, "preference of the out-of-memory killer")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of the process: NAME=SOFT[:HARD]")
	fs.StringArrayVar(&f.sysctls, "sysctl", nil, "kernel parameter of the container: NAME=VALUE")
}

func (f *Flags) registerSecurity(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.capAdd, "cap-add", nil, "add a capability")
	fs.StringArrayVar(&f.capDrop, "cap-drop", nil, "drop a capability")
	fs.BoolVar(&f.spec.Privileged, "privileged", false, "lift all confinement, if the environment permits it")
	fs.StringArrayVar(&f.securityOpt, "security-opt", nil, "no-new-privileges, seccomp=unconfined|FILE, …")
	fs.StringArrayVar(&f.devices, "device", nil, "give a host device: SOURCE[:TARGET[:rwm]]")
	fs.StringArrayVar(&f.deviceRules, "device-cgroup-rule", nil, "device rule: c 42:* rwm")
	fs.StringVar(&f.spec.PidMode, "pid", "", "process namespace: host, container:NAME")
	fs.StringVar(&f.spec.IpcMode, "ipc", "", "IPC namespace: private, shareable, host, container:NAME")
	fs.StringVar(&f.spec.UtsMode, "uts", "", "UTS namespace: host")
	fs.StringVar(&f.spec.UsernsMode, "userns", "", "user namespace: host")
	fs.StringVar(&f.spec.CgroupMode, "cgroupns", "", "cgroup namespace: private, host")
}

func (f *Flags) registerHealth(fs *pflag.FlagSet) {
	fs.StringVar(&f.healthCmd, "health-cmd", "", "command that checks health")
	fs.StringVar(&f.healthInterval, "health-interval", "", "time between checks")
	fs.StringVar(&f.healthTimeout, "health-timeout", "", "time one check may take")
	fs.StringVar(&f.healthStart, "health-start-period", "", "time in which failures do not count")
	fs.StringVar(&f.healthStartInterval, "health-start-interval", "", "time between checks in that period")
	fs.Int32Var(&f.healthRetries, "health-retries", 0, "failures in a row that mean unhealthy")
	fs.BoolVar(&f.noHealth, "no-healthcheck", false, "ignore the image's health check")
}

// Place is what paths and names in flags are relative to.
type Place struct {
	Dir         string
	Environment string
	Lookup      func(string) (string, bool)
}

// Spec builds the container spec. The image is empty for a rootfs.
func (f *Flags) Spec(image string, command []string, at Place) (*gantryv1.ContainerSpec, error) {
	s := &f.spec
	s.Image = image
	if s.Rootfs != "" {
		s.Rootfs = hostPath(s.Rootfs, at.Dir)
	}
	if len(command) > 0 {
		s.Command = &gantryv1.StringList{Values: command}
	}
	s.CapAdd, s.CapDrop, s.GroupAdd = f.capAdd, f.capDrop, f.groupAdd
	s.Dns, s.DnsSearch, s.DnsOptions = f.dns, f.dnsSearch, f.dnsOptions
	s.DeviceCgroupRules = f.deviceRules
	for _, step := range []func(*gantryv1.ContainerSpec, Place) error{
		f.process, f.environment, f.files, f.network, f.limits, f.security, f.health,
	} {
		if err := step(s, at); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (f *Flags) process(s *gantryv1.ContainerSpec, _ Place) (err error) {
	if f.set.Changed("entrypoint") {
		// Docker takes the whole text as one program name; an empty one removes the image's entrypoint.
		s.Entrypoint = &gantryv1.StringList{}
		if f.entrypoint != "" {
			s.Entrypoint.Values = []string{f.entrypoint}
		}
	}
	if f.restart != "" {
		if s.Restart, err = Restart(f.restart); err != nil {
			return err
		}
	}
	if s.StopGracePeriod, err = duration(f.stopTimeout); err != nil {
		return err
	}
	if s.PullPolicy, err = Pull(f.pull); err != nil {
		return err
	}
	if s.Annotations, err = KeyValues("annotation", f.annotations); err != nil {
		return err
	}
	options, err := KeyValues("log option", f.logOpts)
	if f.logDriver != "" || options != nil {
		s.Logging = &gantryv1.Logging{Driver: f.logDriver, Options: options}
	}
	return err
}

// Pull reads --pull.
func Pull(s string) (gantryv1.PullPolicy, error) {
	switch s {
	case "", "missing":
		return gantryv1.PullPolicy_PULL_POLICY_MISSING, nil
	case "always":
		return gantryv1.PullPolicy_PULL_POLICY_ALWAYS, nil
	case "never":
		return gantryv1.PullPolicy_PULL_POLICY_NEVER, nil
	}
	return 0, fault.New(fault.Invalid, "pull policy %q is not one", s).WithHint("use missing, always or never")
}

func (f *Flags) environment(s *gantryv1.ContainerSpec, at Place) error {
	for _, path := range f.envFiles {
		entries, err := EnvFile(hostPath(path, at.Dir), at.Lookup)
		if err != nil {
			return err
		}
		s.Env = append(s.Env, entries...)
	}
	for _, e := range f.env {
		entry, ok, err := Env(e, at.Lookup)
		if err != nil {
			return err
		}
		if ok {
			s.Env = append(s.Env, entry)
		}
	}
	labels := []string{}
	for _, path := range f.labelFiles {
		entries, err := EnvFile(hostPath(path, at.Dir), func(string) (string, bool) { return "", true })
		if err != nil {
			return err
		}
		labels = append(labels, entries...)
	}
	var err error
	s.Labels, err = KeyValues("label", append(labels, f.labels...))
	return err
}

func (f *Flags) files(s *gantryv1.ContainerSpec, at Place) (err error) {
	add := func(m *gantryv1.Mount, err error) error {
		// People name a volume as gantry volume ls does, the API by its key. The key is a name as well.
		if m.GetType() == gantryv1.Mount_TYPE_VOLUME && m.GetSource() != "" && !strings.HasPrefix(m.Source, at.Environment+"/") {
			m.Source = at.Environment + "/" + m.Source
		}
		s.Mounts = append(s.Mounts, m)
		return err
	}
	for _, v := range f.volumes {
		if err := add(Volume(v, at.Dir)); err != nil {
			return err
		}
	}
	for _, v := range f.mounts {
		if err := add(Mount(v, at.Dir)); err != nil {
			return err
		}
	}
	for _, v := range f.tmpfs {
		if err := add(Tmpfs(v)); err != nil {
			return err
		}
	}
	s.ShmSize, err = size(f.shmSize)
	return err
}

func (f *Flags) network(s *gantryv1.ContainerSpec, at Place) (err error) {
	for _, p := range f.publish {
		ports, err := Ports(p)
		if err != nil {
			return err
		}
		s.Ports = append(s.Ports, ports...)
	}
	if s.Network, err = Network(f.networks, at.Environment); err != nil {
		return err
	}
	s.Network.Address = f.ip
	if len(f.aliases) > 0 && len(s.Network.Attachments) == 0 {
		return fault.New(fault.Invalid, "--network-alias needs a network on which it is a name").WithHint("add --network NAME; see gantry network ls")
	}
	for _, a := range s.Network.Attachments {
		a.Aliases = f.aliases
	}
	if len(f.expose) > 0 && !f.publishAll {
		return fault.New(fault.Invalid, "--expose says which ports -P publishes, and there is no -P").
			WithHint("add -P, or leave it out: containers of a network reach all ports of each other")
	}
	for _, h := range f.addHosts {
		// Docker reads NAME=ADDRESS too, which is easier with IPv6.
		name, address, ok := strings.Cut(strings.Replace(h, "=", ":", 1), ":")
		if !ok || name == "" || address == "" {
			return fault.New(fault.Invalid, "host %q is not one", h).WithHint("write it like db:10.0.0.5 or host:host-gateway")
		}
		s.ExtraHosts = append(s.ExtraHosts, name+":"+strings.Trim(address, "[]"))
	}
	return nil
}

// PublishesAll says whether the ports of the image are wanted (-P).
func (f *Flags) PublishesAll() bool { return f.publishAll }

// PublishExposed publishes ports that an image names ("80/tcp") and those of --expose, unless they are published already.
func (f *Flags) PublishExposed(s *gantryv1.ContainerSpec, image []string) error {
	for _, text := range append(slices.Sorted(slices.Values(image)), f.expose...) {
		ports, err := Ports(text)
		if err != nil {
			return err
		}
		for _, p := range ports {
			if !slices.ContainsFunc(s.Ports, func(o *gantryv1.PortPublish) bool {
				return o.GetContainerPort() == p.GetContainerPort() && o.GetProtocol() == p.GetProtocol()
			}) {
				s.Ports = append(s.Ports, p)
			}
		}
	}
	return nil
}

func (f *Flags) limits(s *gantryv1.ContainerSpec, _ Place) (err error) {
	r := &gantryv1.Resources{
		Pids: f.pids, CpuShares: f.cpuShares, CpuPeriod: f.cpuPeriod, CpuQuota: f.cpuQuota,
		CpusetCpus: f.cpusetCpus, CpusetMems: f.cpusetMems, OomScoreAdj: f.oomScoreAdj, BlkioWeight: f.blkioWeight,
	}
	for _, v := range []struct {
		to   *int64
		from string
	}{{&r.Memory, f.memory}, {&r.MemoryReservation, f.memoryReservation}, {&r.MemorySwap, f.memorySwap}} {
		if *v.to, err = size(v.from); err != nil {
			return err
		}
	}
	if f.cpus != "" {
		if r.NanoCpus, err = Cpus(f.cpus); err != nil {
			return err
		}
	}
	s.Resources = r
	for _, u := range f.ulimits {
		limit, err := Ulimit(u)
		if err != nil {
			return err
		}
		s.Ulimits = append(s.Ulimits, limit)
	}
	s.Sysctls, err = KeyValues("sysctl", f.sysctls)
	return err
}

func (f *Flags) security(s *gantryv1.ContainerSpec, at Place) error {
	for _, d := range f.devices {
		device, err := Device(d)
		if err != nil {
			return err
		}
		s.Devices = append(s.Devices, device)
	}
	for _, o := range f.securityOpt {
		// The daemon may be on another machine, so a profile is sent as its content.
		if path, ok := strings.CutPrefix(o, "seccomp="); ok && path != "unconfined" && path != "builtin" {
			profile, err := os.ReadFile(hostPath(path, at.Dir))
			if err != nil {
				return fault.Wrap(fault.NotFound, err, "seccomp profile cannot be read")
			}
			o = "seccomp=" + string(profile)
		}
		s.SecurityOpt = append(s.SecurityOpt, o)
	}
	return nil
}

func (f *Flags) health(s *gantryv1.ContainerSpec, _ Place) (err error) {
	if f.noHealth {
		s.Healthcheck = &gantryv1.Healthcheck{Disable: true}
		return nil
	}
	h := &gantryv1.Healthcheck{Retries: f.healthRetries}
	if f.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", f.healthCmd}
	}
	for _, v := range []struct {
		to   **durationpb.Duration
		from string
	}{
		{&h.Interval, f.healthInterval}, {&h.Timeout, f.healthTimeout},
		{&h.StartPeriod, f.healthStart}, {&h.StartInterval, f.healthStartInterval},
	} {
		if *v.to, err = duration(v.from); err != nil {
			return err
		}
		if *v.to != nil {
			s.Healthcheck = h
		}
	}
	if h.Test != nil || h.Retries != 0 {
		s.Healthcheck = h
	}
	return nil
}

func size(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	return human.ParseSize(s)
}

func duration(s string) (*durationpb.Duration, error) {
	if s == "" {
		return nil, nil
	}
	d, err := human.ParseDuration(s)
	return durationpb.New(d.Round(time.Millisecond)), err
}
