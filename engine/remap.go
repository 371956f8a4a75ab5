package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/engine/ocispec"
	"github.com/gantryd/gantry/engine/userns"
	"github.com/gantryd/gantry/fault"
)

// remapping says who root is in a container. It is decided once, when the container is made: its files belong to it.
type remapping struct {
	// IDBase is the machine's ID of root inside; 0 if that is the machine's root.
	IDBase uint32
	// HostIDs says why root inside is root of the machine, "" if it is not.
	HostIDs string
	// OwnedBy is a namespace that is joined: the container goes into the user namespace that it belongs to. Empty for a
	// user namespace of its own.
	OwnedBy string
}

// remap decides whether the container gets a user namespace.
func (e *Engine) remap(r CreateRequest, user specs.User) (remapping, error) {
	if e.o.Users == nil {
		return remapping{HostIDs: "this machine has no user namespaces for containers"}, nil
	}
	for _, why := range []string{needsHostIDs(r), beyond(r, user)} {
		if why != "" {
			return remapping{HostIDs: why}, nil
		}
	}
	m := remapping{IDBase: e.o.Users.Base()}
	joined := slices.DeleteFunc([]string{r.Netns, r.PidNS, r.IpcNS}, func(p string) bool { return p == "" })
	if len(joined) > 0 {
		why, err := oneOwner(joined)
		if err != nil {
			return m, err
		}
		if why != "" {
			return remapping{HostIDs: why}, nil
		}
		m.OwnedBy = joined[0]
	}
	if why := e.unmappable(r); why != "" {
		return remapping{HostIDs: why}, nil
	}
	return m, nil
}

// needsHostIDs names what a user namespace would take from a container that asks for it.
func needsHostIDs(r CreateRequest) string {
	s := r.Spec
	switch {
	case s.GetUsernsMode() == "host":
		return "userns_mode: host"
	case s.GetPrivileged():
		return "privileged: true"
	case r.Netns == "host":
		return "network_mode: host"
	case s.GetResources().GetOomScoreAdj() < 0:
		return "oom_score_adj below 0"
	case len(s.GetDevices()) > 0:
		return "devices"
	case len(s.GetDeviceCgroupRules()) > 0:
		return "device_cgroup_rules"
	}
	for key, mode := range map[string]string{
		"pid": s.GetPidMode(), "ipc": s.GetIpcMode(), "uts": s.GetUtsMode(), "cgroup": s.GetCgroupMode(),
	} {
		if mode == "host" {
			return key + ": host"
		}
	}
	for _, name := range s.GetCapAdd() {
		if !ocispec.WorksRemapped(name) {
			return "cap_add: " + name
		}
	}
	for _, m := range r.Mounts {
		if propagates(m) {
			return "mount propagation " + m.Propagation
		}
	}
	return ""
}

// beyond names an ID that a user namespace does not have.
func beyond(r CreateRequest, user specs.User) string {
	ids := append([]uint32{user.UID, user.GID}, user.AdditionalGids...)
	for _, f := range r.Files {
		ids = append(ids, uint32(f.UID), uint32(f.GID))
	}
	if highest := slices.Max(ids); highest >= userns.Size {
		return fmt.Sprintf("user or group %d is above %d", highest, userns.Size-1)
	}
	return ""
}

// oneOwner says why namespaces do not belong to one user namespace beside the daemon's, "" if they do.
func oneOwner(paths []string) (why string, err error) {
	var first os.FileInfo
	for _, p := range paths {
		owner, err := userns.Owner(p)
		if err != nil {
			return "", fault.Wrap(fault.Unavailable, err, "namespace %s", p)
		}
		if owner == nil {
			return "it joins a namespace that belongs to the machine's root", nil
		}
		st, err := owner.Stat()
		_ = owner.Close()
		if err != nil {
			return "", fault.Wrap(fault.Unavailable, err, "namespace %s", p)
		}
		if first == nil {
			first = st
		}
		if !os.SameFile(first, st) {
			return "it shares namespaces that belong to different users of the machine", nil
		}
	}
	return "", nil
}

// unmappable names what of the container's files cannot be shown with other owners.
func (e *Engine) unmappable(r CreateRequest) string {
	var paths []string
	if dir := r.Spec.GetRootfs(); dir != "" {
		paths = append(paths, dir)
	}
	for _, m := range r.Mounts {
		if m.Type != MountTmpfs {
			paths = append(paths, m.Source)
		}
	}
	for _, p := range paths {
		if err := e.o.Users.Mappable(p); err != nil {
			return fmt.Sprintf("the owners on the file system of %s cannot be mapped", p)
		}
	}
	return ""
}

