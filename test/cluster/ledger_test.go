package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

// ledger makes changes all the time, through every server in turn, and notes each that was acknowledged. A change is a new
// config, which nothing else touches.
type ledger struct {
	servers []*lab.Node
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu      sync.Mutex
	acked   map[string]int64 // version by name
	tried   map[string]bool
	last    time.Time
	longest time.Duration // between two acknowledgements
}

// environment is where everything of a trial is.
const environment = "production"

// writers is how many changes are under way at once.
const writers = 2

// keepLedger starts a ledger, which ends with the test.
func keepLedger(t *testing.T, servers []*lab.Node) *ledger {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &ledger{servers: servers, stop: stop, acked: map[string]int64{}, tried: map[string]bool{}, last: time.Now()}
	for w := range writers {
		l.done.Go(func() { l.write(ctx, w) })
	}
	t.Cleanup(l.end)
	return l
}

func (l *ledger) end() { l.stop(); l.done.Wait() }

// write makes one change after another; what a server does not take is given up, not tried again.
func (l *ledger) write(ctx context.Context, writer int) {
	var clients []*client.Client
	for _, n := range l.servers {
		c, err := client.New(client.Options{Host: n.Host(), DialTimeout: time.Second})
		if err != nil {
			panic(err) // the address is the lab's own
		}
		defer c.Close()
		clients = append(clients, c)
	}
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("ledger-%d-%d", writer, i)
		l.change(ctx, clients[i%len(clients)], name)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *ledger) change(ctx context.Context, c *client.Client, name string) {
	l.mu.Lock()
	l.tried[name] = true
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	res, err := c.Configs.Create(ctx, connect.NewRequest(&gantryv1.CreateFileRequest{
		Environment: environment, Name: name, Content: []byte(name),
	}))
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[name] = res.Msg.Version
	l.longest = max(l.longest, time.Since(l.last))
	l.last = time.Now()
}

// check ends the ledger and wants every acknowledged change from every server, and none that nobody asked for.
func (l *ledger) check(t *testing.T) {
	t.Helper()
	l.end()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%d of %d changes were acknowledged; the longest time without one was %s", len(l.acked), len(l.tried), l.longest.Round(10*time.Millisecond))
	if len(l.acked) == 0 {
		t.Error("no change was acknowledged")
	}
	asked := 0
	for _, n := range l.servers {
		stored := map[string]int64{}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		res, err := n.Client(t).Configs.List(ctx, connect.NewRequest(&gantryv1.ListFilesRequest{Environment: environment}))
		cancel()
		if err != nil && strings.Contains(err.Error(), "only runs instances") {
			continue // it was demoted
		}
		if err != nil {
			t.Errorf("%s does not list configs: %v", n.Name(), err)
			continue
		}
		for _, info := range res.Msg.Files {
			stored[info.Meta.Key] = info.Version
		}
		l.compare(t, n, stored)
		asked++
	}
	if asked == 0 {
		t.Error("no server told what it has stored")
	}
}

func (l *ledger) compare(t *testing.T, n *lab.Node, stored map[string]int64) {
	t.Helper()
	lost := 0
	for name, version := range l.acked {
		if got, ok := stored[environment+"/"+name]; !ok || got != version {
			if lost++; lost <= 10 {
				t.Errorf("%s: %s was acknowledged as version %d, is %d (there: %v)", n.Name(), name, version, got, ok)
			}
		}
	}
	if lost > 0 {
		t.Errorf("%s: %d of %d acknowledged changes are lost", n.Name(), lost, len(l.acked))
	}
	for key := range stored {
		if name := key[len(environment)+1:]; !l.tried[name] && len(name) > 6 && name[:7] == "ledger-" {
			t.Errorf("%s: %s was never asked for", n.Name(), name)
		}
	}
}
