package cluster_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// The check of web writes down when it first succeeds.
const movedWeb = `name: moved
services:
  web:
    image: busybox:lab
    command: sh -c 'exec /talk serve :80 /said/web-$$(hostname)'
    healthcheck:
      test: "h=$$(hostname); [ -s /said/web-$$h ] || exit 1; [ -s /said/healthy-$$h ] || /talk now >/said/healthy-$$h"
      interval: 5s
      start_period: 1m
      start_interval: 100ms
    environment: {GENERATION: "COUNT"}
    stop_grace_period: 5s
    deploy: {placement: {constraints: [WHERE]}, update_config: {order: start-first}}
    volumes: MOUNTS
`

// A client stays on a drained machine, because nothing may take its place.
const movedClient = `  NAME-NUMBER:
    image: busybox:lab
    command: /talk COMMAND
    stop_grace_period: 100ms
    depends_on: {web: {condition: service_healthy}}
    deploy: {placement: {constraints: ["node.hostname == NODE"]}, update_config: {order: start-first}}
    volumes: MOUNTS
`

// TestMovedInstance drains the machine of a service's instance, and rolls out a release that is to be elsewhere, in turn. On
// every machine a client looks the name up and another one connects, again and again, and the tables of the kernel are looked at.
func TestMovedInstance(t *testing.T) {
	rounds, reached, gone, failed := 2, 20*time.Second, 20*time.Second, 10
	if !short() {
		rounds, reached, gone, failed = 20, 300*time.Millisecond, time.Second, 0
	}
	m := &moves{Lab: lab.Form(t, three), talk: lab.NewTalk(t), figures: map[string][]time.Duration{}}
	m.Node(0).ImportBusybox(t)
	m.dir = lab.Project(t, "")
	m.place(t, "node.role == server")
	at := m.web(t)
	for round := range rounds {
		from := m.machine(t, at.Instance.Node)
		began, watch := time.Now(), m.watchTables(at.Status.Address)
		if round%2 == 0 {
			m.Node(0).Gantry(t, "node", "drain", from.Name())
		} else {
			m.place(t, "node.hostname != "+from.Name())
		}
		next := m.awaitMoved(t, at)
		time.Sleep(1500 * time.Millisecond) // what is seen too late is seen
		m.judge(t, began, at, next, watch())
		if round%2 == 0 {
			m.Node(0).Gantry(t, "node", "activate", from.Name())
			m.AwaitNodes(t, 3)
		}
		at = m.web(t)
	}
	if m.failed > failed {
		t.Errorf("%d connections failed", m.failed)
	}
	if len(m.figures) != 6 {
		t.Errorf("%d of 6 figures were taken", len(m.figures))
	}
	for _, what := range slices.Sorted(maps.Keys(m.figures)) {
		all := m.figures[what]
		slices.Sort(all)
		t.Logf("%-40s p50 %5d ms  max %5d ms  of %d", what, all[len(all)/2].Milliseconds(), all[len(all)-1].Milliseconds(), len(all))
		within := gone
		if strings.HasPrefix(what, "reached") {
			within = reached
		}
		if all[len(all)-1] > within {
			t.Errorf("%s: want at most %s", what, within)
		}
	}
}

// moves is a cluster with an instance that moves.
type moves struct {
	*lab.Lab
	talk       *lab.Talk
	dir        string
	generation int
	failed     int // connections
	figures    map[string][]time.Duration
}

