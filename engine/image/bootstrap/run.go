package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gantryd/gantry/fault"
)

// Event is one step of a run: what is being done, and to which package.
type Event struct {
	Phase  string // "preparing", "downloading", "unpacking", "configuring", "packing"
	Detail string
	// Count is the number of packages so far, in unpacking and configuring.
	Count int
}

// Require tells what has to be installed on the machine before a plan can run, as an error with the command.
func (p *Plan) Require() error {
	if os.Getuid() != 0 {
		return fault.New(fault.Denied, "making a base image needs root").WithHint("run gantryd as root")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fault.New(fault.Unsupported, "making a base image needs mmdebstrap, which is not installed").WithHint("apt-get install mmdebstrap")
	}
	if _, err := os.Stat(p.Keyring); err != nil {
		pkg := map[string]string{"debian": "debian-archive-keyring", "ubuntu": "ubuntu-keyring"}[p.Release.Distribution]
		return fault.New(fault.Unsupported, "the keys of %s are not on this machine (%s)", p.Release.Distribution, p.Keyring).
			WithHint("apt-get install %s", pkg)
	}
	return nil
}

// Epoch is the time that an image made now gets: when its archives last changed, so that the same packages give the same bytes.
// SOURCE_DATE_EPOCH overrides it.
func (p *Plan) Epoch(ctx context.Context, dir string) (time.Time, error) {
	if v, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(v, 0).UTC(), nil
	}
	var newest time.Time
	for i, s := range p.Sources {
		file := filepath.Join(dir, "release-"+strconv.Itoa(i))
		url := strings.TrimSuffix(s.URL, "/") + "/dists/" + s.Suite + "/InRelease"
		// apt's own tool fetches it, with the machine's proxies and passwords.
		if out, err := exec.CommandContext(ctx, "/usr/lib/apt/apt-helper", "download-file", url, file).CombinedOutput(); err != nil {
			return newest, fault.Wrap(fault.Unavailable, err, "archive %s %s: %s", s.URL, s.Suite, lastLine(out)).
				WithHint("apt-get update says whether this machine reaches its archives")
		}
		if t := releaseDate(file); t.After(newest) {
			newest = t
		}
	}
	if newest.IsZero() {
		return newest, fault.New(fault.Corrupt, "the archives of %s have no date", p.Release.Suite)
	}
	return newest, nil
}

// releaseDate reads the date of a Release file; apt checks its signature later.
func releaseDate(file string) (t time.Time) {
	b, err := os.ReadFile(file)
	if err != nil {
		return t
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Date: "); ok {
			t, _ = mail.ParseDate(strings.Replace(strings.TrimSpace(v), "UTC", "+0000", 1))
			return t.UTC()
		}
	}
	return t
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// Run writes the root file system as a tar stream. Temporary files go to a new folder in dir, which is gone afterwards, also
// after a failure or a cancellation.
func (p *Plan) Run(ctx context.Context, dir string, epoch time.Time, tar io.Writer, tell func(Event)) (err error) {
	tmp, err := os.MkdirTemp(dir, "bootstrap-")
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "make a folder for the base image")
	}
	defer func() { err = errors.Join(err, removeTree(tmp)) }()
	if err := errors.Join(os.Chmod(tmp, 0o755), os.WriteFile(filepath.Join(tmp, "sources"), []byte(deb822(p.Sources, p.Keyring)), 0o644)); err != nil {
		return fault.Wrap(fault.Unavailable, err, "write %s", tmp)
	}
	cmd := p.command(ctx, tmp, epoch)
	cmd.Stdout = tar
	log := &progress{tell: tell}
	cmd.Stderr = log
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, ctx.Err(), "making %s:%s was stopped", p.Release.Distribution, p.Release.Suite)
		}
		return fault.Wrap(fault.Unavailable, err, "mmdebstrap could not make %s:%s:\n%s", p.Release.Distribution, p.Release.Suite, log.tail()).
			WithHint("apt-get update says whether this machine reaches its archives")
	}
	return nil
}

// command is mmdebstrap's. It gets a mount namespace of its own, so that no mount outlives it, and a chance to clean up when it
// is stopped.
func (p *Plan) command(ctx context.Context, tmp string, epoch time.Time) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "mmdebstrap", p.args(tmp)...)
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SOURCE_DATE_EPOCH="+strconv.FormatInt(epoch.Unix(), 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

