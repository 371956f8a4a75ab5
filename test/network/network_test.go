// Package network_test runs an application over machines of the lab that are joined by each kind of overlay.
package network_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

const compose = `name: shop
services:
  web:
    image: busybox:lab
    command: ["sh", "-c", "hostname > /index.html; exec httpd -f -h / -p 80"]
    ports: ["8080:80"]
    deploy: {mode: global}
  client:
    image: busybox:lab
    command: ["sleep", "infinity"]
    dns: 192.0.2.53
    deploy: {mode: global}
`

// TestApplicationsReachThemselvesOverMachines has an instance of each service on each machine. Every client reaches every
// server by its own address, by the service's name, and by the port that every machine publishes.
func TestApplicationsReachThemselvesOverMachines(t *testing.T) {
	for _, overlay := range []string{"vxlan", "wireguard"} {
		t.Run(overlay, func(t *testing.T) {
			c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 1, Flags: []string{"--overlay", overlay}})
			first := c.Node(0)
			first.ImportBusybox(t)
			project := lab.Project(t, compose)
			first.GantryIn(t, project, "up")
			servers, clients := first.AwaitReady(t, "web", 2), first.AwaitReady(t, "client", 2)
			for _, client := range clients {
				for _, server := range servers {
					fetch(t, first, project, client, server.Status.Address, 1)
				}
				if seen := fetch(t, first, project, client, "web", 8); len(seen) != 2 {
					t.Errorf("%s: 8 connections to web reached %v", lab.Name(client), seen)
				}
				for _, n := range c.Nodes() {
					fetch(t, first, project, client, n.Address()+":8080", 1)
				}
			}
		})
	}
}

// fetch asks for a page several times from inside of an instance and returns who has answered.
func fetch(t *testing.T, n *lab.Node, project string, from *gantryv1.InstanceView, what string, times int) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	command := fmt.Sprintf("for i in $(seq %d); do wget -q -O - http://%s/index.html || exit 1; done", times, what)
	lab.Eventually(t, 10*time.Second, what, func() error {
		result := n.TryWithin(30*time.Second, project, "exec", "shop/"+lab.Name(from), "sh", "-c", command)
		if result.Code != 0 {
			return fmt.Errorf("%s on %s: %s%s", lab.Name(from), from.Instance.Node, result.Stdout, result.Stderr)
		}
		clear(seen)
		for _, name := range strings.Fields(result.Stdout) {
			seen[name] = true
		}
		return nil
	})
	return seen
}
