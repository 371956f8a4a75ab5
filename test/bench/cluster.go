package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/test/lab"
)

// measureNode is what the daemon of a machine takes that only runs containers: joined to a cluster, with the overlay, the
// cluster's names and one instance.
func measureNode(b *bench) []line {
	cluster := lab.Form(b, lab.Shape{Servers: 1, Nodes: 1})
	server, node := cluster.Node(0), cluster.Node(1)
	server.ImportBusybox(b)
	server.GantryIn(b, lab.Project(b, `
services:
  box:
    image: busybox:lab
    command: sleep 100000
    deploy: {mode: global}
`), "up")
	server.AwaitReady(b, "box", 2)
	quiet()
	pid := node.DaemonPID(b)
	rss := resident(pid)
	pss := field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") / 1024
	anonymous := field(fmt.Sprintf("/proc/%d/status", pid), "RssAnon:") / 1024
	return []line{{
		what: "resident memory of a node's daemon without the server's role, joined, one instance", docker: "–", value: rss, unit: "MiB", goal: 120,
		gantry: fmt.Sprintf("%s (PSS %s, anonymous %s)", mib(rss), mib(pss), mib(anonymous)),
	}}
}

const overlayCompose = `
services:
  server:
    image: busybox:lab
    command: /t/traffic serve :9000
    volumes: ["./tools:/t:ro"]
    deploy: {placement: {constraints: [node.labels.end==server]}}
  client:
    image: busybox:lab
    command: sleep 100000
    volumes: ["./tools:/t:ro"]
    deploy: {placement: {constraints: [node.labels.end==client]}}
`

// measureOverlay compares one TCP stream between containers of two machines with one between namespaces behind the same
// machines that are merely routed over the same cable.
func measureOverlay(b *bench) []line {
	var lines []line
	for _, kind := range []struct {
		name string
		goal float64
	}{{"vxlan", 0.8}, {"wireguard", 0}} {
		cluster := lab.Form(b, lab.Shape{Servers: 2, Flags: []string{"--overlay", kind.name}})
		o := overlayEnds{bench: b, server: cluster.Node(0), client: cluster.Node(1)}
		o.begin()
		what := "VXLAN"
		if kind.name == "wireguard" {
			what = "the kernel's WireGuard"
			if strings.Contains(o.client.DaemonLog(), "the kernel has no WireGuard") {
				what = "WireGuard in user space"
			}
		}
		lines = append(lines, o.compare("one TCP stream between two machines over "+what+", against plain veth", kind.goal))
		for _, n := range cluster.Nodes() {
			n.StopDaemon(b)
		}
	}
	return lines
}

// overlayEnds are two machines with a container and a plain namespace each.
type overlayEnds struct {
	*bench
	server, client *lab.Node
	project        string
	tool           string
}

func (o *overlayEnds) begin() {
	o.project = lab.Project(o, overlayCompose)
	tools := filepath.Join(o.project, "tools")
	fatal(o, os.Mkdir(tools, 0o755))
	build := exec.Command("go", "build", "-o", tools, "./test/bench/traffic")
	build.Env, build.Dir = append(os.Environ(), "CGO_ENABLED=0"), lab.Top(o)
	o.do(build)
	o.tool = filepath.Join(tools, "traffic")
	o.server.ImportBusybox(o)
	o.server.Gantry(o, "node", "label", o.server.Name(), "end=server")
	o.server.Gantry(o, "node", "label", o.client.Name(), "end=client")
	o.client.GantryIn(o, o.project, "up")
	o.plain(o.server, 1, o.client, 2)
	o.plain(o.client, 2, o.server, 1)
}

// plain puts a namespace behind a machine as a container is, without anything of ours.
func (o *overlayEnds) plain(n *lab.Node, number int, other *lab.Node, otherNumber int) {
	n.Exec(o, "sh", "-ec", fmt.Sprintf(`
		ip netns add plain
		ip link add plain0 type veth peer name eth0 netns plain
		ip addr add 10.200.%[1]d.1/24 dev plain0
		ip link set plain0 up
		ip -n plain addr add 10.200.%[1]d.2/24 dev eth0
		ip -n plain link set eth0 up
		ip -n plain route add default via 10.200.%[1]d.1
		ip route add 10.200.%[2]d.0/24 via %[3]s`, number, otherNumber, other.Address()))
	if number == 1 {
		serve := n.Command("ip", "netns", "exec", "plain", o.tool, "serve", ":9000")
		fatal(o, serve.Start())
		o.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })
	}
}

// compare measures both ways in turn.
func (o *overlayEnds) compare(what string, goal float64) line {
	address := o.client.AwaitReady(o, "server", 1)[0].Status.Address + ":9000"
	var overlay, plain series
	rate := func(text string) float64 {
		var r struct{ BytesPerSecond float64 }
		fatal(o, json.Unmarshal([]byte(text), &r))
		return r.BytesPerSecond / 1e9
	}
	quiet()
	for range max(3, o.rounds/4) {
		overlay = append(overlay, rate(o.client.GantryIn(o, o.project, "exec", "client", "/t/traffic", "compare", "1", address)))
		plain = append(plain, rate(o.client.Exec(o, "ip", "netns", "exec", "plain", o.tool, "compare", "1", "10.200.1.2:9000")))
	}
	return line{
		what: what, gantry: fmt.Sprintf("%.2f of %.2f GB/s", overlay.p50(), plain.p50()), docker: "–",
		value: overlay.p50() / plain.p50(), goal: goal, atLeast: true,
	}
}
