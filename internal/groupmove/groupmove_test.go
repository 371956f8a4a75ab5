package groupmove

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

const root = "/sys/fs/cgroup"

// open skips the test where the hierarchy is not one of version 1.
func open(t *testing.T) *Mover {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, "freezer", "tasks")); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and the freezer hierarchy of version 1")
	}
	return Open(root, "freezer")
}

func TestNothingMoves(t *testing.T) {
	m := open(t)
	before, err := ownGroup("freezer")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Prepare(); err != nil {
		t.Fatal(err)
	}
	if after, err := ownGroup("freezer"); err != nil || after != before {
		t.Errorf("this process was in %s and is in %s: %v", before, after, err)
	}
}

// While moves are held quick, others move: the lock that Prepare takes is given back each time.
func TestOthersMoveMeanwhile(t *testing.T) {
	m := open(t)
	group := filepath.Join(root, "freezer", "groupmove-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(group)
	first, second := m.Hold(), m.Hold()
	first()
	first() // no harm
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(filepath.Join(group, "cgroup.procs")); string(text) != strconv.Itoa(cmd.Process.Pid)+"\n" {
		t.Errorf("in the group is %q", text)
	}
	_ = in.Close()
	_ = cmd.Wait()
	second()
	if m.holders != 0 {
		t.Errorf("%d still hold", m.holders)
	}
}

// Where it cannot prepare, nobody is hindered, and nothing runs on.
func TestWithoutHierarchy(t *testing.T) {
	for _, m := range []*Mover{{}, Open(t.TempDir(), "freezer"), Open(root, "no-such-controller")} {
		m.Hold()()
		if m.root == "" {
			continue
		}
		if err := m.Prepare(); err == nil {
			t.Errorf("%s/%s: prepared", m.root, m.controller)
		}
		m.mu.Lock()
		if m.holders != 0 {
			t.Errorf("%d still hold", m.holders)
		}
		m.mu.Unlock()
	}
}
