package bootstrap

import (
	"context"
	"io/fs"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Machine is what a base image takes from the machine it is made on.
type Machine struct {
	// Distribution and Suite are what the machine runs.
	Distribution, Suite string
	// Sources are all archives that its apt is configured with.
	Sources []Source
	// AptOptions are the settings that its apt needs to reach them: proxies, certificates, time-outs.
	AptOptions []string
	// Auth tells that apt has passwords for archives in /etc/apt/auth.conf or auth.conf.d.
	Auth bool
}

// ReadMachine reads the machine from its root file system, and apt's settings from apt-config.
func ReadMachine(ctx context.Context, root fs.FS) Machine {
	m := readFiles(root)
	if out, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%F \"%v\";%n").Output(); err == nil {
		m.AptOptions = aptOptions(string(out))
	}
	return m
}

func readFiles(root fs.FS) (m Machine) {
	release := fields(strings.ReplaceAll(read(root, "etc/os-release"), "=", ":"))
	unquote := func(k string) string { return strings.Trim(release[k], `"'`) }
	m.Distribution, m.Suite = unquote("id"), unquote("version_codename")
	m.Sources = parseOneLine(read(root, "etc/apt/sources.list"))
	entries, _ := fs.ReadDir(root, "etc/apt/sources.list.d") // sorted; absent is empty
	for _, e := range entries {
		text := read(root, "etc/apt/sources.list.d/"+e.Name())
		switch path.Ext(e.Name()) {
		case ".list":
			m.Sources = append(m.Sources, parseOneLine(text)...)
		case ".sources":
			m.Sources = append(m.Sources, parseDeb822(text)...)
		}
	}
	confs, _ := fs.ReadDir(root, "etc/apt/auth.conf.d")
	m.Auth = len(confs) > 0 || read(root, "etc/apt/auth.conf") != ""
	return m
}

func read(root fs.FS, name string) string {
	b, _ := fs.ReadFile(root, name)
	return string(b)
}

// carried are the apt settings that decide whether an archive can be reached and is believed to be current.
var carried = regexp.MustCompile(`^Acquire::(Retries|Check-Valid-Until|Check-Date|ForceIPv[46]|Max-ValidTime|(http|https)::.+)$`)

// aptOptions picks the settings to carry over out of apt-config's output.
func aptOptions(dump string) (out []string) {
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, " ")
		if value != `"";` && carried.MatchString(key) {
			out = append(out, strings.TrimSuffix(line, ";"))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
