package build

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// clearLeftovers removes what a builder that was killed half-way left under Run and in a TMPDIR under Run: containers
// of steps, their mounts and bundles. Whatever resists is logged and left; it harms no later build.
func (b *Builder) clearLeftovers(ctx context.Context) {
	b.killSteps(ctx)
	places := []string{b.opts.Run}
	if tmp := os.TempDir(); within(tmp, b.opts.Run) {
		places = append(places, tmp)
	}
	for _, place := range places {
		b.unmountBelow(place)
	}
	passing, _ := filepath.Glob(filepath.Join(b.opts.Run, "context-*"))
	for _, dir := range append(passing, b.bundles(), filepath.Join(b.opts.Run, "mounts"), filepath.Join(b.opts.Run, "dockerfiles")) {
		if err := os.RemoveAll(dir); err != nil {
			b.log.Warn("leftover of a build stays", "path", dir, "error", err)
		}
	}
	if len(places) > 1 {
		b.clearTemporary(places[1])
	}
}

// killSteps ends containers whose builder died: runc's own death leaves the container's processes running.
func (b *Builder) killSteps(ctx context.Context) {
	entries, err := os.ReadDir(b.runcRoot())
	if err != nil {
		return
	}
	for _, e := range entries {
		out, err := exec.CommandContext(ctx, b.opts.Runc, "--root", b.runcRoot(), "delete", "--force", e.Name()).CombinedOutput()
		if err != nil {
			b.log.Warn("container of a dead build stays", "id", e.Name(), "error", err, "output", string(out))
			continue
		}
		b.log.Info("removed the container of a dead build", "id", e.Name())
	}
}

func (b *Builder) unmountBelow(place string) {
	real, err := filepath.EvalSymlinks(place)
	if err != nil {
		return
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		b.log.Warn("cannot read the mount table", "error", err)
		return
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		point := mounts[i].Mountpoint
		if point == real {
			continue
		}
		if err := mount.UnmountAll(point, unix.MNT_DETACH); err != nil {
			b.log.Warn("mount of a dead build stays", "path", point, "error", err)
		}
	}
}

// clearTemporary removes BuildKit's temporary directories, empty once unmounted, by the names it gives them.
func (b *Builder) clearTemporary(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := strings.TrimPrefix(e.Name(), ".")
		if strings.HasPrefix(name, "buildkit-") {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// removeControlGroups removes the groups above the steps', in each hierarchy, unless something still runs in them.
func (b *Builder) removeControlGroups() {
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, child := range []string{"buildkit", ""} {
			found, _ := filepath.Glob(filepath.Join(hierarchy, b.opts.CgroupParent, child))
			for _, dir := range found {
				os.Remove(dir)
			}
		}
	}
}
