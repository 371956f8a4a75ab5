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

// TestVersionsSideBySide has a cluster go to a version that lacks a field and back, machine by machine.
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
			w.check(t, test.kept)
			for _, i := range []int{0, 1, 2} {
				w.replace(t, w.Node(i), lacking)
				w.check(t, test.kept)
			}
			for _, i := range []int{2, 1, 0} {
				w.replace(t, w.Node(i), programs)
				w.check(t, test.kept)
			}
		})
	}
}

// world is a cluster with an application.
type world struct {
	*lab.Lab
	dir   string
	steps int
	web   map[string]string // the instances that must never start again: what they were at the beginning
	first map[string]bool   // these and that of work, which stay the same objects
	port  uint32
}

func begin(t *testing.T, programs string) *world {
	t.Helper()
	w := &world{Lab: lab.Form(t, lab.Shape{Servers: 3, Programs: programs}), dir: lab.Project(t, "")}
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
				w.first[i.Instance.Meta.Key] = s.Service.Name != "fresh"
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

// up brings the application to the state of this step through a machine.
func (w *world) up(t *testing.T, by *lab.Node) {
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
`, lab.Busybox, w.steps)
	if err := os.WriteFile(w.dir+"/compose.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	by.GantryIn(t, w.dir, "up", "--timeout", "3m")
}

// replace ends a machine's daemon the hard way, starts another version of it, and has all sorts of changes made there.
func (w *world) replace(t *testing.T, n *lab.Node, programs string) {
	t.Helper()
	n.KillDaemon(t)
	n.SetPrograms(programs)
	n.StartDaemon(t)
	w.AwaitNodes(t, 3)
	w.steps++
	n.GantryIn(t, w.dir, "scale", "web=4")
	n.AwaitReady(t, "web", 4)
	w.up(t, n)
	n.AwaitReady(t, "web", 3)
	n.GantryIn(t, w.dir, "restart", "work")
	n.AwaitReady(t, "work", 1)
	n.Gantry(t, "node", "label", w.Node(0).Name(), fmt.Sprintf("step=%d", w.steps))
	if out := n.GantryIn(t, w.dir, "exec", "fresh.1", "sh", "-c", "echo $STEP"); strings.TrimSpace(out) != fmt.Sprint(w.steps) {
		t.Errorf("step %d: fresh.1 says %s", w.steps, out)
	}
}

// check wants the old containers untouched, the port open on every machine, and the field as it was.
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
	if err != nil || len(views) != 3 {
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
