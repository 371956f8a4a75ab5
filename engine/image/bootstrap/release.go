package bootstrap

import (
	"regexp"
	"slices"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Release is one release of a distribution.
type Release struct {
	// Distribution is "debian" or "ubuntu".
	Distribution string
	// Suite is the codename that the archive knows it by.
	Suite string
	// Slim leaves out manual pages, documentation and translations.
	Slim bool
}

// numbers are the releases by the numbers people and VERSION_ID use.
func numbers() map[string]map[string]string {
	return map[string]map[string]string{
		"debian": {"10": "buster", "11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"},
		"ubuntu": {
			"20.04": "focal", "22.04": "jammy", "24.04": "noble", "24.10": "oracular", "25.04": "plucky", "25.10": "questing",
			"26.04": "resolute",
		},
	}
}

var suitePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{1,30}$`)

// ParseRelease reads "debian:bookworm", "debian:12-slim", "ubuntu:24.04" or "ubuntu:noble". Without a tag, or with "latest", it is
// the machine's own release if the machine runs that distribution.
func ParseRelease(image string, m Machine) (Release, error) {
	name, tag, _ := strings.Cut(image, ":")
	name = strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/")
	known, ok := numbers()[name]
	if !ok {
		return Release{}, fault.New(fault.Unsupported, "image %q: only debian and ubuntu can be made from packages", image).
			WithHint("gantry image bootstrap debian:bookworm")
	}
	r := Release{Distribution: name}
	tag, r.Slim = strings.CutSuffix(tag, "-slim")
	if tag == "" || tag == "latest" {
		if m.Distribution != name {
			return Release{}, fault.New(fault.Invalid, "image %q names no release, and this machine does not run %s", image, name).
				WithHint("name one: %s:%s", name, newest(known))
		}
		tag = m.Suite
	}
	r.Suite = tag
	major, _, _ := strings.Cut(tag, ".")
	for _, number := range []string{tag, major} {
		if suite := known[number]; suite != "" {
			r.Suite = suite
		}
	}
	if !suitePattern.MatchString(r.Suite) {
		return Release{}, fault.New(fault.Invalid, "image %q: %q is no release of %s", image, tag, name).
			WithHint("name a codename: %s:%s", name, newest(known))
	}
	return r, nil
}

func newest(known map[string]string) string {
	var all []string
	for number := range known {
		all = append(all, number)
	}
	return known[slices.Max(all)]
}
