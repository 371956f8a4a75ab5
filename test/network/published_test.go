package network_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

const published = `name: published
services:
  here: &web
    image: busybox:lab
    command: sh -c 'exec /talk serve :80 /said/here-$$(hostname)'
    ports: [{target: 80, published: "8080", mode: host}]
    stop_grace_period: 1s
    volumes: MOUNTS
  everywhere:
    <<: *web
    command: sh -c 'exec /talk serve :80 /said/everywhere-$$(hostname)'
    ports: ["8081:80"]
`

// TestPublishedPortsOfMachines asks for the ports of two services with one instance each from outside, on each of two machines:
// one answers where its instance is and sees who asks, the other answers everywhere and sees that only where its instance is.
// Both move with a drain.
func TestPublishedPortsOfMachines(t *testing.T) {
	c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 1})
	first := c.Node(0)
	first.ImportBusybox(t)
	dir := lab.Project(t, strings.ReplaceAll(published, "MOUNTS", lab.NewTalk(t).Mounts()))
	first.GantryIn(t, dir, "up", "--timeout", "2m")
	for _, service := range []string{"here", "everywhere"} {
		moves := first.AwaitReady(t, service, 1)[0]
		at, other := holder(t, c, moves)
		judgePorts(t, service, at, other)
		first.Gantry(t, "node", "drain", at.Name())
		lab.Eventually(t, time.Minute, service+" moves", func() error {
			if now := first.AwaitReady(t, service, 1)[0]; now.Instance.Node == moves.Instance.Node {
				return errors.New("it is where it was")
			}
			return nil
		})
		judgePorts(t, service, other, at)
		first.Gantry(t, "node", "activate", at.Name())
	}
}

// judgePorts asks the machine where the instance of a service is, and the other one.
func judgePorts(t *testing.T, service string, at, other *lab.Node) {
	t.Helper()
	port := map[string]string{"here": ":8080", "everywhere": ":8081"}[service]
	lab.Eventually(t, 20*time.Second, service+" where its instance is", func() error {
		peer, err := peerSeen(at.Address() + port)
		if err == nil && peer != at.Gateway() {
			return fmt.Errorf("it sees %s, and %s asked", peer, at.Gateway())
		}
		return err
	})
	lab.Eventually(t, 20*time.Second, service+" on the other machine", func() error {
		peer, err := peerSeen(other.Address() + port)
		switch {
		case service == "here" && !errors.Is(err, syscall.ECONNREFUSED):
			return fmt.Errorf("it answers to %q, %v, though it has no instance there", peer, err)
		case service == "everywhere" && err == nil && (net.ParseIP(peer) == nil || peer == at.Gateway()):
			return fmt.Errorf("it sees %q and not the gateway of the machine that was asked", peer)
		case service == "everywhere":
			return err
		}
		return nil
	})
}

// peerSeen asks a server who it sees asking.
func peerSeen(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, "who?"); err != nil {
		return "", err
	}
	text, err := bufio.NewReader(conn).ReadString('\n')
	_, peer, _ := strings.Cut(strings.TrimSpace(text), " ")
	return peer, err
}

// holder is the machine of an instance, and the other one of two.
func holder(t *testing.T, c *lab.Lab, view *gantryv1.InstanceView) (at, other *lab.Node) {
	t.Helper()
	views, err := c.Node(0).Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		if v.Node.Meta.Key == view.Instance.Node && v.Node.Name == c.Node(0).Name() {
			return c.Node(0), c.Node(1)
		}
	}
	return c.Node(1), c.Node(0)
}
