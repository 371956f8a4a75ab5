package lab

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// CPUTime is the processor time that everything on the machine has used since it was made.
func (n *Node) CPUTime(t testing.TB) time.Duration {
	t.Helper()
	if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", n.cgroup(), "cpuacct.usage")); err == nil {
		used, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		must(t, err)
		return time.Duration(used)
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu,cpuacct"} {
		text, err := os.ReadFile(filepath.Join(dir, n.cgroup(), "cpu.stat"))
		if err != nil {
			continue
		}
		if _, rest, found := strings.Cut(string(text), "usage_usec "); found {
			value, _, _ := strings.Cut(rest, "\n")
			used, err := strconv.ParseInt(value, 10, 64)
			must(t, err)
			return time.Duration(used) * time.Microsecond
		}
	}
	t.Fatal("lab: the cgroups tell no CPU time")
	return 0
}

// Processes lists everything that runs on the machine, as the host numbers it.
func (n *Node) Processes(t testing.TB) []int {
	t.Helper()
	seen := map[int]bool{}
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		_ = filepath.WalkDir(filepath.Join(dir, n.cgroup()), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.Name() != "cgroup.procs" {
				return nil
			}
			text, _ := os.ReadFile(path)
			for _, field := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	return slices.Sorted(maps.Keys(seen))
}
