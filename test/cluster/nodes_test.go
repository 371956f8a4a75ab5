package cluster_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// within fails unless a time is in bounds. A machine of whatever speed is given more: the bounds hold in `make faults`.
func within(t *testing.T, what string, took, atLeast, atMost time.Duration) {
	t.Helper()
	if short() {
		atMost += 20 * time.Second
	}
	if took < atLeast || took > atMost {
		t.Errorf("%s after %s, want %s to %s", what, took.Round(time.Millisecond), atLeast, atMost)
		return
	}
	t.Logf("%s after %s", what, took.Round(time.Millisecond))
}

// TestNodeDies cuts the power of a machine with half of the instances. It is suspect and down after the silence that the cluster
// is configured for, and then its instances run elsewhere.
func TestNodeDies(t *testing.T) {
	tr := begin(t, three)
	leader, dead := tr.Leader(t), tr.follower(t)
	leader.Gantry(t, "node", "drain", leader.Name()) // so that two machines have all
	tr.up(t, "web", 8)
	tr.dies(t, dead, 2*time.Second, 5*time.Second)
	leader.Gantry(t, "cluster", "configure", "--suspect-after", "1s", "--down-after", "2s")
	leader.GantryIn(t, tr.dir, "scale", "web=0")
	leader.GantryIn(t, tr.dir, "scale", "web=8")
	tr.converge(t)
	tr.dies(t, dead, time.Second, 2*time.Second)
	leader.Gantry(t, "node", "activate", leader.Name())
	tr.settle(t)
}

// dies cuts the power of a machine that has half of the instances of web, and mends it.
func (tr *trial) dies(t *testing.T, dead *lab.Node, suspect, down time.Duration) {
	t.Helper()
	by := tr.Leader(t)
	if here := len(ids(dead)); here != tr.want["web"]/2 {
		t.Fatalf("%s runs %d of %d instances, not half", dead.Name(), here, tr.want["web"])
	}
	before, own := map[string]bool{}, time.Duration(0)
	for _, v := range by.Instances(t) {
		before[v.Instance.Meta.Key] = true
		own = max(own, v.Status.GetStartedAt().AsTime().Sub(v.Instance.Meta.CreatedAt.AsTime()))
	}
	died := time.Now()
	dead.PowerOff(t)
	tr.awaitRunning(t, tr.want["web"], tr.Except(dead)...)
	tr.converge(t)

	heard, states := tr.silence(t, by, dead, died)
	within(t, "the last that was heard of it: before the power cut", died.Sub(heard), -time.Second, 2*time.Second)
	within(t, "suspect: of silence", states["suspect"].Sub(heard), suspect, suspect+500*time.Millisecond)
	within(t, "down: of silence", states["down"].Sub(heard), down, down+500*time.Millisecond)
	made, ready, replaced := time.Time{}, time.Time{}, 0
	for _, v := range by.Instances(t) {
		if !before[v.Instance.Meta.Key] {
			replaced++
			made = latest(made, v.Instance.Meta.CreatedAt.AsTime())
			ready = latest(ready, v.Status.GetStartedAt().AsTime())
		}
	}
	if replaced != tr.want["web"]/2 {
		t.Errorf("%d instances were replaced", replaced)
	}
	within(t, "the last replacement was made: after down", made.Sub(states["down"]), -time.Second, 2*time.Second) // the event is told a moment later
	within(t, "all replacements ran: after down", ready.Sub(states["down"]), 0, 2*time.Second+own)
	t.Logf("a start of its own took up to %s before", own.Round(time.Millisecond))

	awaitFinding(t, by, dead, fmt.Sprintf("node %s (%s) is down", dead.Name(), dead.Address()))
	awaitFinding(t, by, dead, "is no member that answers: nothing comes from its machine", "2 of 3")
	dead.PowerOn(t)
	tr.AwaitNodes(t, len(tr.Nodes()))
	tr.converge(t)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// silence is when a machine that died was last heard of, and when it came to be in each state since then.
func (tr *trial) silence(t *testing.T, by, of *lab.Node, since time.Time) (heard time.Time, states map[string]time.Time) {
	t.Helper()
	views, err := by.Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		if v.Node.Name == of.Name() {
			heard = v.Status.LastSeen.AsTime()
		}
	}
	states = map[string]time.Time{}
	for _, e := range events(t, by, since) {
		if e.Kind == "node" && e.Attributes["name"] == of.Name() {
			states[e.Action] = e.Time.AsTime()
		}
	}
	for _, want := range []string{"suspect", "down"} {
		if states[want].IsZero() {
			t.Fatalf("no event says %q: %v", want, states)
		}
	}
	return heard, states
}

