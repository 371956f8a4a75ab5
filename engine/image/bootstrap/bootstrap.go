// Package bootstrap makes the root file system of a Debian or Ubuntu release straight from the distribution's signed packages,
// with the archives and the apt settings of the machine it runs on.
//
// Call ReadMachine, ParseRelease and NewPlan, which do nothing, then Plan.Run, which has mmdebstrap write a tar stream. The same
// plan against the same archives gives the same bytes. Runs in parallel do not disturb each other. The package knows nothing
// of images: package image makes one of the stream.
package bootstrap

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Plan is all that decides what an image will hold, except for what the archives hold on that day.
type Plan struct {
	Release    Release
	Variant    string
	Include    []string
	Sources    []Source
	Keyring    string
	AptOptions []string
	Auth       bool
	Arch       string
	// Format changes when the making itself does, so that older images count as outdated.
	Format int
}

const format = 1

var packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?$`)

// NewPlan decides how a release is made on a machine. An empty variant is "minbase".
func NewPlan(r Release, variant string, include []string, m Machine) (*Plan, error) {
	if variant == "" {
		variant = "minbase"
	}
	if !slices.Contains([]string{"minbase", "essential", "apt", "standard"}, variant) {
		return nil, fault.New(fault.Invalid, "variant %q is not known", variant).WithHint("use minbase, essential, apt or standard")
	}
	for _, p := range include {
		if !packagePattern.MatchString(p) {
			return nil, fault.New(fault.Invalid, "%q is not the name of a package", p)
		}
	}
	own := m.Suite
	if m.Distribution != r.Distribution {
		own = "" // its archives hold other packages
	}
	sources := choose(m.Sources, r, own)
	if len(sources) == 0 {
		return nil, fault.New(fault.NotFound, "this machine's apt has no archive of %s to make %s from", r.Distribution, r.Suite).
			WithHint("add one to /etc/apt/sources.list.d that is signed by %s", Keyring(r.Distribution))
	}
	include = slices.Sorted(slices.Values(include))
	return &Plan{
		Release: r, Variant: variant, Include: slices.Compact(include), Sources: sources, Keyring: Keyring(r.Distribution),
		AptOptions: m.AptOptions, Auth: m.Auth, Arch: runtime.GOARCH, Format: format,
	}, nil
}

// Keyring is the file with a distribution's keys, at the same place on a machine and in an image.
func Keyring(distribution string) string {
	return "/usr/share/keyrings/" + distribution + "-archive-keyring.gpg"
}

// Hash is the same for two plans that would make the same image.
func (p *Plan) Hash() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings, numbers and lists of them always marshal
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Archives lists where packages come from, for people.
func (p *Plan) Archives() string {
	var out []string
	for _, s := range p.Sources {
		out = append(out, s.URL+" "+s.Suite)
	}
	return strings.Join(out, ", ")
}
