// Package power_test shows that what was acknowledged survives: SIGKILL of daemons at any moment, also while they start, and
// power cuts that take from the disk what was not synced.
//
// `make power` runs KILLS SIGKILLs and CUTS power cuts in all; SEED repeats the choices. `make test` runs a few of each.
package power_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

const writers = 3

// compose is what runs meanwhile: web writes a line with a number all the time; the others wait for a machine that never comes.
const compose = `name: ` + app + `
services:
  web:
    image: ` + lab.Busybox + `
    command: sh -c 'i=0; while true; do i=$$((i+1)); echo line $$i; sleep 0.1; done'
    volumes: [data:/data]
    stop_grace_period: 1s
  scaled0: &scaled
    image: ` + lab.Busybox + `
    deploy: {placement: {constraints: [node.labels.never == true]}}
  scaled1: *scaled
  scaled2: *scaled
volumes: {data: {}}
`

// shapes are the clusters that are harmed, with their parts of all kills and cuts in percent.
func shapes() []struct {
	name        string
	shape       lab.Shape
	kills, cuts int
} {
	return []struct {
		name        string
		shape       lab.Shape
		kills, cuts int
	}{
		{"one server", lab.Shape{Servers: 1, Volatile: lab.Ext4}, 50, 40},
		{"one server on LazyFS", lab.Shape{Servers: 1, Volatile: lab.LazyFS}, 25, 30},
		{"three servers", lab.Shape{Servers: 3, Volatile: lab.Ext4}, 25, 30},
	}
}

func TestPower(t *testing.T) {
	kills, cuts, heavy := number(t, "KILLS", 4), number(t, "CUTS", 3), os.Getenv("KILLS")+os.Getenv("CUTS") != ""
	seed := uint64(number(t, "SEED", int(time.Now().UnixNano()%1e9)))
	t.Logf("SEED=%d", seed)
	for _, s := range shapes() {
		t.Run(s.name, func(t *testing.T) {
			if !heavy && s.name != "one server" {
				t.Skip("takes minutes: make power")
			}
			p := begin(t, s.shape, seed)
			if heavy {
				p.harm(t, (kills*s.kills+99)/100, (cuts*s.cuts+99)/100)
			} else {
				p.harm(t, kills, cuts)
			}
		})
	}
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, text)
	}
	return n
}

// plant is a cluster with its writers outside.
type plant struct {
	*lab.Lab
	random  *rand.Rand
	book    *book
	writers []*writer

	kills, cuts int
	slowest     time.Duration // from a start to an answer
}

func begin(t *testing.T, shape lab.Shape, seed uint64) *plant {
	t.Helper()
	c := lab.Form(t, shape)
	c.Node(0).ImportBusybox(t)
	c.Node(0).GantryIn(t, lab.Project(t, compose), "up", "--detach")
	p := &plant{Lab: c, random: rand.New(rand.NewPCG(seed, 0)), book: newBook()}
	p.running(t)
	for i := range writers {
		p.book.things[fmt.Sprintf("scale %s%d", scaled, i)] = &thing{acked: "1"}
		p.writers = append(p.writers, &writer{
			id: i, book: p.book, client: p.Node(i % shape.Servers).Client(t), random: rand.New(rand.NewPCG(seed, uint64(i)+1)),
		})
	}
	return p
}

// running waits until web runs.
func (p *plant) running(t *testing.T) {
	t.Helper()
	p.Node(0).AwaitReady(t, "web", 1)
}

// harm does that many kills and cuts in random order, and looks after each whether anything is lost.
func (p *plant) harm(t *testing.T, kills, cuts int) {
	t.Helper()
	began, said := time.Now(), time.Now()
	for (p.kills < kills || p.cuts < cuts) && !t.Failed() {
		stop := p.write(t)
		time.Sleep(time.Duration(p.random.Int64N(int64(400 * time.Millisecond))))
		harmed := p.some()
		p.end(t, harmed, p.random.IntN(max(0, kills-p.kills)+max(0, cuts-p.cuts)) < kills-p.kills)
		// Where all have ended before anybody asked for more, nothing can be under way when they are back.
		decided := len(harmed) == len(p.Nodes()) && p.random.IntN(2) == 0
		if decided {
			stop()
		}
		began := time.Now()
		p.PowerOn(t)
		p.slowest = max(p.slowest, time.Since(began))
		stop()
		p.look(t, decided)
		if time.Since(said) > time.Minute {
			said = time.Now()
			t.Logf("%d SIGKILLs, %d power cuts, %d changes acknowledged", p.kills, p.cuts, p.book.acknowledged())
		}
	}
	p.running(t)
	t.Logf("%d SIGKILLs, %d power cuts, %d changes acknowledged, slowest start %s, in %s", p.kills, p.cuts, p.book.acknowledged(),
		p.slowest.Round(time.Millisecond), time.Since(began).Round(time.Second))
}

// write lets the writers work until stop is called; what is under way then comes to its end.
func (p *plant) write(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	for _, w := range p.writers {
		done.Go(func() { w.work(ctx) })
	}
	return func() { cancel(); done.Wait() }
}

// some is all machines, or one of them.
func (p *plant) some() []*lab.Node {
	all := p.Nodes()
	if p.random.IntN(2) == 0 {
		return all
	}
	return all[p.random.IntN(len(all)):][:1]
}

// end kills daemons, or cuts the power of their machines, all at once.
func (p *plant) end(t *testing.T, harmed []*lab.Node, kill bool) {
	t.Helper()
	var all sync.WaitGroup
	for _, n := range harmed {
		if kill {
			p.kills++
			all.Go(func() { n.KillDaemon(t) })
			continue
		}
		p.cuts++
		all.Go(func() { n.PowerOff(t) })
	}
	all.Wait()
	if kill && p.random.IntN(4) == 0 {
		p.killStarting(t, harmed[0])
	}
}

// killStarting kills a daemon some time after it was started.
func (p *plant) killStarting(t *testing.T, n *lab.Node) {
	t.Helper()
	after := 200*time.Millisecond + time.Duration(p.random.Int64N(int64(time.Second)))
	if err := n.TryStartDaemon(after); err != nil && strings.Contains(err.Error(), "ended") {
		t.Fatalf("%s does not start: %v\n%s", n.Name(), err, n.DaemonLog())
	}
	n.KillDaemon(t)
	p.kills++
}

// look reads everything from every machine and compares it with the book.
func (p *plant) look(t *testing.T, decided bool) {
	t.Helper()
	p.AwaitNodes(t, len(p.Nodes())) // images are asked of machines that are up
	images := map[string]string{}
	for i, n := range p.Nodes() {
		read := maps.Clone(images)
		for _, k := range kinds() {
			switch {
			case !k.everywhere:
				p.read(t, n, k, read)
			case i == 0:
				p.read(t, n, k, images)
				maps.Copy(read, images)
			}
		}
		p.book.compare(t, n.Name(), read, i == len(p.Nodes())-1)
	}
}

// read adds what a machine says of a kind. A server may wait for a leader at first.
func (p *plant) read(t *testing.T, n *lab.Node, k kind, into map[string]string) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, k.name+" of "+n.Name(), func() error {
		c, err := client.New(client.Options{Host: n.Host()})
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		states, err := k.read(ctx, c)
		for name, state := range states {
			into[k.name+" "+name] = state
		}
		return err
	})
}
