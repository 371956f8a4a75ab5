package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Volatile is a disk that loses at a power cut what was written and not synced. It is mounted in the machine alone: the test
// finds its files with Node.Path, while the machine is on.
type Volatile string

// The kinds of volatile disks.
const (
	// Ext4 is a file system of the machine's own that is shut down in the middle of what it does. Names are lost like data. What
	// a journal does is the real one's: a sync of one file writes the names of all.
	Ext4 Volatile = "ext4"
	// LazyFS is the file system of that name, in user space. It keeps names and loses every byte that was not synced. Overlays
	// and what is mapped into a container cannot be on it, so it has the folders of the state alone; the rest of the root is a
	// folder of the host's.
	LazyFS Volatile = "lazyfs"
)

// LazyFSProgram is the program of LazyFS: the environment's LAZYFS, or lazyfs in PATH. It fails the test if there is none.
func LazyFSProgram(t testing.TB) string {
	t.Helper()
	path := os.Getenv("LAZYFS")
	if path == "" {
		path = "lazyfs"
	}
	path, err := exec.LookPath(path)
	if err != nil {
		t.Fatalf("lab: %v\nhint: build LazyFS (github.com/dsrhaslab/lazyfs, its README says how) and set LAZYFS to its program; it needs fuse3", err)
	}
	return path
}

// volatile is such a disk of one machine.
type volatile struct {
	kind   Volatile
	device string   // the file that holds ext4, or the folder below LazyFS
	args   []string // of node.sh
}

const volatileSize = "4G"

// addVolatile gives a machine that is off a volatile disk as its root.
func (n *Node) addVolatile(t testing.TB, kind Volatile) {
	t.Helper()
	v := &volatile{kind: kind, device: filepath.Join(n.dir, "device")}
	v.args = []string{string(kind), v.device, n.root}
	switch kind {
	case Ext4:
		run(t, time.Minute, "truncate", "-s", volatileSize, v.device)
		run(t, time.Minute, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", v.device)
	case LazyFS:
		config := filepath.Join(n.dir, "lazyfs.toml")
		must(t, os.MkdirAll(v.device, 0o711))
		must(t, os.WriteFile(config, []byte(n.lazyConfig("")), 0o644))
		v.args = append(append(v.args, LazyFSProgram(t), config, filepath.Join(n.dir, "lazy")), onLazyFS()...)
	default:
		t.Fatalf("lab: there is no volatile disk %q", kind)
	}
	n.volatile = v
}

// onLazyFS lists what of the root is on LazyFS: what is written by ourselves, by etcd, and by containerd besides layers.
func onLazyFS() []string {
	const containerd = "engine/containerd/"
	return []string{
		"identity", "etcd", "agent", "volumes/meta", "images", "registry", "network",
		containerd + "io.containerd.metadata.v1.bolt", containerd + "io.containerd.content.v1.content",
	}
}

// lazyConfig is LazyFS's settings, with faults to inject.
func (n *Node) lazyConfig(faults string) string {
	return fmt.Sprintf("[faults]\nfifo_path=%q\n[cache]\napply_eviction=false\n[cache.simple]\ncustom_size=\"256mb\"\nblocks_per_page=1\n"+
		"[filesystem]\nlog_all_operations=false\nlogfile=\"\"\n%s", filepath.Join(n.dir, "lazyfs.fifo"), faults)
}

// TearWrite has LazyFS tear a write of a file from the next start of the machine on: of the write that comes as occurrence-th
// since then the first half reaches the disk, and the disk is gone at once. path is relative to the root. LazyFS alone does this.
func (n *Node) TearWrite(t testing.TB, path string, occurrence int) {
	t.Helper()
	if n.volatile == nil || n.volatile.kind != LazyFS {
		t.Fatalf("lab: %s has no LazyFS: make it with Shape.Volatile", n.name)
	}
	faults := ""
	if path != "" {
		faults = fmt.Sprintf("\n[[injection]]\ntype=\"torn-op\"\nfile=%q\noccurrence=%d\nparts=2\npersist=[1]\n",
			filepath.Join(n.volatile.device, path), occurrence)
	}
	must(t, os.WriteFile(filepath.Join(n.dir, "lazyfs.toml"), []byte(n.lazyConfig(faults)), 0o644))
}

// Path is where the test finds a file of the machine's root while the machine is on.
func (n *Node) Path(name string) string {
	if n.volatile == nil {
		return filepath.Join(n.root, name)
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.init), n.root, name)
}

const (
	shutdownRequest = 0x8004587d // EXT4_IOC_SHUTDOWN of <linux/ext4.h>
	dropEverything  = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// loseUnsynced ends the file system between two of its steps: nothing is written any more, not even to the journal. LazyFS
// needs no call, since it dies with the machine.
func (n *Node) loseUnsynced() error {
	if n.volatile == nil || n.volatile.kind != Ext4 {
		return nil
	}
	dir, err := os.Open(n.Path(""))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), shutdownRequest, dropEverything); err != nil {
		return fmt.Errorf("lab: shutting down %s: %w", n.root, err)
	}
	return nil
}

// awaitUnmounted waits until nothing holds the device of a machine that is off.
func (v *volatile) awaitUnmounted(t testing.TB) {
	t.Helper()
	Eventually(t, time.Minute, "end of the disk "+v.device, func() error {
		backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, file := range backing {
			if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == v.device {
				return fmt.Errorf("%s still has it", file)
			}
		}
		return nil
	})
}
