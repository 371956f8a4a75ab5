package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Running is an instance that has processes on a machine.
type Running struct {
	ID      string
	Slot    string // "environment/app/service.SLOT"; for a single instance its name without a number
	Release int64
}

// Running lists the instances that have processes on the machine, told by the kernel's cgroups and not by the daemon: what they
// are is read from the agent's records.
func (n *Node) Running() []Running {
	alive := n.cgroupsInUse()
	var out []Running
	files, _ := filepath.Glob(filepath.Join(n.root, "agent", "instances", "*.record"))
	for _, file := range files {
		id := strings.TrimSuffix(filepath.Base(file), ".record")
		if !alive[id] {
			continue
		}
		data, err := os.ReadFile(file)
		rec := &gantryv1.InstanceRecord{}
		if err != nil || proto.Unmarshal(data, rec) != nil {
			continue // removed, or being replaced, at this moment
		}
		out = append(out, Running{ID: id, Slot: slotOf(rec.GetAssignment().GetInstance()), Release: rec.GetAssignment().GetInstance().GetRelease()})
	}
	return out
}

func slotOf(i *gantryv1.Instance) string {
	name := fmt.Sprintf("%s/%s/%s", i.GetEnvironment(), i.GetApp(), i.GetService())
	if i.GetSlot() > 0 {
		name += fmt.Sprintf(".%d", i.GetSlot())
	}
	return name
}

// Inside runs a command in the file system and the network of an instance on the machine, also where no daemon would.
func (n *Node) Inside(id string, args ...string) (string, error) {
	for _, top := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		pid := ""
		_ = filepath.WalkDir(filepath.Join(top, n.cgroup()), func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.Name() == "cgroup.procs" && strings.Contains(path, "/"+id+"/") && pid == "" {
				text, _ := os.ReadFile(path)
				pid, _, _ = strings.Cut(string(text), "\n")
			}
			return nil
		})
		if pid != "" {
			out, err := exec.Command("nsenter", append([]string{"--mount", "--net", "--target", pid}, args...)...).CombinedOutput()
			return string(out), err
		}
	}
	return "", fmt.Errorf("%s has no process on %s", id, n.Name())
}

// cgroupsInUse is the names of the machine's cgroups that hold processes, in themselves or below.
func (n *Node) cgroupsInUse() map[string]bool {
	used := map[string]bool{}
	for _, top := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		top = filepath.Join(top, n.cgroup())
		_ = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.Name() != "cgroup.procs" {
				return nil
			}
			if text, _ := os.ReadFile(path); len(text) > 0 {
				for _, name := range strings.Split(strings.TrimPrefix(filepath.Dir(path), top), "/") {
					used[name] = true
				}
			}
			return nil
		})
	}
	return used
}
