package network_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// A server of web that is told to end takes no more connections and waits for those it has, up to the grace period.
const drained = `name: drained
services:
  web:
    image: busybox:lab
    command: sh -c 'exec /talk serve :80 /said/web-$$(hostname)'
    environment: {GENERATION: "1"}
    healthcheck: {test: "[ -s /said/web-$$(hostname) ]", interval: 10s, start_period: 1m, start_interval: 100ms}
    stop_grace_period: 1s
    deploy: {replicas: 3, placement: {constraints: ["node.hostname == SERVER"]}, update_config: {order: start-first}}
    volumes: MOUNTS
  asks: &asks
    image: busybox:lab
    command: sh -c 'for i in 1 2 3 4 5 6 7 8; do /talk ask /said/asks-$$i web:80 & done; wait'
    stop_grace_period: 100ms
    depends_on: {web: {condition: service_started}}
    deploy: {placement: {constraints: ["node.hostname == CLIENT"]}}
    volumes: MOUNTS
  holds:
    <<: *asks
    command: sh -c 'exec /talk hold /said/holds-$$(hostname) web:80'
    deploy: {replicas: 6, placement: {constraints: ["node.hostname == CLIENT"]}}
`

// grace is the stop_grace_period of web.
const grace = time.Second

// TestConnectionsAreDrained takes instances away while others connect to their virtual address: no connection fails, and those
// that are open go on through the grace period.
func TestConnectionsAreDrained(t *testing.T) {
	t.Run("on one machine", func(t *testing.T) {
		n := lab.Machines(t, 1).Node(0)
		drain(t, n, n)
	})
	// What happens there is known here only a moment later.
	t.Run("from a machine far away", func(t *testing.T) {
		c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 1})
		c.Node(1).Delay(t, 50*time.Millisecond)
		t.Cleanup(func() { c.Node(1).Delay(t, 0) })
		drain(t, c.Node(0), c.Node(1))
	})
}

// drain scales down, up again and rolls out, as often as there is time for.
func drain(t *testing.T, server, client *lab.Node) {
	server.ImportBusybox(t)
	talk := lab.NewTalk(t)
	text := strings.NewReplacer("MOUNTS", talk.Mounts(), "SERVER", server.Name(), "CLIENT", client.Name()).Replace(drained)
	dir := lab.Project(t, text)
	server.GantryIn(t, dir, "up", "--timeout", "2m")
	awaitSaid(t, talk, "holds-*", "held", 6)
	awaitSaid(t, talk, "asks-*", "answer", 100)
	rounds, tolerated := 1, 2 // where a daemon is held up for longer than agents wait
	if os.Getenv("FAULTS") != "" {
		rounds, tolerated = 10, 0
	}
	began := time.Now()
	for round := range rounds {
		before := time.Now()
		server.GantryIn(t, dir, "scale", "web=1")
		server.AwaitReady(t, "web", 1)
		awaitLasted(t, talk, before)
		server.GantryIn(t, dir, "scale", "web=3")
		server.AwaitReady(t, "web", 3)

		text = strings.Replace(text, fmt.Sprintf(`GENERATION: "%d"`, round+1), fmt.Sprintf(`GENERATION: "%d"`, round+2), 1)
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		before = time.Now()
		server.GantryIn(t, dir, "up", "--timeout", "2m")
		server.AwaitReady(t, "web", 3)
		awaitLasted(t, talk, before)
	}
	judgeDrain(t, talk, began, rounds*5, tolerated)
}

// judgeDrain wants all connections since then but so many to have been answered, while so many instances were told to end.
func judgeDrain(t *testing.T, talk *lab.Talk, began time.Time, want, tolerated int) {
	t.Helper()
	answers, failed, told := 0, 0, 0
	for _, s := range talk.All(t, "asks-*") {
		switch {
		case s.At.Before(began):
		case s.What == "answer":
			answers++
		default:
			failed++
			t.Log(s.Text)
		}
	}
	for _, s := range talk.All(t, "web-*") {
		if s.What == "told" {
			told++
		}
	}
	t.Logf("%d of %d connections failed while %d instances ended", failed, answers+failed, told)
	if failed > tolerated {
		t.Error("connections failed")
	}
	if told != want || answers < 50 {
		t.Errorf("%d instances were told to end, and %d connections answered", told, answers)
	}
}

// awaitLasted waits until an instance that has been told to end since then was killed with a connection open, and says when
// connections ended sooner. Some may be of an instance that was told before.
func awaitLasted(t *testing.T, talk *lab.Talk, since time.Time) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, "connections that outlive their server's end", func() error {
		ended, broken := map[string]time.Time{}, talk.All(t, "holds-*")
		for _, s := range talk.All(t, "web-*") {
			if s.What == "told" {
				ended[s.By()] = s.At
			}
		}
		cut := 0
		for _, s := range broken {
			if s.What != "broken" || !s.At.After(since) {
				continue
			}
			told, is := ended[s.By()]
			if lasted := s.At.Sub(told); !is || lasted < grace/2 { // it may be slow to say so
				t.Fatalf("a connection lasted %s after its server was told to end (%t): %s", lasted, is, s.Text)
			}
			if told.After(since) {
				cut++
			}
		}
		if cut == 0 {
			return fmt.Errorf("none of them was cut")
		}
		return nil
	})
}

func awaitSaid(t *testing.T, talk *lab.Talk, pattern, what string, want int) {
	t.Helper()
	lab.Eventually(t, time.Minute, what, func() error {
		n := 0
		for _, s := range talk.All(t, pattern) {
			if s.What == what {
				n++
			}
		}
		if n < want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}