// events are what has happened since then, as a server tells.
func events(t *testing.T, by *lab.Node, since time.Time) (out []*gantryv1.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := by.Client(t).Instances.Events(ctx, connect.NewRequest(&gantryv1.EventsRequest{
		Since: timestamppb.New(since), Until: timestamppb.Now(),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		out = append(out, stream.Msg())
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDrain drains a machine that has half of two services: of each no more than its parallelism is on the move, and what starts
// first never has fewer that serve than it should.
func TestDrain(t *testing.T) {
	const replicas, parallelism = 6, 2
	c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 1})
	server, leaving := c.Node(0), c.Node(1)
	server.ImportBusybox(t)
	text := "name: shop\nservices:\n"
	for _, order := range []string{"start-first", "stop-first"} {
		text += fmt.Sprintf(`  %s:
    image: %s
    command: sh -c 'trap exit TERM; while :; do sleep 0.1; done'
    deploy: {replicas: %d, update_config: {parallelism: %d, order: %[1]s}}
`, order, lab.Busybox, replicas, parallelism)
	}
	server.GantryIn(t, lab.Project(t, text), "up", "--timeout", "2m")
	if here := len(ids(leaving)); here != replicas {
		t.Fatalf("%d of %d instances are on the machine that is drained", here, 2*replicas)
	}
	id := idOf(t, server)
	began := time.Now()
	server.Gantry(t, "node", "drain", leaving.Name())
	serving, wanted, looks := map[string]int{"start-first": replicas, "stop-first": replicas}, map[string]int{}, 0
	lab.Eventually(t, time.Minute, "drained", func() error {
		nowServing, nowWanted, left := moving(server.Instances(t), id)
		for service := range serving {
			serving[service], wanted[service] = min(serving[service], nowServing[service]), max(wanted[service], nowWanted[service])
		}
		if looks++; left > 0 || nowServing["start-first"]+nowServing["stop-first"] < 2*replicas {
			return fmt.Errorf("%d instances are left, %v serve", left, nowServing)
		}
		return nil
	})
	for order, want := range map[string]struct{ least, most int }{
		"start-first": {replicas, replicas + parallelism}, "stop-first": {replicas - parallelism, replicas},
	} {
		if serving[order] < want.least || wanted[order] > want.most {
			t.Errorf("%s: of %d at least %d served, and at most %d were to run", order, replicas, serving[order], wanted[order])
		}
	}
	t.Logf("drained in %s, %d looks; at least %v served, at most %v were to", time.Since(began).Round(100*time.Millisecond), looks, serving, wanted)
}

// moving counts the instances of each service that are to run and ready, those that are to run at all, and all those that are not
// on the machine that is to have them. What has been replaced and ends counts only among the last.
func moving(views []*gantryv1.InstanceView, all string) (serving, wanted map[string]int, left int) {
	serving, wanted = map[string]int{}, map[string]int{}
	for _, v := range views {
		service := v.Instance.Service
		if v.Instance.Desired == gantryv1.Instance_DESIRED_RUNNING {
			wanted[service]++
			if lab.Ready(v) {
				serving[service]++
			}
		}
		if v.Instance.Node != all {
			left++
		}
	}
	return serving, wanted, left
}

// idOf is the ID by which the cluster knows a server.
func idOf(t *testing.T, n *lab.Node) string {
	t.Helper()
	views, err := n.Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		if v.Node.Name == n.Name() {
			return v.Node.Meta.Key
		}
	}
	t.Fatalf("%s is not of the cluster", n.Name())
	return ""
}
