package runflags

import (
	"bufio"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/fault"
)

// Ports reads one --publish: [[IP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/tcp|udp].
func Ports(s string) ([]*gantryv1.PortPublish, error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "port %q %s", s, why).
			WithHint("write it like 8080:80, 127.0.0.1:8080:80, 53:53/udp or 8000-8010:8000-8010")
	}
	rest, protocol, _ := strings.Cut(s, "/")
	switch protocol {
	case "":
		protocol = "tcp"
	case "tcp", "udp":
	default:
		return nil, bad("has a protocol other than tcp and udp")
	}
	host, rest, err := hostIP(rest)
	if err != nil {
		return nil, bad("has an address that is none")
	}
	outer, inner, both := strings.Cut(rest, ":")
	if !both {
		outer, inner = "", rest
	}
	c1, c2, ok := portRange(inner)
	if !ok {
		return nil, bad("is not a number or range from 1 to 65535")
	}
	h1, h2 := 0, 0
	if outer != "" {
		if h1, h2, ok = portRange(outer); !ok {
			return nil, bad("is not a number or range from 1 to 65535")
		}
		if h2-h1 != c2-c1 {
			return nil, bad("has ranges of different lengths")
		}
	}
	var out []*gantryv1.PortPublish
	for i := 0; i <= c2-c1; i++ {
		p := &gantryv1.PortPublish{HostIp: host, ContainerPort: uint32(c1 + i), Protocol: protocol}
		if outer != "" {
			p.HostPort = uint32(h1 + i)
		}
		out = append(out, p)
	}
	return out, nil
}

// hostIP takes an address off the front of a port, if there is one.
func hostIP(s string) (ip, rest string, err error) {
	if strings.HasPrefix(s, "[") {
		ip, rest, _ = strings.Cut(s[1:], "]")
		rest = strings.TrimPrefix(rest, ":")
	} else if strings.Count(s, ":") == 2 {
		ip, rest, _ = strings.Cut(s, ":")
	} else {
		return "", s, nil
	}
	if ip == "" {
		return "", rest, nil
	}
	addr, err := netip.ParseAddr(ip)
	return addr.String(), rest, err
}

func portRange(s string) (from, to int, ok bool) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	return int(a), int(b), err1 == nil && err2 == nil && a > 0 && a <= b
}

// Volume reads one --volume: [SOURCE:]TARGET[:OPTIONS], where SOURCE is a path or the name of a volume.
func Volume(s, dir string) (*gantryv1.Mount, error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "volume %q %s", s, why).WithHint("write it like data:/var/lib/data, ./site:/srv:ro or /scratch")
	}
	parts := strings.Split(s, ":")
	m := &gantryv1.Mount{Type: gantryv1.Mount_TYPE_VOLUME}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
		if m.Source == "" {
			return nil, bad("has an empty source")
		}
	default:
		return nil, bad("has more than three parts")
	}
	if !strings.HasPrefix(m.Target, "/") {
		return nil, bad("has no absolute path in the container")
	}
	if isPath(m.Source) {
		m.Type = gantryv1.Mount_TYPE_BIND
		m.Source = hostPath(m.Source, dir)
		m.CreateHostPath = true
	}
	if len(parts) == 3 {
		if why := volumeOptions(m, parts[2]); why != "" {
			return nil, bad(why)
		}
	}
	return m, nil
}

func volumeOptions(m *gantryv1.Mount, options string) (wrong string) {
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "ro", "readonly":
			m.ReadOnly = true
		case "rw":
			m.ReadOnly = false
		case "nocopy":
			m.NoCopy = true
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			m.Propagation = o
		case "z", "Z", "cached", "delegated", "consistent":
			// SELinux labels and macOS caching have no meaning here, and files that ask for them must go on to work.
		default:
			return "has an unknown option " + strconv.Quote(o)
		}
	}
	return ""
}

func isPath(s string) bool {
	return strings.HasPrefix(s, "/") || strings.HasPrefix(s, "~") || s == "." || s == ".." ||
		strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")
}

