package cluster_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

const lossWeb = `name: loss
services:
  web:
    image: busybox:lab
    command: sh -c 'exec /talk serve :80 /said/web-$$(hostname)'
    healthcheck: {test: "[ -s /said/web-$$(hostname) ]", interval: 5s, start_period: 1m, start_interval: 100ms}
    stop_grace_period: 1s
    deploy: {replicas: 3}
    volumes: MOUNTS
`

const lossClient = `  load-NUMBER:
    image: busybox:lab
    command: /talk load /said/load-NUMBER web:80 RATE
    stop_grace_period: 100ms
    deploy: {placement: {constraints: ["node.hostname == NODE"]}}
    volumes: MOUNTS
`

// lossRate is the number of connections that the client on each of three machines makes in a second: those of two are left.
const lossRate = 250

// suspectAfter is the time of silence from which a machine gets no new connections, with what it takes to tell the others.
const suspectAfter = 2500 * time.Millisecond

// TestNodeLossUnderLoad cuts the power of one of three machines that serve, while clients on the other two make 500 connections
// a second to the service's name, and give each up after a second. Some fail at first; later none does.
func TestNodeLossUnderLoad(t *testing.T) {
	t.Run("node", func(t *testing.T) {
		l := underLoad(t, lab.Shape{Servers: 1, Nodes: 2})
		l.rounds(t, 10, func() *lab.Node { return l.Node(2) })
	})
	t.Run("leader", func(t *testing.T) {
		heavy(t)
		l := underLoad(t, three)
		l.rounds(t, 5, func() *lab.Node { return l.Leader(t) }) // the next leader has never heard it
	})
}

// losses is a cluster under load that loses a machine again and again.
type losses struct {
	*trial
	talk    *lab.Talk
	replace []time.Duration // from the power cut to the first answer of what replaces the lost instance
}

func underLoad(t *testing.T, shape lab.Shape) *losses {
	t.Helper()
	l := &losses{trial: &trial{Lab: lab.Form(t, shape)}, talk: lab.NewTalk(t)}
	l.Node(0).ImportBusybox(t)
	text := lossWeb
	for i, n := range l.Nodes() {
		text += strings.NewReplacer("NUMBER", fmt.Sprint(i), "RATE", fmt.Sprint(lossRate), "NODE", n.Name()).Replace(lossClient)
	}
	l.dir = lab.Project(t, strings.ReplaceAll(text, "MOUNTS", l.talk.Mounts()))
	l.Node(0).GantryIn(t, l.dir, "up", "--timeout", "3m")
	return l
}

// rounds loses machines that often, or ROUNDS times; once in `make test`.
func (l *losses) rounds(t *testing.T, count int, which func() *lab.Node) {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil {
		count = n
	}
	if short() {
		count = 1
	}
	for round := range count {
		if round > 0 {
			l.again(t)
		}
		l.lose(t, which())
	}
	slices.Sort(l.replace)
	at := func(percent int) time.Duration {
		return l.replace[(len(l.replace)-1)*percent/100].Round(time.Millisecond)
	}
	t.Logf("the replacement answered %s (p50), %s (p99), %s (longest of %d) after the power cut", at(50), at(99), at(100), len(l.replace))
	within(t, "p99: the replacement answered", at(99), 0, 15*time.Second)
}

// again brings the machine back that was lost, and an instance to it.
func (l *losses) again(t *testing.T) {
	t.Helper()
	for _, n := range l.Nodes() {
		if !n.Sound() {
			n.PowerOn(t)
		}
	}
	l.AwaitNodes(t, 3)
	l.Leader(t).GantryIn(t, l.dir, "scale", "web=0")
	l.Leader(t).GantryIn(t, l.dir, "scale", "web=3")
	l.AwaitVoters(t)
}

// flowing waits until every client has had nothing but answers for the last half second, from all three instances, whose host
// names it returns.
func (l *losses) flowing(t *testing.T) map[string]bool {
	t.Helper()
	by := map[string]bool{}
	for i := range l.Nodes() {
		clear(by)
		lab.Eventually(t, time.Minute, fmt.Sprintf("client %d is answered by all", i), func() error {
			if err := os.Truncate(l.talk.Path(fmt.Sprintf("load-%d", i)), 0); err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond)
			all := l.talk.Said(t, fmt.Sprintf("load-%d", i))
			for _, s := range all {
				if s.What != "answer" {
					return fmt.Errorf("%s %s", s.What, s.Text)
				}
				by[s.By()] = true
			}
			if len(by) != 3 || len(all) < lossRate/10 {
				return fmt.Errorf("%d answers by %d instances in half a second", len(all), len(by))
			}
			return nil
		})
	}
	return by
}

