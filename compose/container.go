package compose

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func (c *converter) container(path []string, name string, s *types.ServiceConfig) *gantryv1.ContainerSpec {
	out := &gantryv1.ContainerSpec{
		Image: c.image(path, name, s), Platform: s.Platform, PullPolicy: c.pullPolicy(path, s),
		Entrypoint: stringList(s.Entrypoint), Command: stringList(s.Command), Env: c.environment(path, s.Environment),
		WorkingDir: s.WorkingDir, User: s.User, GroupAdd: s.GroupAdd, Hostname: s.Hostname, Domainname: s.DomainName,
		Tty: s.Tty, StdinOpen: s.StdinOpen, Init: s.Init != nil && *s.Init, StopSignal: s.StopSignal,
		StopGracePeriod: optional(s.StopGracePeriod), Labels: s.Labels, Annotations: s.Annotations,
		Mounts: c.mounts(path, s), Secrets: c.secretRefs(path, s), Configs: c.configRefs(path, s),
		ShmSize: int64(s.ShmSize), ReadOnly: s.ReadOnly,
		Network: c.networkMode(path, s), ExtraHosts: hosts(s.ExtraHosts), Dns: s.DNS, DnsSearch: s.DNSSearch,
		DnsOptions: s.DNSOpts, MacAddress: c.macAddress(path, s),
		Resources: c.resources(path, s), Ulimits: ulimits(s.Ulimits), Sysctls: s.Sysctls, Devices: c.devices(path, s),
		DeviceCgroupRules: s.DeviceCgroupRules, CapAdd: s.CapAdd, CapDrop: s.CapDrop,
		SecurityOpt: c.securityOpt(path, s), Privileged: s.Privileged,
		PidMode: c.pidMode(path, s), IpcMode: c.ipcMode(path, s),
		UtsMode:    c.oneOf(append(path, "uts"), s.Uts, "", "host"),
		UsernsMode: c.oneOf(append(path, "userns_mode"), s.UserNSMode, "", "host"),
		CgroupMode: c.oneOf(append(path, "cgroup"), s.Cgroup, "", "private", "host"),
		Logging:    c.logging(path, s.Logging), Healthcheck: c.healthcheck(s.HealthCheck),
		Restart: c.restart(path, s), Ports: c.ports(path, s),
	}
	c.oneOf(append(path, "runtime"), s.Runtime, "", "runc", "io.containerd.runc.v2")
	return out
}

// oneOf returns the value if it is among those that can be done.
func (c *converter) oneOf(path []string, value string, allowed ...string) string {
	if slices.Contains(allowed, value) {
		return value
	}
	c.report.refuse(path, fmt.Sprintf("the value %q; use %s", shorten(value), strings.Join(nonEmpty(allowed), ", ")))
	return ""
}

func nonEmpty(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
}

// stringList keeps the difference between a command that is not set and an empty one.
func stringList(s []string) *gantryv1.StringList {
	if s == nil {
		return nil
	}
	return &gantryv1.StringList{Values: s}
}

func (c *converter) image(path []string, name string, s *types.ServiceConfig) string {
	image := s.Image
	if image == "" {
		return BuiltImage(c.app, name)
	}
	if _, err := reference.ParseNormalizedNamed(image); err != nil {
		c.report.invalid(append(path, "image"), "write it like redis:7 or registry.example/team/app:1.2", "%q is not an image reference", shorten(image))
	}
	return image
}

func (c *converter) pullPolicy(path []string, s *types.ServiceConfig) gantryv1.PullPolicy {
	switch s.PullPolicy {
	case "":
		return gantryv1.PullPolicy_PULL_POLICY_UNSPECIFIED
	case types.PullPolicyMissing, types.PullPolicyIfNotPresent:
		return gantryv1.PullPolicy_PULL_POLICY_MISSING
	case types.PullPolicyAlways:
		return gantryv1.PullPolicy_PULL_POLICY_ALWAYS
	case types.PullPolicyNever:
		return gantryv1.PullPolicy_PULL_POLICY_NEVER
	case types.PullPolicyBuild:
		return gantryv1.PullPolicy_PULL_POLICY_BUILD
	}
	c.oneOf(append(path, "pull_policy"), s.PullPolicy, "missing", "always", "never", "build")
	return gantryv1.PullPolicy_PULL_POLICY_UNSPECIFIED
}

// environment leaves out variables without a value: they are not set on the client either.
func (c *converter) environment(path []string, env types.MappingWithEquals) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		v := env[k]
		if v == nil {
			continue
		}
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(*v, "\x00") {
			c.report.invalid(append(path, "environment", k), "correct the name", "%q is not a variable that a process can have", shorten(k))
			continue
		}
		out = append(out, k+"="+*v)
	}
	return out
}

