package power_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

// What a cluster may take from the loss of its leader to the next change that it takes.
const (
	mostWithin = 3 * time.Second // 99 of 100 times
	allWithin  = 5 * time.Second
)

// TestLeaderLoss takes the leader away in turn by SIGKILL, SIGSTOP and a power cut, LEADERS times in all, and measures how
// long no change is taken.
func TestLeaderLoss(t *testing.T) {
	times := number(t, "LEADERS", 0)
	if times == 0 {
		t.Skip("takes minutes: make power")
	}
	c := lab.Form(t, lab.Shape{Servers: 3})
	ways := []loss{
		{"SIGKILL", func(n *lab.Node) { n.KillDaemon(t) }, func(n *lab.Node) { n.StartDaemon(t) }},
		{"SIGSTOP", func(n *lab.Node) { n.PauseDaemon(t) }, func(n *lab.Node) { n.ResumeDaemon(t) }},
		{"power cut", func(n *lab.Node) { n.PowerOff(t) }, func(n *lab.Node) { n.PowerOn(t) }},
	}
	took := make([][]time.Duration, len(ways))
	for i := range times {
		way := i % len(ways)
		took[way] = append(took[way], ways[way].measure(t, c, i))
	}
	var all []time.Duration
	t.Log("leader lost by | times | p50 | p99 | longest")
	for i, w := range ways {
		t.Log(row(w.name, took[i]))
		all = append(all, took[i]...)
	}
	t.Log(row("all", all))
	if p99, longest := percentile(all, 99), slices.Max(all); p99 > mostWithin || longest > allWithin {
		t.Errorf("p99 is %s, want %s; the longest is %s, want %s", p99, mostWithin, longest, allWithin)
	}
}

// loss is a way to lose a leader, and how it comes back.
type loss struct {
	name string
	harm func(*lab.Node)
	mend func(*lab.Node)
}

// measure returns the time from the loss of a leader to the first acknowledgement of a change that was asked for after it.
func (l loss) measure(t *testing.T, c *lab.Lab, round int) time.Duration {
	t.Helper()
	c.AwaitVoters(t)
	leader := c.Leader(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	first := make(chan time.Time, 1)
	var done sync.WaitGroup
	began := time.Now()
	l.harm(leader)
	for _, n := range c.Except(leader) {
		done.Go(func() { probe(ctx, n.Client(t), fmt.Sprintf("probe-%d-%s", round, n.Name()), first) })
	}
	var took time.Duration
	select {
	case at := <-first:
		took = at.Sub(began)
	case <-ctx.Done():
		t.Errorf("nothing was taken for a minute after %s of %s", l.name, leader.Name())
		took = time.Minute
	}
	stop()
	done.Wait()
	l.mend(leader)
	t.Logf("%s of %s: %s", l.name, leader.Name(), took.Round(time.Millisecond))
	return took
}

// probe asks for a change every 50 ms, without waiting for those before, until one is acknowledged.
func probe(ctx context.Context, c *client.Client, name string, first chan<- time.Time) {
	var asked sync.WaitGroup
	defer asked.Wait()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		asked.Go(func() {
			err := call(ctx, c.Configs.Create, &gantryv1.CreateFileRequest{Environment: environment, Name: fmt.Sprintf("%s-%d", name, i), Content: []byte(name)})
			if err != nil {
				return
			}
			select {
			case first <- time.Now():
			default: // another was faster
			}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func row(name string, took []time.Duration) string {
	if len(took) == 0 {
		return name + " | 0"
	}
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
	return fmt.Sprintf("%s | %d | %s | %s | %s", name, len(took), round(percentile(took, 50)), round(percentile(took, 99)), round(slices.Max(took)))
}

// percentile is the smallest value that is not exceeded by that many of a hundred.
func percentile(values []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*percent+99)/100-1]
}