// lose cuts the power of a machine and looks at what becomes of the connections that the others make.
func (l *losses) lose(t *testing.T, dead *lab.Node) {
	t.Helper()
	before := l.flowing(t)
	if len(ids(dead)) < 2 {
		t.Fatalf("%s runs no instance besides its client", dead.Name())
	}
	died := time.Now()
	dead.PowerOff(t)
	l.Leader(t, l.Except(dead)...)
	led := time.Now() // by a server that hears all that live
	var replaced time.Time
	lab.Eventually(t, time.Minute, "the replacement answers", func() error {
		time.Sleep(200 * time.Millisecond) // there is much to read
		for _, s := range l.asked(t, dead) {
			if s.What == "answer" && !before[s.By()] {
				replaced = s.At
				return nil
			}
		}
		return fmt.Errorf("%d have been asked", len(l.asked(t, dead)))
	})
	l.replace = append(l.replace, replaced.Sub(died))
	states := map[string]time.Time{}
	lab.Eventually(t, time.Minute, "it is down", func() error {
		for _, e := range events(t, l.Leader(t, l.Except(dead)...), died) {
			if e.Kind == "node" && e.Attributes["name"] == dead.Name() {
				states[e.Action] = e.Time.AsTime()
			}
		}
		if states["down"].IsZero() {
			return fmt.Errorf("no event says so: %v", states)
		}
		return nil
	})
	out := states["down"]
	if !short() {
		out = led.Add(suspectAfter)
	}
	until := out.Add(time.Second + 200*time.Millisecond) // a connection that was begun before is given up, and somebody writes it down
	time.Sleep(time.Until(latest(until, replaced).Add(3 * time.Second)))
	l.judgeLoss(t, died, until, states, l.asked(t, dead))
}

// asked is what the clients of the machines that are left say, in the order of time.
func (l *losses) asked(t *testing.T, dead *lab.Node) (all []lab.Said) {
	t.Helper()
	for i, n := range l.Nodes() {
		if n != dead {
			all = append(all, l.talk.Said(t, fmt.Sprintf("load-%d", i))...)
		}
	}
	slices.SortFunc(all, func(a, b lab.Said) int { return a.At.Compare(b.At) })
	return all
}

// judgeLoss prints how many connections failed in each half second, and wants none to have failed after a moment. A machine of
// whatever speed may lose one in a hundred there: a dead instance costs one in three.
func (l *losses) judgeLoss(t *testing.T, died, until time.Time, states map[string]time.Time, all []lab.Said) {
	t.Helper()
	since := func(at time.Time) time.Duration { return at.Sub(died).Round(10 * time.Millisecond) }
	counts, asked, late, failed, rest := map[int]int{}, 0, 0, 0, 0
	var last lab.Said
	for _, s := range all {
		if s.At.Before(died) {
			continue
		}
		asked++
		if s.At.After(until) {
			rest++
		}
		if s.What != "failed" {
			continue
		}
		failed++
		counts[int(s.At.Sub(died)/(500*time.Millisecond))]++
		if last = s; s.At.After(until) {
			if late++; late <= 10 {
				t.Logf("%s after the power cut: %s", since(s.At), s.Text)
			}
		}
	}
	var rows []string
	for _, i := range slices.Sorted(maps.Keys(counts)) {
		rows = append(rows, fmt.Sprintf("%.1f s: %d", float64(i)/2, counts[i]))
	}
	var found []string
	for _, state := range slices.Sorted(maps.Keys(states)) {
		found = append(found, fmt.Sprintf("%s after %s", state, since(states[state])))
	}
	span := all[len(all)-1].At.Sub(died)
	t.Logf("%s; of %d connections, %.0f a second, %d failed, the last after %s; failed in the half second from %s",
		strings.Join(found, ", "), asked, float64(asked)/span.Seconds(), failed, since(last.At), strings.Join(rows, ", "))
	if rate := float64(asked) / span.Seconds(); !short() && rate < 1.8*lossRate {
		t.Errorf("the clients made %.0f connections a second, not 500", rate)
	}
	allowed := 0
	if short() {
		allowed = rest / 100
	}
	if late > allowed {
		t.Errorf("%d of %d connections failed later than %s after the power cut", late, rest, since(until))
	}
}
