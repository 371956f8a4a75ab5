// Package upgrade_test runs clusters whose machines have different versions of Gantry: one version before and one after this
// one, made from this one by giving its stored objects a field more and a field less.
//
// `make faults` runs it; it builds two daemons and takes minutes. That one object keeps a field that is not known to those who
// change it is tested in package store, always.
package upgrade_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

// stamp is what the version after this one writes into every object that it makes, in a field of its own.
const stamp = "of the next version"

// next is the version after this one.
func next(t *testing.T) string {
	field := func(message string) edit {
		begin := "message " + message + " {\n"
		return edit{"gantry/v1/app.proto", begin, begin + "  string next = 900;\n"}
	}
	born := "		meta.CreatedAt = now\n"
	return build(t, []edit{field("Service"), field("Instance"), field("Node")}, []edit{
		{"store/commit.go", born, born + "		stamp(o)\n"}, {"store/stamp.go", "", `package store

import gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"

func stamp(o Object) {
	switch o := o.(type) {
	case *gantryv1.Service:
		o.Next = "` + stamp + `"
	case *gantryv1.Instance:
		o.Next = "` + stamp + `"
	case *gantryv1.Node:
		o.Next = "` + stamp + `"
	}
}
`}})
}

// previous is the version before this one: it knows nothing of the grace period of a stop. The number that the field has there
// stands for none; nothing is written into it.
func previous(t *testing.T) string {
	field := func(before string) edit {
		return edit{"gantry/v1/app.proto", "stop_grace = 14;\n  // " + before, "stop_grace = 914;\n  // " + before}
	}
	return build(t, []edit{field("Host ports given"), field("Virtual address of")}, nil)
}

// TestVersionsSideBySide has a cluster of three servers and a node go to a version that lacks a field and back, machine by
// machine, each in the middle of a rollout.
func TestVersionsSideBySide(t *testing.T) {
	if os.Getenv("FAULTS") == "" {
		t.Skip("takes minutes: make faults")
	}
	for name, test := range map[string]struct {
		programs, lacking func(*testing.T) string
		kept              func(*world, *testing.T, *gantryv1.AppView)
	}{
		"the next version and this one":     {next, func(t *testing.T) string { return lab.Binaries(t) }, (*world).stamps},
		"this version and the previous one": {func(t *testing.T) string { return lab.Binaries(t) }, previous, (*world).grace},
	} {
		t.Run(name, func(t *testing.T) {
			programs, lacking := test.programs(t), test.lacking(t)
			w := begin(t, programs)
			w.traffic = send(t, w.Lab)
			defer w.traffic.sum(t)
			w.check(t, test.kept)
			w.skew(t, false)
			for _, i := range []int{0, 1, 2, 3} {
				w.replace(t, w.Node(i), lacking)
				w.check(t, test.kept)
				w.skew(t, i < 3)
			}
			for _, i := range []int{3, 2, 1, 0} {
				w.replace(t, w.Node(i), programs)
				w.check(t, test.kept)
				w.skew(t, i > 0)
			}
		})
	}
}

// world is a cluster with an application.
type world struct {
	*lab.Lab
	dir     string
	steps   int
	web     map[string]string // the instances that must never start again: what they were at the beginning
	first   map[string]bool   // these and that of work, which stay the same objects
	port    uint32
	traffic *traffic
}

func begin(t *testing.T, programs string) *world {
	t.Helper()
	w := &world{Lab: lab.Form(t, lab.Shape{Servers: 3, Nodes: 1, Programs: programs}), dir: lab.Project(t, "")}
	first := w.Node(0)
	first.ImportBusybox(t)
	w.up(t, first)
	first.GantryIn(t, w.dir, "restart", "-t", "7", "web", "work")
	lab.Eventually(t, time.Minute, "restart", func() error {
		v, err := w.view(t)
		if err != nil {
			return err
		}
		w.web, w.first = map[string]string{}, map[string]bool{}
		for _, s := range v.Services {
			if !s.Converged {
				return fmt.Errorf("%s has not converged", s.Service.Name)
			}
			for _, i := range s.Instances {
				w.first[i.Instance.Meta.Key] = s.Service.Name == "web" || s.Service.Name == "work"
				if s.Service.Name == "web" {
					w.port = s.Service.Published[0].HostPort
					w.web[i.Instance.Meta.Key] = process(i)
				}
			}
		}
		return nil
	})
	if len(w.web) != 3 || w.port == 0 {
		t.Fatalf("%v on port %d", w.web, w.port)
	}
	return w
}

