package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// Whichever of two servers is asked, the answer is the same.
func TestTwoServersAreOnePlatform(t *testing.T) {
	c := lab.Form(t, lab.Shape{Servers: 2})
	c.Node(0).ImportBusybox(t)
	t.Run("a random port is the same on every machine", func(t *testing.T) { randomPort(t, c) })
	t.Run("an exec that fails ends", func(t *testing.T) {
		c.Node(0).Gantry(t, "run", "-d", "--name", "box", lab.Busybox, "sleep", "1000")
		for _, n := range c.Nodes() {
			if r := n.TryWithin(30*time.Second, "", "exec", "box", "nothing"); r.Code != 127 {
				t.Errorf("exec of nothing by %s: exit %d\n%s", n.Name(), r.Code, r.Stderr)
			}
		}
	})
}

// randomPort publishes a port that names none of the host; what ps and port print is true.
func randomPort(t *testing.T, c *lab.Lab) {
	server := c.Node(0)
	dir := lab.Project(t, `
name: open
services:
  web:
    image: "busybox:lab"
    command: sh -c 'mkdir -p /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www'
    ports: ["80"]
    deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}
`)
	server.GantryIn(t, dir, "up", "--timeout", "60s")
	address := strings.TrimSpace(server.GantryIn(t, dir, "port", "web.1", "80"))
	if other := strings.TrimSpace(server.GantryIn(t, dir, "port", "web.2", "80")); other != address {
		t.Fatalf("web.1 is at %s and web.2 at %s", address, other)
	}
	port := address[strings.LastIndexByte(address, ':'):]
	if ps := server.GantryIn(t, dir, "ps"); strings.Count(ps, port+"->80/tcp") != 2 {
		t.Errorf("ps does not say %s twice:\n%s", port, ps)
	}
	answers := func() {
		t.Helper()
		for _, n := range c.Nodes() {
			lab.Eventually(t, 20*time.Second, fmt.Sprintf("%s on %s", port, n.Name()), func() error { _, err := n.HTTPGet(port + "/"); return err })
		}
	}
	answers()
	server.GantryIn(t, dir, "up", "--force-recreate", "--timeout", "60s")
	c.Node(1).KillDaemon(t)
	c.Node(1).StartDaemon(t)
	c.AwaitNodes(t, 2)
	if again := strings.TrimSpace(server.GantryIn(t, dir, "port", "web.2", "80")); again != address {
		t.Errorf("after an update the port is %s, and was %s", again, address)
	}
	answers()
}