func (p *Plan) args(tmp string) []string {
	a := []string{"--verbose", "--mode=root", "--format=tar", "--variant=" + p.Variant, "--skip=output/dev", "--skip=check/empty"}
	if len(p.Include) > 0 {
		a = append(a, "--include="+strings.Join(p.Include, ","))
	}
	for _, o := range p.AptOptions {
		a = append(a, "--aptopt="+o)
	}
	if p.Release.Slim {
		for _, path := range []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*"} {
			a = append(a, "--dpkgopt=path-exclude="+path)
		}
		a = append(a, "--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-include=/usr/share/locale/locale.alias")
	}
	if p.Auth {
		a = append(a, `--setup-hook=mkdir -p "$1/etc/apt/auth.conf.d"; cat /etc/apt/auth.conf /etc/apt/auth.conf.d/*.conf > "$1/etc/apt/auth.conf.d/machine.conf" 2>/dev/null || :`)
		a = append(a, `--customize-hook=rm -f "$1/etc/apt/auth.conf.d/machine.conf"`)
	}
	a = append(a, "--customize-hook="+p.finish(tmp), p.Release.Suite, "-")
	for _, s := range p.Sources {
		a = append(a, s.oneLine(p.Keyring))
	}
	return a
}

// finish is the last script inside: the archives in today's form, what belongs to the machine away, and what the well-known base
// images set so that builds behave as people expect.
func (p *Plan) finish(tmp string) string {
	sh := `set -e; cd "$1"; mkdir -p etc/apt/sources.list.d etc/apt/apt.conf.d etc/dpkg/dpkg.cfg.d usr/sbin
rm -f etc/apt/sources.list etc/resolv.conf etc/hostname var/cache/debconf/*-old var/lib/dpkg/*-old var/cache/apt/*.bin
cp ` + quote(filepath.Join(tmp, "sources")) + ` etc/apt/sources.list.d/` + p.Release.Distribution + `.sources
printf '%s\n' '#!/bin/sh' '# No service starts while an image is built.' 'exit 101' > usr/sbin/policy-rc.d; chmod 755 usr/sbin/policy-rc.d
echo force-unsafe-io > etc/dpkg/dpkg.cfg.d/docker-apt-speedup
echo 'Acquire::Languages "none";' > etc/apt/apt.conf.d/docker-no-languages
echo 'Acquire::GzipIndexes "true";' > etc/apt/apt.conf.d/docker-gzip-indexes
printf '%s\n' 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };' 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' > etc/apt/apt.conf.d/docker-clean
`
	if p.secretProxy() {
		sh += "sed -i '/@/d' etc/apt/apt.conf.d/99mmdebstrap\n" // a proxy's password stays on the machine
	}
	return sh
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (p *Plan) secretProxy() bool {
	for _, o := range p.AptOptions {
		if strings.Contains(o, "@") {
			return true
		}
	}
	return false
}

// removeTree removes a temporary folder, but never anything that is mounted in it.
func removeTree(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(" "+dir+"/")) {
		return fault.New(fault.Conflict, "%s still has mounts in it and was left", dir).WithHint("umount them, then rm -r --one-file-system %s", dir)
	}
	return os.RemoveAll(dir)
}

// progress reads mmdebstrap's output, tells of it, and keeps the end of it.
type progress struct {
	tell  func(Event)
	rest  []byte
	last  []string
	count map[string]int
}

// Write takes output as it comes.
func (p *progress) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		line, rest, ok := bytes.Cut(p.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		p.rest = rest
		p.line(strings.TrimSpace(string(line)))
	}
}

func (p *progress) line(l string) {
	if l == "" {
		return
	}
	if p.last = append(p.last, l); len(p.last) > 12 {
		p.last = p.last[1:]
	}
	e, ok := parseLine(l)
	if !ok || p.tell == nil {
		return
	}
	if p.count == nil {
		p.count = map[string]int{}
	}
	p.count[e.Phase]++
	if e.Phase == "unpacking" || e.Phase == "configuring" {
		e.Count = p.count[e.Phase]
	}
	p.tell(e)
}

// tail is what mmdebstrap said last.
func (p *progress) tail() string {
	if len(p.rest) > 0 {
		p.last = append(p.last, string(p.rest))
	}
	return strings.Join(p.last, "\n")
}

// parseLine knows the lines that mean progress.
func parseLine(l string) (Event, bool) {
	for prefix, phase := range map[string]string{
		"Unpacking ": "unpacking", "Setting up ": "configuring", "Get:": "downloading", "I: running apt-get update": "preparing",
		"I: downloading": "downloading", "I: extracting": "unpacking", "I: installing": "configuring", "I: creating tarball": "packing",
	} {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			detail, _, _ := strings.Cut(rest, " ")
			if strings.HasPrefix(prefix, "I: ") {
				detail = ""
			}
			if prefix == "Get:" {
				detail = lastWords(rest)
			}
			return Event{Phase: phase, Detail: detail}, true
		}
	}
	return Event{}, false
}

// lastWords is the package and its version in a line of apt's: "12 http://… bookworm/main amd64 libc6 amd64 2.36-9 [2757 kB]".
func lastWords(rest string) string {
	f := strings.Fields(rest)
	if len(f) > 4 {
		return f[4]
	}
	return ""
}
