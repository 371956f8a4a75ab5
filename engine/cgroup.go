package engine

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/groupmove"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups finds the control groups of containers: one hierarchy of version 2, or one per controller of version 1.
type cgroups struct {
	parent  string // "/gantry/1a2b3c4d"
	unified bool
	swap    bool
	roots   []string // mount points of the hierarchies
	mover   *groupmove.Mover
}

func openCgroups(parent string) (cgroups, error) {
	g := cgroups{parent: filepath.Clean("/" + parent), mover: &groupmove.Mover{}}
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return g, fault.Wrap(fault.Unsupported, err, "no control groups at %s", cgroupRoot).
			WithHint("mount -t cgroup2 none %s", cgroupRoot)
	}
	if g.unified = st.Type == unix.CGROUP2_SUPER_MAGIC; g.unified {
		g.roots, g.swap = []string{cgroupRoot}, true
		return g, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return g, fault.Wrap(fault.Unsupported, err, "control groups")
	}
	for _, d := range entries {
		if d.IsDir() { // links are other names of the same hierarchy
			g.roots = append(g.roots, filepath.Join(cgroupRoot, d.Name()))
		}
	}
	g.mover = groupmove.Open(cgroupRoot, "freezer")
	_, err = os.Stat(filepath.Join(cgroupRoot, "memory", "memory.memsw.limit_in_bytes"))
	g.swap = err == nil
	return g, nil
}

// path returns the control group of a container as runc takes it.
func (g cgroups) path(id string) string { return filepath.Join(g.parent, id) }

// file returns the path of a controller's file of a container.
func (g cgroups) file(controller, id, name string) string {
	if g.unified {
		controller = ""
	}
	return filepath.Join(cgroupRoot, controller, g.path(id), name)
}

// oomKilled says whether the kernel killed a process of the container for lack of memory.
func (g cgroups) oomKilled(id string) bool {
	name := "memory.oom_control"
	if g.unified {
		name = "memory.events"
	}
	return readKeyed(g.file("memory", id, name), "oom_kill") > 0
}

// readKeyed reads the number after a key in a file of "key number" lines, 0 if there is none.
func readKeyed(path, key string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseUint(v, 10, 64)
			return n
		}
	}
	return 0
}

func readNumber(path string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// ids returns the containers that have a control group.
func (g cgroups) ids() []string {
	var ids []string
	for _, root := range g.roots {
		entries, _ := os.ReadDir(filepath.Join(root, g.parent))
		for _, d := range entries {
			if d.IsDir() && !slices.Contains(ids, d.Name()) {
				ids = append(ids, d.Name())
			}
		}
	}
	return ids
}

// pids returns all processes of a container, those in groups below its own included.
func (g cgroups) pids(id string) []int {
	root := g.roots[0]
	if !g.unified {
		root = filepath.Join(cgroupRoot, "pids")
	}
	var pids []int
	_ = filepath.WalkDir(filepath.Join(root, g.path(id)), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		pids = append(pids, readPids(filepath.Join(p, "cgroup.procs"))...)
		return nil
	})
	return pids
}

func readPids(path string) []int {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var pids []int
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if pid, err := strconv.Atoi(s.Text()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill kills every process of a container, without help from its shim.
func (g cgroups) kill(id string) {
	if g.unified && os.WriteFile(g.file("", id, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	_ = os.WriteFile(g.file("freezer", id, "freezer.state"), []byte("THAWED"), 0)
	for _, pid := range g.pids(id) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// remove removes a container's control groups, which must have no processes.
func (g cgroups) remove(id string) error {
	var errs []error
	for _, root := range g.roots {
		errs = append(errs, removeTree(filepath.Join(root, g.path(id))))
	}
	return errors.Join(errs...)
}

// removeTree removes a control group and those below it, deepest first.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, d := range entries {
		if d.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, d.Name())))
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fault.Wrap(fault.Conflict, err, "control group %s", dir))
	}
	return errors.Join(errs...)
}
