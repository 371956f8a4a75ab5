package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store/demands"
)

// permitted refuses what is worth as much as root on this machine, unless the environment permits that. Links are looked
// through: only the machine itself knows where its paths lead. It returns the assignment with these paths free of links.
func (w *worker) permitted(as *gantryv1.Assignment) (*gantryv1.Assignment, error) {
	as, err := resolved(as)
	if err != nil {
		return nil, err
	}
	guarded, err := resolveAll(w.a.o.Guarded)
	if err != nil {
		return nil, err
	}
	if demand := demands.Privileged(as.Spec, guarded); demand != "" && !as.AllowPrivileged {
		return nil, fault.New(fault.Denied, "%s is not permitted in the environment %q", demand, as.Instance.Environment).
			WithHint("gantry system set-environment %s --allow-privileged", as.Instance.Environment)
	}
	return as, nil
}

// resolved replaces the paths of this machine in a specification by those that they lead to.
func resolved(as *gantryv1.Assignment) (*gantryv1.Assignment, error) {
	isBind := func(m *gantryv1.Mount) bool { return m.Type == gantryv1.Mount_TYPE_BIND }
	if !slices.ContainsFunc(as.Spec.Mounts, isBind) && len(as.Spec.Devices) == 0 && as.Spec.Rootfs == "" {
		return as, nil
	}
	as = proto.CloneOf(as)
	var paths []*string
	for _, m := range as.Spec.Mounts {
		if isBind(m) {
			paths = append(paths, &m.Source)
		}
	}
	for _, d := range as.Spec.Devices {
		if d.Target == "" {
			d.Target = d.Source // as it is called inside
		}
		paths = append(paths, &d.Source)
	}
	if as.Spec.Rootfs != "" {
		paths = append(paths, &as.Spec.Rootfs)
	}
	for _, p := range paths {
		real, err := realPath(*p)
		if err != nil {
			return nil, err
		}
		*p = real
	}
	return as, nil
}

func resolveAll(paths []string) ([]string, error) {
	out := make([]string, 0, len(paths))
	for _, p := range paths {
		real, err := realPath(p)
		if err != nil {
			return nil, err
		}
		out = append(out, real)
	}
	return out, nil
}

// realPath follows the links in as much of a path as there is.
func realPath(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if _, there := os.Lstat(path); errors.Is(err, fs.ErrNotExist) && there == nil {
		return "", fault.Wrap(fault.NotFound, err, "the path %s on this machine is a link that leads to nothing", path)
	}
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(path) != path {
		if real, err = realPath(filepath.Dir(path)); err == nil {
			real = filepath.Join(real, filepath.Base(path))
		}
	}
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "the path %s on this machine", path)
	}
	return real, nil
}

// volumeInUse returns a check that names an instance on this machine that has the volume. One that is assigned after the
// check finds the volume gone and makes it anew.
func (a *Agent) volumeInUse(key string) func() error {
	return func() error {
		for _, w := range a.all() {
			w.mu.Lock()
			gone := w.gone
			w.mu.Unlock()
			if gone {
				continue
			}
			i := w.assignment()
			for _, m := range i.GetSpec().GetMounts() {
				if m.Type == gantryv1.Mount_TYPE_VOLUME && m.Source == key {
					return fault.New(fault.Conflict, "the volume %q is used by %s", key, instanceName(i.Instance)).
						WithHint("remove the instance first: gantry rm %s", instanceName(i.Instance))
				}
			}
		}
		return nil
	}
}

// createBindSource makes sure that what is to be mounted is there.
func createBindSource(m *gantryv1.Mount) error {
	_, err := os.Stat(m.Source)
	if err == nil {
		return nil
	}
	if os.IsNotExist(err) && m.CreateHostPath {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot make the directory %s that is mounted at %s", m.Source, m.Target)
		}
		return nil
	}
	return fault.Wrap(fault.NotFound, err, "the path %s that is to be mounted at %s is not on this machine", m.Source, m.Target).
		WithHint("make it, or set bind.create_host_path: true")
}