func hosts(h types.HostsList) []string {
	list := h.AsList(":")
	slices.Sort(list)
	return list
}

func ulimits(m map[string]*types.UlimitsConfig) []*gantryv1.Ulimit {
	var out []*gantryv1.Ulimit
	for _, name := range slices.Sorted(maps.Keys(m)) {
		u := &gantryv1.Ulimit{Name: name, Soft: int64(m[name].Soft), Hard: int64(m[name].Hard)}
		if single := int64(m[name].Single); single != 0 {
			u.Soft, u.Hard = single, single
		}
		out = append(out, u)
	}
	return out
}

func (c *converter) devices(path []string, s *types.ServiceConfig) []*gantryv1.Device {
	var out []*gantryv1.Device
	for i, d := range s.Devices {
		if !strings.HasPrefix(d.Source, "/") {
			c.report.refuse(append(path, "devices", strconv.Itoa(i)), "a device that is not a path; name one below /dev")
		}
		out = append(out, &gantryv1.Device{Source: d.Source, Target: d.Target, Permissions: d.Permissions})
	}
	return out
}

func (c *converter) pidMode(path []string, s *types.ServiceConfig) string {
	return c.shared(append(path, "pid"), s.Pid, "", "host")
}

func (c *converter) ipcMode(path []string, s *types.ServiceConfig) string {
	return c.shared(append(path, "ipc"), s.Ipc, "", "private", "shareable", "host")
}

// shared is oneOf with "service:NAME" and "container:ID" besides.
func (c *converter) shared(path []string, value string, allowed ...string) string {
	if target, ok := strings.CutPrefix(value, types.ServicePrefix); ok {
		if _, known := c.model.project.Services[target]; !known {
			c.report.invalid(path, "name a service of this app", "there is no service %q", shorten(target))
		}
		return value
	}
	if id, ok := strings.CutPrefix(value, types.ContainerPrefix); ok && id != "" {
		return value
	}
	return c.oneOf(path, value, append(allowed, "service:NAME")...)
}

func (c *converter) healthcheck(h *types.HealthCheckConfig) *gantryv1.Healthcheck {
	if h == nil {
		return nil
	}
	out := &gantryv1.Healthcheck{
		Disable: h.Disable, Test: h.Test, Interval: optional(h.Interval), Timeout: optional(h.Timeout),
		StartPeriod: optional(h.StartPeriod), StartInterval: optional(h.StartInterval),
	}
	if len(h.Test) > 0 && h.Test[0] == "NONE" {
		out.Disable, out.Test = true, nil
	}
	if h.Retries != nil {
		out.Retries = int32(min(*h.Retries, 1<<20))
	}
	return out
}

func (c *converter) logging(path []string, l *types.LoggingConfig) *gantryv1.Logging {
	if l == nil {
		return nil
	}
	path = append(slices.Clone(path), "logging")
	driver := c.oneOf(append(path, "driver"), l.Driver, "", "json-file", "syslog", "none")
	known := map[string][]string{
		"": {"max-size", "max-file"}, "json-file": {"max-size", "max-file"}, "syslog": {"syslog-address", "tag", "syslog-facility"},
	}[driver]
	out := &gantryv1.Logging{Driver: driver, Options: map[string]string{}}
	for _, o := range slices.Sorted(maps.Keys(l.Options)) {
		if !slices.Contains(known, o) {
			c.report.warn(append(path, "options", o), "the log driver has no such option")
			continue
		}
		out.Options[o] = l.Options[o]
	}
	return out
}

func (c *converter) securityOpt(path []string, s *types.ServiceConfig) []string {
	var out []string
	for i, o := range s.SecurityOpt {
		at := append(slices.Clone(path), "security_opt", strconv.Itoa(i))
		name, value, _ := strings.Cut(strings.Replace(o, ":", "=", 1), "=")
		switch {
		case name == "no-new-privileges" && slices.Contains([]string{"", "true", "false"}, value),
			name == "systempaths" && value == "unconfined", name == "label":
			out = append(out, o)
		case name == "seccomp" && (value == "unconfined" || value == "builtin"):
			out = append(out, "seccomp="+value)
		case name == "seccomp":
			out = append(out, "seccomp="+string(c.readSmall(at, c.onClient(value))))
		case name == "apparmor" && value == "unconfined":
			c.report.warn(at, "no AppArmor profile is applied anyway")
		default:
			c.report.refuse(at, fmt.Sprintf("the security option %q; see doc/compose.md", shorten(o)))
		}
	}
	return out
}
