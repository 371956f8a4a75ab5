package engine

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/embedded"
	"github.com/gantryd/gantry/engine/fill"
	"github.com/gantryd/gantry/engine/keep"
	"github.com/gantryd/gantry/engine/ocispec"
	"github.com/gantryd/gantry/fault"
)

// Mount is one resolved mount of a container.
type Mount = ocispec.Mount

// Types of a Mount.
const (
	MountBind   = "bind"
	MountVolume = "volume"
	MountTmpfs  = "tmpfs"
)

// CreateRequest describes a container with everything resolved to what this machine has.
type CreateRequest struct {
	// ID is unique on the node: letters, digits, "_", "." and "-". Name is for people.
	ID, Name string
	// Spec is the container; its image is in the image store already, unless it names a Rootfs.
	Spec *gantryv1.ContainerSpec
	// Netns is the path of a network namespace to join, "" for a new one with only loopback, "host" for the host's.
	Netns string
	// PidNS and IpcNS are paths of another container's namespaces to join, or "".
	PidNS, IpcNS string
	Mounts       []Mount
	// Files are secrets and configs.
	Files []File
	// Hosts and ResolvConf become /etc/hosts and /etc/resolv.conf if not nil.
	Hosts, ResolvConf []byte
	// Group names containers that share one shim, which saves memory. Empty for a shim of its own.
	Group string
	// Labels are kept and returned by List.
	Labels map[string]string
}

const (
	// snapshotLabel marks the snapshots that belong to containers.
	snapshotLabel = "gantry.dev/container"
	// gcRootLabel keeps a snapshot from the garbage collector.
	gcRootLabel = "containerd.io/gc.root"
)

// Create makes a container: its writable layer, its files, its record. On error nothing is left behind.
func (e *Engine) Create(ctx context.Context, r CreateRequest) (err error) {
	ctx = e.Context(ctx)
	if !validID(r.ID) {
		return fault.New(fault.Invalid, "container ID %q: use 1 to 76 letters, digits, \"_\", \".\" or \"-\"", r.ID)
	}
	defer e.cgroup.mover.Hold()() // it is usually started at once
	c := &container{creating: true, config: config{ID: r.ID}}
	if err := e.reserve(c); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.erase(context.WithoutCancel(ctx), c)
			e.forget(c)
		}
	}()
	if err := e.create(ctx, c, r); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.creating = false
	return nil
}

