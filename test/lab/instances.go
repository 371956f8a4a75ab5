package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
)

// Client returns a typed client of the machine's daemon.
func (n *Node) Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := n.connect()
	must(t, err)
	t.Cleanup(c.Close)
	return c
}

func (n *Node) connect() (*client.Client, error) { return client.New(client.Options{Host: n.Host()}) }

// Instances lists all instances of the machine, exited ones too, by service and slot.
func (n *Node) Instances(t testing.TB) []*gantryv1.InstanceView {
	t.Helper()
	list, err := n.TryInstances()
	must(t, err)
	return list
}

// TryInstances is Instances for a machine that may not answer now.
func (n *Node) TryInstances() ([]*gantryv1.InstanceView, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := n.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	res, err := c.Instances.List(ctx, connect.NewRequest(&gantryv1.ListInstancesRequest{All: true}))
	if err != nil {
		return nil, err
	}
	list := res.Msg.Instances
	sort.Slice(list, func(i, j int) bool { return Name(list[i]) < Name(list[j]) })
	return list, nil
}

// Instance returns the instance of that name: "service.1", or the name given to run; nil if there is none.
func (n *Node) Instance(t testing.TB, name string) *gantryv1.InstanceView {
	t.Helper()
	for _, view := range n.Instances(t) {
		if Name(view) == name {
			return view
		}
	}
	return nil
}

// Name is what a person calls an instance within its app.
func Name(view *gantryv1.InstanceView) string {
	if view.Instance.Slot == 0 {
		return view.Instance.Service
	}
	return fmt.Sprintf("%s.%d", view.Instance.Service, view.Instance.Slot)
}

// Ready reports whether an instance runs and, where it has a health check, is healthy.
func Ready(view *gantryv1.InstanceView) bool {
	status := view.GetStatus()
	return status.GetPhase() == gantryv1.InstanceStatus_PHASE_RUNNING &&
		(status.GetHealth() == gantryv1.InstanceStatus_HEALTH_UNSPECIFIED || status.GetHealth() == gantryv1.InstanceStatus_HEALTH_HEALTHY)
}

// AwaitReady waits until a service has exactly want instances and all are ready, and returns them.
func (n *Node) AwaitReady(t testing.TB, service string, want int) []*gantryv1.InstanceView {
	t.Helper()
	var ready []*gantryv1.InstanceView
	Eventually(t, 2*time.Minute, service+" ready", func() error {
		var seen []string
		ready = nil
		views, err := n.TryInstances()
		if err != nil {
			return err
		}
		for _, view := range views {
			if view.Instance.Service != service {
				continue
			}
			seen = append(seen, Name(view)+" "+view.Status.GetPhase().String()+" "+view.Status.GetHealth().String()+" "+view.Status.GetError())
			if Ready(view) {
				ready = append(ready, view)
			}
		}
		if len(ready) != want || len(seen) != want {
			return fmt.Errorf("%d of %d are ready: %s", len(ready), want, strings.Join(seen, "; "))
		}
		return nil
	})
	return ready
}

// ImportBusybox gives the machine the image Busybox.
func (n *Node) ImportBusybox(t testing.TB) {
	t.Helper()
	n.Gantry(t, "image", "import", BusyboxArchive(t))
}

// Project writes a Compose file, and further files by name, to a folder of its own and returns the folder.
func Project(t testing.TB, compose string, files ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "project")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(compose), 0o644))
	for i := 0; i+1 < len(files); i += 2 {
		must(t, os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o755))
	}
	return dir
}

// Leftovers lists what a daemon makes on its machine for containers: mounts under its folders, links besides its own two,
// network namespaces, and the processes other than process 1.
func (n *Node) Leftovers(t testing.TB) []string {
	t.Helper()
	script := `awk -v r="$1" '$5 ~ r && $5 ~ /rootfs|netns/ {print "mount " $5}' /proc/self/mountinfo
		for l in /sys/class/net/*; do case ${l##*/} in lo|eth0) ;; *) [ -e $l/bridge ] || echo "link ${l##*/}";; esac; done
		for p in /proc/[0-9]*; do exe=$(readlink $p/exe 2>/dev/null) || continue
		  case $exe in *containerd-shim*|*runc) echo "process $(tr '\0' ' ' <$p/cmdline)";; esac; done`
	text := strings.TrimSpace(n.Exec(t, "bash", "-c", script, "leftovers", n.dir))
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