func hostPath(s, dir string) string {
	if rest, ok := strings.CutPrefix(s, "~"); ok && (rest == "" || rest[0] == '/') {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(s) {
		return filepath.Clean(s)
	}
	return filepath.Join(dir, s)
}

// Mount reads one --mount: type=bind|volume|tmpfs,source=…,target=…[,readonly][,…].
func Mount(s, dir string) (*gantryv1.Mount, error) {
	m := &gantryv1.Mount{Type: gantryv1.Mount_TYPE_VOLUME}
	for _, field := range strings.Split(s, ",") {
		key, value, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		if err := mountField(m, strings.ToLower(key), value, hasValue); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "mount %q", s).
				WithHint("write it like type=bind,source=./site,target=/srv,readonly")
		}
	}
	bad := func(why string) error {
		return fault.New(fault.Invalid, "mount %q %s", s, why).WithHint("write it like type=volume,source=data,target=/data")
	}
	if !strings.HasPrefix(m.Target, "/") {
		return nil, bad("has no absolute target")
	}
	switch m.Type {
	case gantryv1.Mount_TYPE_BIND:
		if m.Source == "" {
			return nil, bad("has no source")
		}
		m.Source = hostPath(m.Source, dir)
	case gantryv1.Mount_TYPE_TMPFS:
		if m.Source != "" {
			return nil, bad("has a source, and a tmpfs takes none")
		}
	case gantryv1.Mount_TYPE_VOLUME:
		if isPath(m.Source) {
			return nil, bad("has a path as source, and type volume takes a name")
		}
	}
	return m, nil
}

func mountField(m *gantryv1.Mount, key, value string, hasValue bool) (err error) {
	flag := func() bool { return !hasValue || value == "true" || value == "1" }
	switch key {
	case "type":
		types := map[string]gantryv1.Mount_Type{
			"bind": gantryv1.Mount_TYPE_BIND, "volume": gantryv1.Mount_TYPE_VOLUME, "tmpfs": gantryv1.Mount_TYPE_TMPFS,
		}
		t, ok := types[value]
		if !ok {
			return fault.New(fault.Invalid, "there is no type %q", value)
		}
		m.Type = t
	case "source", "src":
		m.Source = value
	case "target", "dst", "destination":
		m.Target = value
	case "readonly", "ro":
		m.ReadOnly = flag()
	case "volume-nocopy":
		m.NoCopy = flag()
	case "volume-subpath":
		m.Subpath = value
	case "bind-propagation":
		m.Propagation = value
	case "bind-create-src":
		m.CreateHostPath = flag()
	case "tmpfs-size":
		m.TmpfsSize, err = human.ParseSize(value)
	case "tmpfs-mode":
		var mode uint64
		mode, err = strconv.ParseUint(value, 8, 12)
		m.TmpfsMode = uint32(mode)
	default:
		return fault.New(fault.Invalid, "there is no field %q", key)
	}
	return err
}

// Tmpfs reads one --tmpfs: TARGET[:OPTIONS].
func Tmpfs(s string) (*gantryv1.Mount, error) {
	target, options, _ := strings.Cut(s, ":")
	m := &gantryv1.Mount{Type: gantryv1.Mount_TYPE_TMPFS, Target: target}
	if !strings.HasPrefix(target, "/") {
		return nil, fault.New(fault.Invalid, "tmpfs %q has no absolute path", s).WithHint("write it like /run:size=64m")
	}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "size", "mode":
			if err := mountField(m, "tmpfs-"+key, value, true); err != nil {
				return nil, fault.Wrap(fault.Invalid, err, "tmpfs %q", s)
			}
		case "ro":
			m.ReadOnly = true
		default:
			m.Options = append(m.Options, o)
		}
	}
	return m, nil
}

// Env reads one --env: KEY=VALUE, or KEY to pass the client's own value on if it has one.
func Env(s string, lookup func(string) (string, bool)) (entry string, ok bool, err error) {
	key, _, assigned := strings.Cut(s, "=")
	if key == "" || strings.ContainsAny(key, " \t\x00") {
		return "", false, fault.New(fault.Invalid, "environment variable %q has no name", s).WithHint("write it like NAME=value")
	}
	if assigned {
		return s, true, nil
	}
	value, ok := lookup(key)
	return key + "=" + value, ok, nil
}

// EnvFile reads a file of --env entries, one a line, taken literally; # starts a comment line.
func EnvFile(path string, lookup func(string) (string, bool)) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "env file cannot be read")
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(strings.TrimPrefix(lines.Text(), "\ufeff"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		entry, ok, err := Env(line, lookup)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s line %d", path, n)
		}
		if ok {
			out = append(out, entry)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "env file %s", path)
	}
	return out, nil
}

// Ulimit reads one --ulimit: NAME=SOFT[:HARD], -1 for no limit.
func Ulimit(s string) (*gantryv1.Ulimit, error) {
	name, limits, ok := strings.Cut(s, "=")
	soft, hard, two := strings.Cut(limits, ":")
	if !two {
		hard = soft
	}
	a, err1 := strconv.ParseInt(soft, 10, 64)
	b, err2 := strconv.ParseInt(hard, 10, 64)
	if !ok || name == "" || err1 != nil || err2 != nil || a < -1 || b < -1 || (b != -1 && (a > b || a == -1)) {
		return nil, fault.New(fault.Invalid, "ulimit %q is not a limit", s).WithHint("write it like nofile=1024:4096")
	}
	return &gantryv1.Ulimit{Name: name, Soft: a, Hard: b}, nil
}

