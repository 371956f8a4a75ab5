package kernelcheck

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hierarchy is one mounted tree of control groups.
type hierarchy struct {
	path        string
	controllers []string
}

// cgroups makes a group in every tree that Gantry would use and removes it again.
func cgroups(scratch string) (string, error) {
	group := groupName(filepath.Dir(scratch))
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	v1, v2 := hierarchies(string(b))
	kind := kindOf(v1, v2)
	if kind == "v2" {
		list, err := os.ReadFile(filepath.Join(v2[0].path, "cgroup.controllers"))
		if err != nil {
			return "", err
		}
		v2[0].controllers = strings.Fields(string(list))
		return kind, errors.Join(haveControllers(v2, "cpu", "memory", "pids"), makeGroups(v2, group))
	}
	return kind, errors.Join(haveControllers(v1, "cpu", "memory", "pids", "devices", "freezer"), makeGroups(v1, group))
}

func kindOf(v1, v2 []hierarchy) string {
	limits := slices.ContainsFunc(v1, func(h hierarchy) bool { return slices.Contains(h.controllers, "memory") })
	switch {
	case limits && len(v2) > 0:
		return "v1 (hybrid)"
	case limits || len(v2) == 0:
		return "v1"
	}
	return "v2"
}

// hierarchies reads mountinfo: "ID PARENT DEV ROOT POINT OPTIONS … - TYPE SOURCE SUPEROPTIONS".
func hierarchies(mountinfo string) (v1, v2 []hierarchy) {
	for line := range strings.Lines(mountinfo) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 3 {
			continue
		}
		switch h := (hierarchy{path: l[4], controllers: strings.Split(r[2], ",")}); r[0] {
		case "cgroup":
			v1 = append(v1, h)
		case "cgroup2":
			v2 = append(v2, h)
		}
	}
	return v1, v2
}

func haveControllers(all []hierarchy, need ...string) error {
	var missing []string
	for _, n := range need {
		if !slices.ContainsFunc(all, func(h hierarchy) bool { return slices.Contains(h.controllers, n) }) {
			missing = append(missing, n)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("without the controllers %s", strings.Join(missing, ", "))
}

// groupName is the same at each start of one daemon, so that what a killed one has left goes with the next.
func groupName(root string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(root)) // never fails
	return fmt.Sprintf("gantry-kernelcheck-%08x", h.Sum32())
}

func makeGroups(all []hierarchy, name string) error {
	for _, h := range all {
		dir := filepath.Join(h.path, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	return nil
}
