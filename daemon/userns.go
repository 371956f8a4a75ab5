package daemon

import (
	"fmt"
	"os"
	"path/filepath"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/userns"
	"github.com/gantryd/gantry/fault"
)

// userNamespaces makes what makes the user namespaces of containers, nil where the machine has none for them: containers
// run without, then.
func (d *daemon) userNamespaces() (*userns.Maker, error) {
	// A container's root, which is nobody here, passes through to its root file system.
	if err := os.MkdirAll(d.Config.Run, 0o711); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the directory %s", d.Config.Run)
	}
	if st, err := os.Stat(d.Config.Run); err == nil && st.Mode().Perm()&0o111 != 0o111 {
		if err := os.Chmod(d.Config.Run, st.Mode().Perm()|0o111); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot open the way into %s", d.Config.Run)
		}
	}
	m, err := userns.Open(userns.Options{
		Root: d.Root, Run: filepath.Join(d.Config.Run, "userns"), Helper: filepath.Join(d.Helpers, "gantry-init"), Logger: d.Logger,
	})
	check := &gantryv1.KernelCheck{
		Feature: "remapped root of containers", Present: err == nil, Cost: "root in containers is root of the machine",
	}
	d.checks = append(d.checks, check)
	if fault.Is(err, fault.Unsupported) {
		check.Detail = err.Error()
		d.Logger.Warn("root in containers is root of the machine", "because", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	check.Detail = fmt.Sprintf("to ID %d of the machine", m.Base())
	d.onStop("user namespaces", m.Close)
	return m, nil
}

// networkNamespaces is how the network makes namespaces that belong to the containers' users.
func networkNamespaces(users *userns.Maker) func(path string) error {
	if users == nil {
		return nil
	}
	return users.Netns
}
