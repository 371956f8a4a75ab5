package agent

import (
	"os"
	"path/filepath"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// linkTo makes a link with a harmless name.
func linkTo(t *testing.T, target string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "harmless")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestLinksToWhatIsWorthRootAreSeenThrough(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "engine"), 0o700); err != nil {
		t.Fatal(err)
	}
	w := &worker{a: &Agent{o: Options{Guarded: []string{linkTo(t, root)}}}}
	bind := func(source string) *gantryv1.ContainerSpec {
		return &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_BIND, Source: source, Target: "/x"}}}
	}
	for name, spec := range map[string]*gantryv1.ContainerSpec{
		"a bind of /":                     bind(linkTo(t, "/")),
		"a bind of what is below a link":  bind(filepath.Join(linkTo(t, "/"), "proc")),
		"a bind of the daemon's own":      bind(linkTo(t, filepath.Join(root, "engine"))),
		"a bind of what is not there yet": bind(filepath.Join(linkTo(t, root), "new", "folder")),
		"a device":                        {Devices: []*gantryv1.Device{{Source: linkTo(t, "/dev/console")}}},
		"a root file system":              {Rootfs: linkTo(t, "/")},
	} {
		as := &gantryv1.Assignment{Instance: &gantryv1.Instance{Environment: "e"}, Spec: spec}
		if _, err := w.permitted(as); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", name, err)
		}
		as.AllowPrivileged = true
		if _, err := w.permitted(as); err != nil {
			t.Errorf("%s, permitted: %v", name, err)
		}
	}
	if _, err := w.permitted(&gantryv1.Assignment{Instance: &gantryv1.Instance{}, Spec: bind(linkTo(t, "/no/such"))}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a link to nothing, which would be followed when there is something: %v", err)
	}
	dir := t.TempDir()
	as, err := w.permitted(&gantryv1.Assignment{Instance: &gantryv1.Instance{}, Spec: bind(linkTo(t, dir))})
	if err != nil || as.Spec.Mounts[0].Source != dir {
		t.Errorf("a link to a plain folder: %v, %v", as, err)
	}
}

func TestAVolumeInUseIsKept(t *testing.T) {
	as := &gantryv1.Assignment{
		Instance: &gantryv1.Instance{Service: "db", Slot: 1, Desired: gantryv1.Instance_DESIRED_REMOVED},
		Spec:     &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "e/a/data"}}},
	}
	w := &worker{rec: &gantryv1.InstanceRecord{Assignment: as}}
	a := &Agent{workers: map[string]*worker{"1": w}}
	if err := a.volumeInUse("e/a/data")(); !fault.Is(err, fault.Conflict) {
		t.Errorf("removed while its instance is still going: %v", err)
	}
	if err := a.volumeInUse("e/a/other")(); err != nil {
		t.Errorf("another volume: %v", err)
	}
	w.gone = true
	if err := a.volumeInUse("e/a/data")(); err != nil {
		t.Errorf("after the instance: %v", err)
	}
}
