// Package cluster_test breaks clusters of the lab in every way that the lab knows, and shows after each that the services
// converge, that no change that was acknowledged is lost, and that no slot runs twice.
//
// A scenario begins a trial, does harm, and settles:
//
//	tr := begin(t, lab.Shape{Servers: 3})
//	tr.up(t, "web", 6)
//	tr.Leader(t).KillDaemon(t)
//	tr.settle(t)
//
// `make test` runs the short ones; `make faults` all of them.
package cluster_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// trial is a cluster with an application on it, and those who watch it.
type trial struct {
	*lab.Lab
	shape  lab.Shape
	dir    string
	image  string
	ledger *ledger
	slots  *slots
	want   map[string]int  // instances by service
	global map[string]bool // services that run on every machine
}

// begin forms a cluster and starts the ledger and the observer of slots.
func begin(t *testing.T, shape lab.Shape) *trial {
	t.Helper()
	c := lab.Form(t, shape)
	tr := &trial{Lab: c, shape: shape, dir: lab.Project(t, ""), image: lab.BusyboxArchive(t), want: map[string]int{}}
	c.Node(0).Gantry(t, "image", "import", tr.image)
	tr.slots = observe(t, c)
	tr.ledger = keepLedger(t, c.Nodes()[:max(1, shape.Servers)])
	return tr
}

// heavy skips what takes longer than `make test` may.
func heavy(t *testing.T) {
	t.Helper()
	if os.Getenv("FAULTS") == "" {
		t.Skip("takes minutes: make faults")
	}
}

// compose is the application: each service answers on port 80 with its generation.
func (tr *trial) compose(generation int) string {
	var out strings.Builder
	out.WriteString("name: shop\nservices:\n")
	for _, service := range slices.Sorted(maps.Keys(tr.want)) {
		many := fmt.Sprintf("replicas: %d", tr.want[service])
		if tr.global[service] {
			many = "mode: global"
		}
		fmt.Fprintf(&out, `  %s:
    image: %s
    command: sh -c 'mkdir -p /www; echo $$GENERATION $$(hostname) >/www/index.html; exec httpd -f -p 80 -h /www'
    environment: {GENERATION: "%d"}
    stop_grace_period: 1s
    deploy: {%s, update_config: {parallelism: 5, failure_action: continue}}
`, service, lab.Busybox, generation, many)
	}
	return out.String()
}

// write writes the application with all services at a generation.
func (tr *trial) write(t *testing.T, generation int) {
	t.Helper()
	if err := os.WriteFile(tr.dir+"/compose.yaml", []byte(tr.compose(generation)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// up starts the first generation of a service and waits until all of it runs.
func (tr *trial) up(t *testing.T, service string, instances int) {
	t.Helper()
	tr.want[service] = instances
	tr.write(t, 1)
	tr.Node(0).GantryIn(t, tr.dir, "up", "--timeout", "5m")
	tr.converge(t)
}

// update begins the next generation through a machine and does not wait for it.
func (tr *trial) update(t *testing.T, by *lab.Node, generation int) {
	t.Helper()
	tr.write(t, generation)
	by.GantryIn(t, tr.dir, "up", "--detach")
}

// settle mends everything, waits until the cluster is as it should be, and asks the watchers what they saw.
func (tr *trial) settle(t *testing.T) {
	t.Helper()
	tr.Heal(t)
	began := time.Now()
	tr.AwaitNodes(t, len(tr.Nodes()))
	tr.converge(t)
	t.Logf("converged %s after everything was mended", time.Since(began).Round(100*time.Millisecond))
	tr.ledger.check(t)
	tr.slots.check(t)
}

// converge waits until every service has exactly its instances: as the API says on every machine with which nothing is wrong,
// and as the kernels of those machines do.
func (tr *trial) converge(t *testing.T) {
	t.Helper()
	lab.Eventually(t, 3*time.Minute, "convergence", func() error {
		for _, n := range tr.sound() {
			views, err := n.TryInstances()
			if err != nil && strings.Contains(err.Error(), "only runs instances") {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", n.Name(), err)
			}
			if err := tr.judge(views); err != nil {
				return fmt.Errorf("%s says: %w", n.Name(), err)
			}
		}
		return tr.judgeRunning()
	})
}

// judge compares what a server says with what is wanted.
func (tr *trial) judge(views []*gantryv1.InstanceView) error {
	ready, release := map[string]int{}, map[string]int64{}
	for _, view := range views {
		service := view.Instance.Service
		lost := view.Status.GetPhase() == gantryv1.InstanceStatus_PHASE_LOST
		if lost && view.Instance.Desired == gantryv1.Instance_DESIRED_REMOVED && len(tr.sound()) < len(tr.Nodes()) {
			continue // it goes when its machine is back
		}
		if !lab.Ready(view) {
			return fmt.Errorf("%s is %s %s on %q: %s", lab.Name(view), view.Status.GetPhase(), view.Status.GetHealth(), view.Instance.Node, view.Status.GetError())
		}
		ready[service]++
		if before, seen := release[service]; seen && before != view.Instance.Release {
			return fmt.Errorf("%s has releases %d and %d", service, before, view.Instance.Release)
		}
		release[service] = view.Instance.Release
	}
	if !maps.Equal(ready, tr.want) {
		return fmt.Errorf("ready are %v, want %v", ready, tr.want)
	}
	return nil
}

// sound is the machines with which nothing is wrong.
func (tr *trial) sound() []*lab.Node {
	return slices.DeleteFunc(tr.Nodes(), func(n *lab.Node) bool { return !n.Sound() })
}

// judgeRunning compares what runs on the machines with what is wanted, each slot once.
func (tr *trial) judgeRunning() error {
	where := map[string][]string{}
	for _, n := range tr.sound() {
		for _, r := range n.Running() {
			where[r.Slot] = append(where[r.Slot], n.Name())
		}
	}
	for service, instances := range tr.want {
		for slot := range instances {
			name := fmt.Sprintf("%s/shop/%s.%d", environment, service, slot+1)
			if len(where[name]) != 1 {
				return fmt.Errorf("%s runs on %v", name, where[name])
			}
			delete(where, name)
		}
	}
	if len(where) > 0 {
		return fmt.Errorf("these run and should not: %v", where)
	}
	return nil
}