// place brings a new release up, with web where a constraint wants it.
func (m *moves) place(t *testing.T, where string) {
	t.Helper()
	m.generation++
	text := strings.NewReplacer("WHERE", `"`+where+`"`, "COUNT", fmt.Sprint(m.generation)).Replace(movedWeb)
	for i, n := range m.Nodes() {
		for name, command := range map[string]string{"asks": "ask /said/asks-NUMBER web:80", "names": "names /said/names-NUMBER tasks.web"} {
			text += strings.NewReplacer("NAME", name, "COMMAND", strings.Replace(command, "NUMBER", fmt.Sprint(i), 1),
				"NUMBER", fmt.Sprint(i), "NODE", n.Name()).Replace(movedClient)
		}
	}
	text = strings.ReplaceAll(text, "MOUNTS", m.talk.Mounts())
	if err := os.WriteFile(filepath.Join(m.dir, "compose.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Node(0).GantryIn(t, m.dir, "up", "--timeout", "3m")
}

// web waits until there is one instance of web, ready, and clients on every machine that see it.
func (m *moves) web(t *testing.T) *gantryv1.InstanceView {
	t.Helper()
	view := m.Node(0).AwaitReady(t, "web", 1)[0]
	for i := range m.Nodes() {
		m.await(t, fmt.Sprintf("asks-%d", i), func(s lab.Said) bool { return s.What == "answer" && s.By() == nameIn(view) })
		m.await(t, fmt.Sprintf("names-%d", i), func(s lab.Said) bool { return sees(s, view.Status.Address) })
	}
	return view
}

// await waits until the last thing that a client says is right.
func (m *moves) await(t *testing.T, file string, right func(lab.Said) bool) {
	t.Helper()
	lab.Eventually(t, time.Minute, file, func() error {
		all := m.talk.Said(t, file)
		if len(all) == 0 || time.Since(all[len(all)-1].At) > time.Second || !right(all[len(all)-1]) {
			return fmt.Errorf("of %d the last is %v", len(all), all[max(0, len(all)-1):])
		}
		return nil
	})
}

func (m *moves) machine(t *testing.T, id string) *lab.Node {
	t.Helper()
	views, err := m.Node(0).Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, view := range views {
		for _, n := range m.Nodes() {
			if view.Node.Meta.Key == id && view.Node.Name == n.Name() {
				return n
			}
		}
	}
	t.Fatalf("no machine is %s", id)
	return nil
}

// awaitMoved waits until web runs elsewhere, and only there.
func (m *moves) awaitMoved(t *testing.T, from *gantryv1.InstanceView) *gantryv1.InstanceView {
	t.Helper()
	var now *gantryv1.InstanceView
	lab.Eventually(t, 2*time.Minute, "web elsewhere", func() error {
		now = m.Node(0).AwaitReady(t, "web", 1)[0]
		if now.Instance.Meta.Key == from.Instance.Meta.Key {
			return fmt.Errorf("it is where it was")
		}
		return nil
	})
	if now.Instance.Node == from.Instance.Node {
		t.Errorf("web has moved to where it was")
	}
	return now
}

// judge takes the times of one move.
func (m *moves) judge(t *testing.T, began time.Time, old, now *gantryv1.InstanceView, tables sightings) {
	t.Helper()
	healthy := m.talk.Said(t, "healthy-"+nameIn(now))[0].At
	var ended time.Time
	for _, s := range m.talk.Said(t, "web-"+nameIn(old)) {
		if s.What == "ends" {
			ended = s.At
		}
	}
	if ended.IsZero() {
		t.Fatalf("%s has not ended in its time", nameIn(old))
	}
	figure := func(what string, seen, since time.Time) {
		if seen.IsZero() {
			t.Errorf("not seen at all: %s", what)
			return
		}
		m.figures[what] = append(m.figures[what], seen.Sub(since))
	}
	for i := range m.Nodes() {
		var answered, known, last, lastKnown time.Time
		for _, s := range m.talk.Said(t, fmt.Sprintf("asks-%d", i)) {
			switch {
			case s.At.Before(began):
			case s.What == "failed":
				m.failed++
				t.Logf("machine %d, %s after the new one was healthy: %s", i, s.At.Sub(healthy), s.Text)
			case s.By() == nameIn(old):
				last = s.At
			case s.By() == nameIn(now) && answered.IsZero():
				answered = s.At
			}
		}
		for _, s := range m.talk.Said(t, fmt.Sprintf("names-%d", i)) {
			if sees(s, old.Status.Address) {
				lastKnown = s.At
			}
			if known.IsZero() && sees(s, now.Status.Address) {
				known = s.At
			}
		}
		figure("reached by its name", answered, healthy)
		figure("reached: its address among the tasks", known, healthy)
		figure("gone: last connection to the old", last, healthy)
		figure("gone: old address among the tasks", lastKnown, healthy)
		figure("gone: old address among the turns", tables.turns[i], healthy)
		figure("gone: old address in the tables", tables.any[i], ended)
	}
}

// sightings is when an address was seen last, by machine: in the maps of whose turn it is, and in the whole table.
type sightings struct{ turns, any []time.Time }

// watchTables looks at the kernel's tables of all machines, until the result is called.
func (m *moves) watchTables(address string) func() sightings {
	seen := sightings{make([]time.Time, len(m.Nodes())), make([]time.Time, len(m.Nodes()))}
	whole := regexp.MustCompile(`\b` + regexp.QuoteMeta(address) + `\b`)
	var wait sync.WaitGroup
	stop := make(chan struct{})
	for i, n := range m.Nodes() {
		wait.Go(func() {
			for {
				text := table(n)
				if whole.MatchString(text) {
					seen.any[i] = time.Now()
				}
				if whole.MatchString(turns(text)) {
					seen.turns[i] = time.Now()
				}
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	return func() sightings {
		close(stop)
		wait.Wait()
		return seen
	}
}

// table is the network's table in the kernel of a machine, turns its maps of whose turn it is.
func table(n *lab.Node) string { return n.TryExec("nft", "list", "table", "inet", "gantry0").Stdout }

func turns(table string) string {
	return strings.Join(regexp.MustCompile(`(?s)map turns\.\d+ \{.*?\n\t\}`).FindAllString(table, -1), "")
}

// inTurn is the addresses that the kernel of a machine sends connections of any service to.
func inTurn(n *lab.Node) map[string]bool {
	out := map[string]bool{}
	for _, address := range regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`).FindAllString(turns(table(n)), -1) {
		out[address] = true
	}
	return out
}

// nameIn is the host name inside of an instance.
func nameIn(view *gantryv1.InstanceView) string { return view.Instance.Meta.Key[:12] }

func sees(s lab.Said, address string) bool {
	return s.What == "names" && slices.Contains(strings.Fields(s.Text), address)
}