// process is which start of an instance runs.
func process(i *gantryv1.InstanceView) string {
	return fmt.Sprintf("%s on %s since %s", i.Status.Phase, i.Instance.Node, i.Status.StartedAt.AsTime())
}

// write writes the application as it is in this step.
func (w *world) write(t *testing.T) {
	t.Helper()
	text := fmt.Sprintf(`name: shop
services:
  web:
    image: %[1]s
    command: sh -c 'mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www'
    ports: ["80"]
    stop_grace_period: 1s
    deploy: {replicas: 3}
  work: {image: %[1]s, command: sleep 100000, stop_grace_period: 1s}
  fresh: {image: %[1]s, command: sleep 100000, stop_grace_period: 1s, environment: {STEP: "%[2]d"}}
  rolling:
    image: %[1]s
    command: sleep 100000
    stop_grace_period: 1s
    environment: {STEP: "%[2]d"}
    deploy: {replicas: %[3]d, update_config: {parallelism: 1, delay: 500ms}}
`, lab.Busybox, w.steps, rolling)
	if err := os.WriteFile(w.dir+"/compose.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rolling is the number of instances of the service that is rolled out while a machine is upgraded.
const rolling = 4

// up brings the application to the state of this step through a machine.
func (w *world) up(t *testing.T, by *lab.Node) {
	t.Helper()
	w.write(t)
	by.GantryIn(t, w.dir, "up", "--timeout", "3m")
}

// roll begins the next step through a machine and returns when some instances, and not all, are of its release.
func (w *world) roll(t *testing.T, by *lab.Node) {
	t.Helper()
	old, _ := w.rolled(t)
	w.steps++
	w.write(t)
	by.GantryIn(t, w.dir, "up", "--detach")
	lab.Eventually(t, time.Minute, "the rollout is under way", func() error {
		if _, n := w.rolled(t); n[old] == rolling || len(n) != 2 {
			return fmt.Errorf("instances by release: %v", n)
		}
		return nil
	})
}

// awaitRolled waits until all instances are of one release that is newer.
func (w *world) awaitRolled(t *testing.T, old int64) {
	t.Helper()
	lab.Eventually(t, 2*time.Minute, "the rollout has come to its end", func() error {
		if now, n := w.rolled(t); now <= old || n[now] != rolling || len(n) != 1 {
			return fmt.Errorf("instances by release: %v, before it was %d", n, old)
		}
		return nil
	})
}

// rolled is the newest release of the service that is rolled out, and how many instances of each release are ready.
func (w *world) rolled(t *testing.T) (newest int64, ready map[int64]int) {
	t.Helper()
	ready = map[int64]int{}
	v, err := w.view(t)
	if err != nil {
		return 0, ready
	}
	for _, s := range v.Services {
		for _, i := range s.Instances {
			if s.Service.Name == "rolling" && lab.Ready(i) {
				ready[i.Instance.Release]++
				newest = max(newest, i.Instance.Release)
			}
		}
	}
	return newest, ready
}

// skew wants the status of the cluster to say, or not to say, that versions differ.
func (w *world) skew(t *testing.T, want bool) {
	t.Helper()
	lab.Eventually(t, time.Minute, "what the status says of versions", func() error {
		st, err := w.Node(0).Status()
		if err != nil {
			return err
		}
		for _, f := range st.Findings {
			if strings.Contains(f.Message, "2 versions of gantryd run side by side") && f.Hint != "" {
				if want {
					return nil
				}
				return fmt.Errorf("it says: %s", f.Message)
			}
		}
		if want {
			return fmt.Errorf("it does not say that they differ: %v", st.Findings)
		}
		return nil
	})
}

// replace ends a machine's daemon the hard way in the middle of a rollout, starts another version of it, and has all sorts of
// changes made there, or through a server if it is none.
func (w *world) replace(t *testing.T, n *lab.Node, programs string) {
	t.Helper()
	old, _ := w.rolled(t)
	w.roll(t, w.Except(n)[0])
	n.KillDaemon(t)
	n.SetPrograms(programs)
	n.StartDaemon(t)
	w.AwaitNodes(t, 4)
	w.awaitRolled(t, old)
	by := n
	if n == w.Node(3) {
		by = w.Node(0)
	}
	w.steps++
	by.GantryIn(t, w.dir, "scale", "web=4")
	by.AwaitReady(t, "web", 4)
	w.up(t, by)
	by.AwaitReady(t, "web", 3)
	by.GantryIn(t, w.dir, "restart", "work")
	by.AwaitReady(t, "work", 1)
	by.Gantry(t, "node", "label", w.Node(0).Name(), fmt.Sprintf("step=%d", w.steps))
	if out := by.GantryIn(t, w.dir, "exec", "fresh.1", "sh", "-c", "echo $STEP"); strings.TrimSpace(out) != fmt.Sprint(w.steps) {
		t.Errorf("step %d: fresh.1 says %s", w.steps, out)
	}
}

// check wants the old containers untouched, the port open on every machine, the field as it was, and no connection to have failed.
func (w *world) check(t *testing.T, kept func(*world, *testing.T, *gantryv1.AppView)) {
	t.Helper()
	v, err := w.view(t)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, s := range v.Services {
		for _, i := range s.Instances {
			found[i.Instance.Meta.Key] = process(i)
		}
	}
	for id, was := range w.web {
		if found[id] != was {
			t.Errorf("step %d: instance %s was %s and is %q", w.steps, id, was, found[id])
		}
	}
	for _, n := range w.Nodes() {
		lab.Eventually(t, 20*time.Second, "port of web on "+n.Name(), func() error {
			_, err := n.HTTPGet(fmt.Sprintf(":%d/", w.port))
			return err
		})
	}
	kept(w, t, v)
	w.traffic.check(t, fmt.Sprintf("step %d", w.steps))
}

// view is the application as the first machine shows it.
func (w *world) view(t *testing.T) (*gantryv1.AppView, error) {
	c := w.Node(0).Client(t)
	return client.Call(t.Context(), c.Apps.Get, &gantryv1.GetAppRequest{Environment: "production", App: "shop"})
}

// stamps wants every object that was there at the beginning as the next version made it.
func (w *world) stamps(t *testing.T, v *gantryv1.AppView) {
	t.Helper()
	want := func(what string, o proto.Message) {
		if !strings.Contains(string(o.ProtoReflect().GetUnknown()), stamp) {
			t.Errorf("step %d: %s has lost what the next version wrote", w.steps, what)
		}
	}
	for _, s := range v.Services {
		want(s.Service.Name, s.Service)
		for _, i := range s.Instances {
			if w.first[i.Instance.Meta.Key] {
				want(lab.Name(i), i.Instance)
			}
		}
	}
	views, err := w.Node(0).Machines()
	if err != nil || len(views) != 4 {
		t.Fatal(views, err)
	}
	for _, n := range views {
		want(n.Node.Name, n.Node)
	}
}

// grace wants the grace period that the beginning asked for.
func (w *world) grace(t *testing.T, v *gantryv1.AppView) {
	t.Helper()
	for _, s := range v.Services {
		if s.Service.Name == "web" && s.Service.StopGrace.AsDuration() != 7*time.Second {
			t.Errorf("step %d: the grace period of web is %v", w.steps, s.Service.StopGrace)
		}
		for _, i := range s.Instances {
			if w.web[i.Instance.Meta.Key] != "" && i.Instance.StopGrace.AsDuration() != 7*time.Second {
				t.Errorf("step %d: the grace period of %s is %v", w.steps, lab.Name(i), i.Instance.StopGrace)
			}
		}
	}
}
