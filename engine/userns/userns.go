// Package userns makes user namespaces whose root is nobody on the machine.
//
// Open finds a range of IDs, tries what containers will need, and fails where the machine cannot do it. Netns makes a
// network namespace with a user namespace around it, Owner finds the user namespace that another one belongs to: that is
// how a container and its network come together, without anybody keeping a list. All containers of a daemon use the same
// IDs, each in a namespace of its own. All methods are safe in parallel.
package userns

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// Size is the number of IDs in a range: those that a container can have.
const Size = 65536

// Options of a Maker. All but Logger are required.
type Options struct {
	Root   string // where the range is written down
	Run    string // for mount points
	Helper string // the program gantry-init
	Logger *slog.Logger
}

// Maker makes user namespaces of one range. Make it with Open.
type Maker struct {
	o    Options
	base uint32
	// own is a user namespace of the range, for mounts.
	own *os.File

	mu     sync.Mutex // guards the helper and serializes requests
	helper *helper
}

// Open makes sure that the machine can run containers in user namespaces. An error says what is missing; the daemon goes
// on without.
func Open(o Options) (*Maker, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	base, err := chooseRange(o)
	if err != nil {
		return nil, err
	}
	m := &Maker{o: o, base: base}
	if err := m.ask("probe"); err != nil {
		return nil, m.missing(err, "what containers mount")
	}
	if m.own, err = m.newNamespace(); err != nil {
		return nil, m.missing(err, "a user namespace")
	}
	if err := m.probeOverlay(); err != nil {
		_ = m.own.Close()
		return nil, m.missing(err, "a mapped overlay")
	}
	return m, nil
}

func (m *Maker) missing(err error, what string) error {
	m.stopHelper()
	return fault.Wrap(fault.Unsupported, err, "user namespaces: %s", what).WithHint("gantry system info says what the kernel has")
}

// Base is the ID on the machine of root inside.
func (m *Maker) Base() uint32 { return m.base }

// File is a user namespace of the range, for mapping mounts. It is the Maker's: nobody else closes it.
func (m *Maker) File() *os.File { return m.own }

// Close ends the helper. Namespaces that are in use stay.
func (m *Maker) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopHelper()
	return m.own.Close()
}

// Netns makes a network namespace in a new user namespace, mounted at path, which is an existing file.
func (m *Maker) Netns(path string) error {
	if strings.ContainsAny(path, "\r\n") {
		return fault.New(fault.Invalid, "the path %q has a line break", path)
	}
	if err := m.ask("net " + path); err != nil {
		return fault.Wrap(fault.Unavailable, err, "user namespace for the network at %s", path)
	}
	return nil
}

// newNamespace makes a user namespace that nothing but its file holds.
func (m *Maker) newNamespace() (*os.File, error) {
	if err := os.MkdirAll(m.o.Run, 0o711); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(m.o.Run, ".netns-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := m.Netns(f.Name()); err != nil {
		return nil, err
	}
	defer func() { _ = unix.Unmount(f.Name(), unix.MNT_DETACH) }()
	return Owner(f.Name())
}

// Owner returns the user namespace that the namespace at path belongs to, nil if that is the caller's own.
func Owner(path string) (*os.File, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, &os.PathError{Op: "owner of", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	mine, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || os.SameFile(st, mine) {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Mappable says whether the mounts at and below path can be shown with other owners: nil, or why not.
func (m *Maker) Mappable(path string) error {
	tree, err := m.mapped(path, unix.AT_RECURSIVE, 0)
	if err != nil {
		return err
	}
	return unix.Close(tree)
}

// Mount shows the directory from at to with the owners mapped, read-only.
func (m *Maker) Mount(from, to string) error {
	tree, err := m.mapped(from, 0, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// mapped returns a detached copy of a mount with mapped owners.
func (m *Maker) mapped(path string, recursive uint, attributes uint64) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|recursive, m.attributes(attributes))
	if err != nil {
		_ = unix.Close(tree)
		return -1, &os.PathError{Op: "map the owners of", Path: path, Err: err}
	}
	return tree, nil
}

func (m *Maker) attributes(more uint64) *unix.MountAttr {
	return &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP | more, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(m.own.Fd()),
	}
}

// probeOverlay puts an overlay over a mapped folder of Root and looks whose it is.
func (m *Maker) probeOverlay() error {
	dir, err := os.MkdirTemp(m.o.Root, ".userns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower/owned", "mapped", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	mapped, merged := filepath.Join(dir, "mapped"), filepath.Join(dir, "merged")
	if err := m.Mount(filepath.Join(dir, "lower"), mapped); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(mapped, unix.MNT_DETACH) }()
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", mapped, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(merged, unix.MNT_DETACH) }()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(merged, "owned"), &st); err != nil {
		return err
	}
	if st.Uid != m.base || st.Gid != m.base {
		return fmt.Errorf("the owner is %d:%d in place of %d", st.Uid, st.Gid, m.base)
	}
	return nil
}

// helper is a running gantry-init.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// answerLimit is how long the helper may take: what it does is a few system calls.
const answerLimit = 20 * time.Second

// ask has the helper do something. One that has died is replaced.
func (m *Maker) ask(request string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for attempt := 1; ; attempt++ {
		answer, err := m.talk(request)
		switch {
		case err == nil && answer == "ok":
			return nil
		case err == nil:
			return fault.New(fault.Unavailable, "%s", answer)
		}
		m.stopHelper()
		if attempt == 2 {
			return err
		}
	}
}

func (m *Maker) talk(request string) (string, error) {
	if m.helper == nil {
		var err error
		if m.helper, err = startHelper(m.o.Helper, m.base); err != nil {
			return "", err
		}
	}
	h := m.helper
	patience := time.AfterFunc(answerLimit, func() { _ = h.cmd.Process.Kill() })
	defer patience.Stop()
	if _, err := fmt.Fprintln(h.in, request); err != nil {
		return "", err
	}
	answer, err := h.out.ReadString('\n')
	return strings.TrimSpace(answer), err
}

func startHelper(path string, base uint32) (*helper, error) {
	cmd := exec.Command(path, "namespaces", strconv.FormatUint(uint64(base), 10), strconv.Itoa(Size))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &helper{cmd, in, bufio.NewReader(out)}, nil
}

func (m *Maker) stopHelper() {
	if m.helper == nil {
		return
	}
	_ = m.helper.in.Close()
	_ = m.helper.cmd.Process.Kill()
	_ = m.helper.cmd.Wait()
	m.helper = nil
}
