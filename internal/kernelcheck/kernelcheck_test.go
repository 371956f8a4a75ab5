package kernelcheck

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gantryd/gantry/fault"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
}

// traces is what a probe could leave on the machine.
func traces(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "kernelcheck") {
			out.WriteString(line)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "probe") {
			out.WriteString(l.Name + "\n")
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/gantry-kernelcheck-*", "/sys/fs/cgroup/*/gantry-kernelcheck-*"} {
		found, _ := filepath.Glob(pattern)
		out.WriteString(strings.Join(found, "\n"))
	}
	return out.String()
}

// leaveBehind leaves what a daemon that was killed in its check does.
func leaveBehind(t *testing.T, root string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, ".kernelcheck-123", "overlay"), 0o755); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tried, v2 := hierarchies(string(mounts))
	if kindOf(tried, v2) == "v2" {
		tried = v2
	}
	for _, h := range tried {
		if err := os.Mkdir(filepath.Join(h.path, groupName(root)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunLeavesNothing(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	leaveBehind(t, root)
	checks, err := Run(root)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if err := Table(&table, checks); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	if err := Missing(checks); err != nil {
		t.Error(err)
	}
	if len(checks) != len(probes())+1 {
		t.Errorf("%d lines for %d probes", len(checks), len(probes()))
	}
	for _, c := range checks {
		if c.Cost == "" || !c.Present && c.Detail == "" {
			t.Errorf("%s: no cost or no reason: %+v", c.Feature, c)
		}
	}
	if left := traces(t); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Errorf("left below the root: %v", entries)
	}
	if b, _ := os.ReadFile("/proc/self/status"); strings.Contains(string(b), "Seccomp:\t2") {
		t.Error("the test itself is filtered now")
	}
}

func TestRunInParallel(t *testing.T) {
	needRoot(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			checks, err := Run(t.TempDir())
			if err == nil {
				err = Missing(checks)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestRootThatCannotBeWritten(t *testing.T) {
	needRoot(t)
	if _, err := Run(filepath.Join(t.TempDir(), "missing")); !fault.Is(err, fault.Unavailable) || fault.HintOf(err) == "" {
		t.Fatal(err)
	}
}

func TestMissingNamesWhatIsRequired(t *testing.T) {
	err := Missing([]Check{
		{Feature: "nftables", Required: true, Detail: "not there"}, {Feature: "KVM"}, {Feature: "veth pairs", Required: true, Present: true},
	})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "nftables (not there)") || strings.Contains(err.Error(), "KVM") {
		t.Fatal(err)
	}
}

func TestHierarchies(t *testing.T) {
	const (
		v1line = "30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
		v2line = "35 24 0:31 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
		named  = "36 24 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
	)
	for info, want := range map[string]string{
		v1line: "v1", v1line + v2line: "v1 (hybrid)", v2line: "v2", named + v2line: "v2", "": "v1", "broken - cgroup\n": "v1",
	} {
		if got := kindOf(hierarchies(info)); got != want {
			t.Errorf("%q: %s, want %s", info, got, want)
		}
	}
	v1, _ := hierarchies(v1line)
	if len(v1) != 1 || v1[0].path != "/sys/fs/cgroup/memory" || !slices.Contains(v1[0].controllers, "memory") {
		t.Errorf("%+v", v1)
	}
	if err := haveControllers(v1, "memory", "pids"); err == nil || !strings.Contains(err.Error(), "pids") {
		t.Errorf("a missing controller: %v", err)
	}
}

func BenchmarkRun(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("namespaces need root")
	}
	for b.Loop() {
		if _, err := Run(b.TempDir()); err != nil {
			b.Fatal(err)
		}
	}
}

// /proc/self is the process's first thread. Were it used for a probe, the whole daemon would look at the namespaces of
// the probe for ever after.
func TestTheFirstThreadIsLeftAlone(t *testing.T) {
	needRoot(t)
	before := firstThread(t)
	for range 100 {
		if err := onThread(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if after := firstThread(t); after != before {
			t.Fatalf("the process has other namespaces now:\n%s\n%s", before, after)
		}
	}
}

func firstThread(t *testing.T) string {
	t.Helper()
	var out []string
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "cgroup"} {
		l, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return strings.Join(out, " ")
}
