package network_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

const led = `name: led
services:
  web:
    image: busybox:lab
    command: sh -c 'exec /talk serve :80 /said/web-$$(hostname)'
    deploy: {replicas: 3, placement: {constraints: ["node.role == server"]}}
    volumes: MOUNTS
  asks: &asks
    image: busybox:lab
    command: sh -c 'for i in 1 2 3 4; do /talk ask /said/asks-$$i web:80 & done; wait'
    stop_grace_period: 100ms
    depends_on: {web: {condition: service_started}}
    deploy: {placement: {constraints: ["node.role == node"]}}
    volumes: MOUNTS
  holds:
    <<: *asks
    command: sh -c 'exec /talk hold /said/holds-$$(hostname) web:80'
    deploy: {replicas: 6, placement: {constraints: ["node.role == node"]}}
`

// TestLeadersComeAndGo takes the lead away, by a kill and by a pause of the daemon, while containers talk to those of other
// machines through a virtual address. The next leader has not heard all machines yet, and knows of no address what they have not
// said; no connection breaks or fails by that.
func TestLeadersComeAndGo(t *testing.T) {
	c := lab.Form(t, lab.Shape{Servers: 3, Nodes: 1})
	c.Node(0).ImportBusybox(t)
	talk := lab.NewTalk(t)
	dir := lab.Project(t, strings.ReplaceAll(led, "MOUNTS", talk.Mounts()))
	c.Node(0).GantryIn(t, dir, "up", "--timeout", "2m")
	awaitSaid(t, talk, "holds-*", "held", 6)
	awaitSaid(t, talk, "asks-*", "answer", 100)
	rounds := 2
	if os.Getenv("FAULTS") != "" {
		rounds = 10
	}
	began := time.Now()
	for round := range rounds {
		leader := c.Leader(t)
		if round%2 == 0 {
			leader.KillDaemon(t)
			next := c.Leader(t, c.Except(leader)...)
			time.Sleep(time.Second) // the others say what they have
			t.Logf("round %d: %s was killed, %s leads", round+1, leader.Name(), next.Name())
			leader.StartDaemon(t)
		} else {
			leader.PauseDaemon(t)
			next := c.Leader(t, c.Except(leader)...)
			t.Logf("round %d: %s was paused, %s leads", round+1, leader.Name(), next.Name())
			leader.ResumeDaemon(t)
		}
		c.AwaitNodes(t, 4)
	}
	answers := 0
	for _, s := range append(talk.All(t, "asks-*"), talk.All(t, "holds-*")...) {
		switch {
		case s.At.Before(began):
		case s.What == "answer":
			answers++
		case s.What != "held":
			t.Errorf("%s after %s: %s", s.What, s.At.Sub(began).Round(time.Millisecond), s.Text)
		}
	}
	t.Logf("%d connections were answered while %d leaders went", answers, rounds)
	if answers < 50 {
		t.Error("too few to tell")
	}
}
