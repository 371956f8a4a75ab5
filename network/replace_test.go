package network

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestReplacingTheTableRefusesNobody writes the table anew again and again while a container makes connections, as each daemon
// does that takes over from one before.
func TestReplacingTheTableRefusesNobody(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)},
		service("prod", "web", "10.96.0.1", []string{"front"}, a), service("prod", "client", "", []string{"front"}, client))
	var clients sync.WaitGroup
	var asked atomic.Int64
	over := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if _, _, err := client.ask("10.96.0.1:80"); err != nil {
					t.Error(err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for range 100 {
		must(t, l.reassert())
	}
	close(over)
	clients.Wait()
	if asked.Load() < 100 {
		t.Errorf("%d connections are too few to tell", asked.Load())
	}
}

// TestAReplacementThatWasCutShortIsTakenUp has the daemon die at each point of it: until the next one has replaced the table, and
// then, connections are made.
func TestAReplacementThatWasCutShortIsTakenUp(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	apply := func() {
		t.Helper()
		l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)},
			service("prod", "web", "10.96.0.1", []string{"front"}, a), service("prod", "client", "", []string{"front"}, client))
	}
	apply()
	deputy := l.nft.deputy()
	takeOver := func(to, from string) {
		hooks, err := l.nft.hooks(from)
		must(t, errors.Join(err, l.nft.under(to, func() error { return l.nft.collectAll(&l.applied.model) }), l.nft.unhook(hooks)))
	}
	steps := []func(){
		func() { takeOver(deputy, "gantry0") },
		func() { l.nft.conn.DelTable(l.nft.table); must(t, l.nft.commit()) },
		func() { takeOver("gantry0", deputy) },
	}
	for died := range steps {
		t.Run(fmt.Sprint("after step ", died+1), func(t *testing.T) {
			l.applying.Lock()
			for _, step := range steps[:died+1] {
				step()
			}
			l.applying.Unlock()
			l.restart()
			for _, when := range []string{"before the next daemon has been told anything", "after"} {
				if _, _, err := client.ask("10.96.0.1:80"); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				apply()
			}
			if l.nft.exists(deputy) {
				t.Error("the deputy is left")
			}
		})
	}
}