// snapshotOptions are those of the container's writable layer.
func (m remapping) snapshotOptions(id string) snapshots.Opt {
	// The first label keeps the snapshot from the garbage collector until the container's record does.
	labels := map[string]string{gcRootLabel: "true", snapshotLabel: id}
	if m.IDBase != 0 {
		ids := fmt.Sprintf("0:%d:%d", m.IDBase, userns.Size)
		labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping] = ids, ids
	}
	return snapshots.WithLabels(labels)
}

// unmapped is a snapshot as it is on disk, the image's files with the image's owners.
func unmapped(mounts []mount.Mount) []mount.Mount {
	out := slices.Clone(mounts)
	for i, m := range out {
		out[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
			return strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=")
		})
	}
	return out
}

// mapped is the snapshot as the container sees it: image layers are read through the mount that maps their owners, and what
// is written belongs to the container's users on disk, too.
func (e *Engine) mapped(m remapping, mounts []mount.Mount) []mount.Mount {
	mounts = unmapped(mounts)
	if m.IDBase == 0 {
		return mounts
	}
	for _, m := range mounts {
		for i, o := range m.Options {
			if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
				m.Options[i] = "lowerdir=" + e.mappedLayers(lower)
			}
		}
	}
	return mounts
}

// jail mounts a directory as the root of a container in a user namespace.
func (m remapping) jail(dir string) []mount.Mount {
	if m.IDBase == 0 {
		return nil
	}
	ids := fmt.Sprintf("0:%d:%d", m.IDBase, userns.Size)
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "uidmap=" + ids, "gidmap=" + ids}}}
}

func (e *Engine) mappedLayers(lower string) string {
	dirs := strings.Split(lower, ":")
	for i, dir := range dirs {
		if rest, ok := strings.CutPrefix(dir, e.snapshotDir()); ok {
			dirs[i] = e.layersDir() + rest
		}
	}
	return strings.Join(dirs, ":")
}

func (e *Engine) snapshotDir() string {
	return filepath.Join(e.o.Root, "containerd", "io.containerd.snapshotter.v1.overlayfs", "snapshots")
}

// layersDir shows snapshotDir with the owners mapped. One mount serves all containers, so that a start needs none.
func (e *Engine) layersDir() string { return filepath.Join(e.o.Run, "layers") }

// prepareRemap makes what all containers in user namespaces need.
func (e *Engine) prepareRemap() error {
	if e.o.Users == nil {
		return nil
	}
	lent := filepath.Dir(e.usernsPath(""))
	if err := errors.Join(os.RemoveAll(lent), os.MkdirAll(lent, 0o700), os.MkdirAll(e.layersDir(), 0o700)); err != nil {
		return fault.Wrap(diskFault(err), err, "directories of user namespaces")
	}
	unmountAll(e.layersDir()) // of a daemon before
	if err := e.o.Users.Mount(e.snapshotDir(), e.layersDir()); err != nil {
		return fault.Wrap(fault.Unsupported, err, "image layers for user namespaces")
	}
	return nil
}

func (e *Engine) unmountLayers() {
	if e.o.Users != nil {
		unmountAll(e.layersDir())
	}
}

// usernsPath is the name by which runc finds the user namespace of a container that it is to join.
func (e *Engine) usernsPath(id string) string { return filepath.Join(e.o.Run, "userns", "of-"+id) }

// lendUserns lets runc find the container's user namespace until release is called.
func (e *Engine) lendUserns(c *container) (release func(), err error) {
	if c.IDBase == 0 {
		return func() {}, nil
	}
	if e.o.Users == nil || e.o.Users.Base() != c.IDBase {
		return nil, fault.New(fault.Unsupported, "container %s: its root is ID %d of the machine, which the daemon has no user namespace for",
			c.ID, c.IDBase).WithHint("make the container again: gantry up")
	}
	if c.OwnedBy == "" {
		return func() {}, nil
	}
	owner, err := userns.Owner(c.OwnedBy)
	if err == nil && owner == nil {
		err = fault.New(fault.Conflict, "%s belongs to the machine's root", c.OwnedBy)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "container %s: its user namespace", c.ID).WithHint("make the container again: gantry up")
	}
	name := e.usernsPath(c.ID)
	_ = os.Remove(name)
	if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), owner.Fd()), name); err != nil {
		return nil, fault.Wrap(diskFault(err), err, "container %s: its user namespace", c.ID)
	}
	return func() {
		_ = os.Remove(name)
		_ = owner.Close()
	}, nil
}
