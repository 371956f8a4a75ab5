package bootstrap

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/gantryd/gantry/fault"
)

const debianSources = `Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
`

const foreignList = `# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] https://vendor.example bookworm main
deb https://tools.example/debian bookworm stable
deb https://db.example bookworm-pgdg main
deb-src http://mirror.example/debian bookworm main
deb file:/media/cdrom bookworm main
`

func debianMachine() Machine {
	return readFiles(fstest.MapFS{
		"etc/os-release":                         {Data: []byte("ID=debian\nVERSION_CODENAME=bookworm\nHOME_URL=\"https://x/\"\n")},
		"etc/apt/sources.list.d/debian.sources":  {Data: []byte(debianSources)},
		"etc/apt/sources.list.d/foreign.list":    {Data: []byte(foreignList)},
		"etc/apt/sources.list.d/old.list.distUp": {Data: []byte("deb http://wrong.example bookworm main")},
	})
}

func ubuntuMachine() Machine {
	return readFiles(fstest.MapFS{
		"etc/os-release": {Data: []byte("ID=ubuntu\nVERSION_ID=\"24.04\"\nVERSION_CODENAME=noble\n")},
		"etc/apt/sources.list": {Data: []byte("deb http://mirror.example/ubuntu noble main universe\n" +
			"deb http://mirror.example/ubuntu noble-updates main universe # why\ndeb http://security.example/ubuntu noble-security main\n")},
	})
}

func TestSourcesOfTheMachine(t *testing.T) {
	for name, c := range map[string]struct {
		image string
		m     Machine
		want  []string
	}{
		"own release": {"debian:bookworm", debianMachine(), []string{
			"http://mirror.example/debian bookworm main", "http://mirror.example/debian bookworm-updates main",
			"http://mirror.example/debian-security bookworm-security main"}},
		"another release": {"debian:13", debianMachine(), []string{
			"http://mirror.example/debian trixie main", "http://mirror.example/debian trixie-updates main",
			"http://mirror.example/debian-security trixie-security main"}},
		"rolling": {"debian:sid", debianMachine(), []string{"http://mirror.example/debian sid main"}},
		"one line": {"ubuntu:24.04", ubuntuMachine(), []string{
			"http://mirror.example/ubuntu noble main universe", "http://mirror.example/ubuntu noble-updates main universe",
			"http://security.example/ubuntu noble-security main"}},
		"ubuntu by name": {"ubuntu:jammy", ubuntuMachine(), []string{
			"http://mirror.example/ubuntu jammy main universe", "http://mirror.example/ubuntu jammy-updates main universe",
			"http://security.example/ubuntu jammy-security main"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseRelease(c.image, c.m)
			if err != nil {
				t.Fatal(err)
			}
			p, err := NewPlan(r, "", nil, c.m)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range p.Sources {
				got = append(got, s.URL+" "+s.Suite+" "+strings.Join(s.Components, " "))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestParseRelease(t *testing.T) {
	for in, want := range map[string]string{
		"debian:bookworm": "debian bookworm", "debian:12": "debian bookworm", "debian:12.11": "debian bookworm", "debian": "debian bookworm",
		"debian:latest": "debian bookworm", "ubuntu:noble": "ubuntu noble", "docker.io/library/ubuntu:24.04": "ubuntu noble",
		"debian:trixie-slim": "debian trixie slim",
	} {
		r, err := ParseRelease(in, debianMachine())
		got := r.Distribution + " " + r.Suite
		if r.Slim {
			got += " slim"
		}
		if err != nil || got != want {
			t.Errorf("ParseRelease(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for in, kind := range map[string]fault.Kind{
		"alpine:3": fault.Unsupported, "ubuntu": fault.Invalid, "debian:--hook": fault.Invalid, "debian:../x": fault.Invalid, "debian:a b": fault.Invalid,
	} {
		if _, err := ParseRelease(in, debianMachine()); !fault.Is(err, kind) || fault.HintOf(err) == "" {
			t.Errorf("ParseRelease(%q): %v", in, err)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	r := Release{Distribution: "debian", Suite: "bookworm"}
	for name, c := range map[string]struct {
		variant string
		include []string
		m       Machine
		kind    fault.Kind
	}{
		"variant":    {"big", nil, debianMachine(), fault.Invalid},
		"option":     {"", []string{"--hook-dir=/x"}, debianMachine(), fault.Invalid},
		"path":       {"", []string{"./evil.deb"}, debianMachine(), fault.Invalid},
		"pattern":    {"", []string{"?essential"}, debianMachine(), fault.Invalid},
		"no archive": {"", nil, ubuntuMachine(), fault.NotFound},
	} {
		if _, err := NewPlan(r, c.variant, c.include, c.m); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHashFollowsInputs(t *testing.T) {
	plan := func(include ...string) *Plan {
		p, err := NewPlan(Release{Distribution: "debian", Suite: "bookworm"}, "", include, debianMachine())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if plan("b1", "a1").Hash() != plan("a1", "b1", "a1").Hash() {
		t.Error("the order of packages changes the hash")
	}
	if plan().Hash() == plan("a1").Hash() {
		t.Error("a further package does not change the hash")
	}
}

func TestAptOptions(t *testing.T) {
	got := aptOptions(`Acquire "";
Acquire::http::Proxy "http://proxy.example:3142";
Acquire::http::Proxy::mirror.example "DIRECT";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
APT::Install-Recommends "true";
Acquire::https::Verify-Peer "";
`)
	want := []string{`Acquire::Check-Valid-Until "false"`, `Acquire::http::Proxy "http://proxy.example:3142"`, `Acquire::http::Proxy::mirror.example "DIRECT"`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	p := &Plan{AptOptions: []string{`Acquire::http::Proxy "http://me:secret@proxy.example"`}}
	if !strings.Contains(p.finish("/tmp/x"), "99mmdebstrap") {
		t.Error("a proxy's password stays in the image")
	}
}

func TestProgressLines(t *testing.T) {
	var got []Event
	p := &progress{tell: func(e Event) { got = append(got, e) }}
	_, _ = p.Write([]byte("I: running apt-get update...\nGet:7 http://mirror.example bookworm/main amd64 libc6 amd64 2.36-9 [2757 kB]\nUnpacking li"))
	_, _ = p.Write([]byte("bc6 (2.36-9) ...\nnoise\nSetting up libc6:amd64 (2.36-9) ...\nSetting up bash (5.2) ...\nE: broken"))
	want := []Event{{Phase: "preparing"}, {Phase: "downloading", Detail: "libc6"}, {Phase: "unpacking", Detail: "libc6", Count: 1},
		{Phase: "configuring", Detail: "libc6:amd64", Count: 1}, {Phase: "configuring", Detail: "bash", Count: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	if !strings.HasSuffix(p.tail(), "E: broken") {
		t.Errorf("tail %q", p.tail())
	}
}

func FuzzSources(f *testing.F) {
	f.Add(debianSources)
	f.Add(foreignList)
	f.Add("deb http://\x00 bookworm main")
	f.Fuzz(func(t *testing.T, text string) {
		m := Machine{Distribution: "debian", Suite: "bookworm", Sources: append(parseDeb822(text), parseOneLine(text)...)}
		p, err := NewPlan(Release{Distribution: "debian", Suite: "bookworm"}, "", nil, m)
		if err != nil {
			return
		}
		for _, s := range p.Sources {
			if strings.ContainsAny(s.oneLine(p.Keyring), "\n\x00") || !strings.HasPrefix(s.URL, "http") {
				t.Fatalf("source %q", s)
			}
		}
	})
}
