package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// A daemon says what it does: figures, who did what and why, a line for each change.
func TestTheDaemonTellsOfItself(t *testing.T) {
	n := machine(t)
	n.Gantry(t, "run", "--name", "box", "--rm", lab.Busybox, "true")
	got, err := n.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"gantry_node_start_seconds_count": 1, `gantry_cluster_nodes{state="ready"}`: 1, "gantry_server_sessions": 1,
		`gantry_api_requests_total{code="ok",procedure="InstanceService/Create"}`: 1, "etcd_server_has_leader": 1,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), want %v", name, v, ok, want)
		}
	}
	for _, name := range []string{"gantry_store_writes_total", "go_goroutines", "gantry_schedule_pass_seconds_count", "gantry_rollout_pass_seconds_count"} {
		if _, ok := got[name]; !ok {
			t.Errorf("no %s among the metrics", name)
		}
	}
	events := n.Gantry(t, "events", "--since", "10m", "--until", "0s", "-o", "json")
	for _, want := range []string{`"action":"create"`, `"by":"root"`, `"cause":"InstanceService/Create"`, `"action":"die"`, `"cause":"the process ended"`} {
		if !strings.Contains(events, want) {
			t.Errorf("no %s in the events:\n%s", want, events)
		}
	}
	if log := n.DaemonLog(); !strings.Contains(log, "call=InstanceService/Create") || !strings.Contains(log, "by=root") || !strings.Contains(log, "call=ImageService/Import") {
		t.Errorf("the log has no line for each change:\n%s", log)
	}
}

// What runs on another machine is worked with as if it ran here; when its machine is gone, the rest is told.
func TestInstancesOnOtherMachines(t *testing.T) {
	c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 1})
	c.AwaitNodes(t, 2)
	server, other := c.Node(0), c.Node(1)
	server.ImportBusybox(t)
	dir := lab.Project(t, `
name: wide
services:
  web:
    image: "busybox:lab"
    command: sh -c 'echo here is $$(hostname); sleep 100000'
    deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}
`)
	server.GantryIn(t, dir, "up", "--timeout", "60s")
	ps := server.GantryIn(t, dir, "ps")
	for _, n := range c.Nodes() {
		if !strings.Contains(ps, " "+n.Name()+"\n") {
			t.Errorf("nothing runs on %s:\n%s", n.Name(), ps)
		}
	}
	for _, slot := range []string{"web.1", "web.2"} {
		if out := server.GantryIn(t, dir, "exec", slot, "echo", "in", slot); strings.TrimSpace(out) != "in "+slot {
			t.Errorf("exec in %s: %q", slot, out)
		}
	}
	if out := server.GantryIn(t, dir, "logs"); strings.Count(out, "here is") != 2 {
		t.Errorf("logs:\n%s", out)
	}
	if out := server.GantryIn(t, dir, "stats", "--no-stream"); !strings.Contains(out, "web.1") || !strings.Contains(out, "web.2") {
		t.Errorf("stats:\n%s", out)
	}
	other.Unplug(t)
	lab.Eventually(t, 30*time.Second, "the node that is gone is named", func() error {
		r := server.TryWithin(30*time.Second, dir, "system", "df")
		if r.Code == 1 && strings.Contains(r.Stderr, "node "+other.Name()+" is down") && strings.Contains(r.Stdout, "images") {
			return nil
		}
		return errNotYet(r.Stderr)
	})
}

type errNotYet string

func (e errNotYet) Error() string { return string(e) }