// Device reads one --device: SOURCE[:TARGET[:PERMISSIONS]].
func Device(s string) (*gantryv1.Device, error) {
	bad := fault.New(fault.Invalid, "device %q is not one", s).WithHint("write it like /dev/fuse or /dev/sda:/dev/disk:r")
	parts := strings.Split(s, ":")
	d := &gantryv1.Device{Source: parts[0], Target: parts[0], Permissions: "rwm"}
	perms := func(p string) bool { return p != "" && strings.Trim(p, "rwm") == "" }
	switch {
	case len(parts) == 2 && perms(parts[1]):
		d.Permissions = parts[1]
	case len(parts) == 2:
		d.Target = parts[1]
	case len(parts) == 3 && perms(parts[2]):
		d.Target, d.Permissions = parts[1], parts[2]
	case len(parts) != 1:
		return nil, bad
	}
	if !strings.HasPrefix(d.Source, "/") || !strings.HasPrefix(d.Target, "/") {
		return nil, bad
	}
	return d, nil
}

// Restart reads --restart: no, always, unless-stopped, on-failure[:TIMES].
func Restart(s string) (*gantryv1.RestartPolicy, error) {
	name, times, limited := strings.Cut(s, ":")
	conditions := map[string]gantryv1.RestartPolicy_Condition{
		"no": gantryv1.RestartPolicy_CONDITION_NO, "always": gantryv1.RestartPolicy_CONDITION_ALWAYS,
		"unless-stopped": gantryv1.RestartPolicy_CONDITION_UNLESS_STOPPED, "on-failure": gantryv1.RestartPolicy_CONDITION_ON_FAILURE,
	}
	condition, ok := conditions[name]
	n, err := strconv.ParseInt(times, 10, 32)
	if !ok || limited && (name != "on-failure" || err != nil || n < 0) {
		return nil, fault.New(fault.Invalid, "restart policy %q is not one", s).
			WithHint("use no, always, unless-stopped or on-failure[:TIMES]")
	}
	return &gantryv1.RestartPolicy{Condition: condition, MaxAttempts: int32(n)}, nil
}

// Network reads one --network: bridge, none, host, service:NAME, container:TARGET, or a network of the environment.
func Network(names []string, environment string) (*gantryv1.NetworkMode, error) {
	mode := &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_BRIDGE}
	for _, name := range names {
		kind, target, _ := strings.Cut(name, ":")
		special := map[string]gantryv1.NetworkMode_Kind{
			"none": gantryv1.NetworkMode_KIND_NONE, "host": gantryv1.NetworkMode_KIND_HOST,
			"service": gantryv1.NetworkMode_KIND_SERVICE, "container": gantryv1.NetworkMode_KIND_CONTAINER,
		}
		switch k, ok := special[kind]; {
		case name == "bridge" || name == "default":
		case ok && (target != "") == (kind == "service" || kind == "container"):
			if len(names) > 1 {
				return nil, fault.New(fault.Invalid, "network %q cannot be combined with others", name)
			}
			return &gantryv1.NetworkMode{Kind: k, Target: target}, nil
		case name == "" || strings.Contains(name, ":"):
			return nil, fault.New(fault.Invalid, "network %q is not one", name).
				WithHint("use bridge, none, host, service:NAME, container:NAME, or a name from: gantry network ls")
		default:
			mode.Attachments = append(mode.Attachments, &gantryv1.NetworkAttachment{Network: environment + "/" + name})
		}
	}
	return mode, nil
}

// KeyValues reads KEY=VALUE entries; one without a value has an empty one.
func KeyValues(what string, entries []string) (map[string]string, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, e := range entries {
		key, value, _ := strings.Cut(e, "=")
		if key == "" {
			return nil, fault.New(fault.Invalid, "%s %q has no name", what, e).WithHint("write it like name=value")
		}
		out[key] = value
	}
	return out, nil
}

// Cpus reads --cpus: a number of CPUs, in billionths.
func Cpus(s string) (int64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v != v || v < 0 || v > 1e6 {
		return 0, fault.New(fault.Invalid, "%q is not a number of CPUs", s).WithHint("write it like 2 or 0.5")
	}
	return int64(v * 1e9), nil
}