func validID(id string) bool {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,75}$`).MatchString(id)
}

func (e *Engine) reserve(c *container) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.containers[c.ID] != nil {
		return fault.New(fault.Exists, "container %s exists already", c.ID)
	}
	e.containers[c.ID] = c
	return nil
}

func (e *Engine) forget(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.containers[c.ID] == c {
		delete(e.containers, c.ID)
	}
}

func (e *Engine) create(ctx context.Context, c *container, r CreateRequest) error {
	base, err := e.base(ctx, r)
	if err != nil {
		return err
	}
	logging, err := parseLogging(r.Spec.GetLogging())
	if err != nil {
		return err
	}
	user, err := base.accounts.resolve(userOf(r.Spec, base.config), r.Spec.GetGroupAdd())
	if err != nil {
		return err
	}
	ids, err := e.remap(r, user)
	if err != nil {
		return err
	}
	if err := e.makeLayer(ctx, c, r, base, ids); err != nil {
		return err
	}
	var pins []pin
	r.Mounts, pins = e.pins(r)
	spec, err := ocispec.Build(e.input(r, base, user, ids))
	if err != nil {
		return err
	}
	c.config = config{
		ID: r.ID, Name: r.Name, Labels: r.Labels, CreatedAt: time.Now(), Image: base.digest.String(),
		Rootfs: r.Spec.GetRootfs(), Tty: r.Spec.GetTty(), Stdin: r.Spec.GetStdinOpen(),
		StopSignal: stopSignal(r.Spec, base.config), Log: logging, Group: r.Group, Files: targets(r.Files), FilesOwned: true,
		User: userOf(r.Spec, base.config), WorkingDir: spec.Process.Cwd, Env: spec.Process.Env,
		NetworkHost: r.Netns == "host", remapping: ids, Pins: pins,
	}
	if _, err := parseSignal(c.StopSignal); err != nil {
		return err
	}
	c.state.Status = StatusCreated
	if err := e.writeFiles(c, r); err != nil {
		return err
	}
	// Both wait for the disk, which takes no longer for two.
	var both errgroup.Group
	both.Go(func() error {
		err := keep.Finish(e.dir(c.ID), c.config)
		if err != nil {
			err = fault.Wrap(diskFault(err), err, "container %s: configuration", c.ID)
		}
		return err
	})
	both.Go(func() error { return e.createRecord(ctx, c, spec) })
	return both.Wait()
}

// base finds what the container's root file system is made of.
func (e *Engine) base(ctx context.Context, r CreateRequest) (*imageInfo, error) {
	if dir := r.Spec.GetRootfs(); dir != "" {
		return rootfsBase(dir)
	}
	info, _, err := e.image(ctx, r.Spec)
	return info, err
}

// makeLayer makes the container's writable layer on its image, and fills its volumes from there.
func (e *Engine) makeLayer(ctx context.Context, c *container, r CreateRequest, base *imageInfo, ids remapping) error {
	if r.Spec.GetRootfs() != "" {
		return nil
	}
	sn := e.client.SnapshotService(snapshotter)
	mounts, err := sn.Prepare(ctx, c.ID, base.parent, ids.snapshotOptions(c.ID))
	if errdefs.IsNotFound(err) { // the image was removed and came back since it was cached
		e.images.drop(imageKey{base.digest, r.Spec.GetPlatform()})
		if base, _, err = e.image(ctx, r.Spec); err == nil {
			mounts, err = sn.Prepare(ctx, c.ID, base.parent, ids.snapshotOptions(c.ID))
		}
	}
	if err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: writable layer", c.ID).WithHint("gantry system df")
	}
	return e.fillVolumes(unmapped(mounts), r.Mounts)
}

func rootfsBase(dir string) (*imageInfo, error) {
	if !filepath.IsAbs(dir) {
		return nil, fault.New(fault.Invalid, "rootfs %q must be an absolute path", dir)
	}
	a, err := readAccounts(dir)
	return &imageInfo{config: imagespec.ImageConfig{Cmd: []string{"/bin/sh"}}, accounts: a}, err
}

func (e *Engine) input(r CreateRequest, base *imageInfo, user specs.User, ids remapping) ocispec.Input {
	in := ocispec.Input{
		ID: r.ID, Spec: r.Spec, Image: base.config, User: user, Netns: r.Netns, PidNS: r.PidNS, IpcNS: r.IpcNS,
		Group: r.Group, CgroupsPath: e.cgroup.path(r.ID), Cgroup: e.cgroupFeatures(), Rootfs: "rootfs",
		InitPath: filepath.Join(e.o.Helpers, initBinary),
		Mounts:   slices.Concat(e.etcMounts(r), r.Mounts, e.fileMounts(r)),
		IDBase:   ids.IDBase,
	}
	if ids.OwnedBy != "" {
		in.UserNS = e.usernsPath(r.ID)
	}
	if dir := r.Spec.GetRootfs(); dir != "" && ids.IDBase == 0 {
		in.Rootfs = dir
	}
	return in
}

func userOf(spec *gantryv1.ContainerSpec, image imagespec.ImageConfig) string {
	if spec.GetUser() != "" {
		return spec.GetUser()
	}
	return image.User
}

func stopSignal(spec *gantryv1.ContainerSpec, image imagespec.ImageConfig) string {
	for _, s := range []string{spec.GetStopSignal(), image.StopSignal} {
		if s != "" {
			return s
		}
	}
	return "SIGTERM"
}

// createRecord stores the container in containerd, which is what makes it exist.
func (e *Engine) createRecord(ctx context.Context, c *container, spec *specs.Spec) error {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "container %s: specification", c.ID)
	}
	record := containers.Container{
		ID: c.ID, Spec: encoded, Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"},
		SandboxID: embedded.SandboxID,
	}
	if c.Rootfs == "" {
		record.Snapshotter, record.SnapshotKey = snapshotter, c.ID
	}
	if _, err := e.client.ContainerService().Create(ctx, record); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: record", c.ID)
	}
	return nil
}

// fillVolumes gives empty volumes what the image has at their targets.
func (e *Engine) fillVolumes(rootfs []mount.Mount, mounts []Mount) error {
	for _, m := range mounts {
		wanted := m.CopyUp && m.Subpath == ""
		if m.Type != MountVolume || !fill.Needed(m.Source, wanted) {
			continue
		}
		if err := e.fillVolume(rootfs, m, wanted); err != nil {
			return fault.Wrap(diskFault(err), err, "volume at %s: copy of the image's content", m.Target)
		}
	}
	return nil
}

func (e *Engine) fillVolume(rootfs []mount.Mount, m Mount, wanted bool) error {
	e.filling.Lock() // another container of the same volume waits until it is filled
	defer e.filling.Unlock()
	scratch := filepath.Join(e.o.Run, "scratch")
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return err
	}
	return e.withMounts("fill", rootfs, func(root string) error {
		return fill.Run(fill.Job{Scratch: scratch, Image: root, Target: m.Target, Volume: m.Source, Wanted: wanted})
	})
}
