package e2e_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// metrics reads /metrics through the machine's socket.
func metrics(t *testing.T, n *lab.Node) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(n.Host(), "unix://"))
	}}}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://gantryd/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A daemon says what it does: figures, who did what and why, a line for each change.
func TestTheDaemonTellsOfItself(t *testing.T) {
	n := machine(t)
	n.Gantry(t, "run", "--name", "box", "--rm", lab.Busybox, "true")
	text := metrics(t, n)
	for _, want := range []string{
		"\ngantry_node_start_seconds_count 1\n", "\ngantry_cluster_nodes{state=\"ready\"} 1\n", "\ngantry_server_sessions 1\n",
		"\ngantry_api_requests_total{code=\"ok\",procedure=\"InstanceService/Create\"} 1\n", "\n# TYPE etcd_server_has_leader gauge\n",
		"\ngantry_store_writes_total ", "\ngo_goroutines ", "\ngantry_schedule_pass_seconds_count ", "\ngantry_rollout_pass_seconds_count ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q among the metrics", strings.TrimSpace(want))
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
