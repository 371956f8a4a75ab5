package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/test/lab"
)

// three is the cluster of most scenarios.
var three = lab.Shape{Servers: 3}

// awaitGeneration waits until at least some instances of a release other than the first one seen are ready.
func (tr *trial) awaitNew(t *testing.T, by *lab.Node, service string, old int64, atLeast int) {
	t.Helper()
	lab.Eventually(t, 2*time.Minute, "the rollout has begun", func() error {
		views, err := by.TryInstances()
		if err != nil {
			return err
		}
		ready := 0
		for _, view := range views {
			if view.Instance.Service == service && view.Instance.Release != old && lab.Ready(view) {
				ready++
			}
		}
		if ready < atLeast {
			return fmt.Errorf("%d of the new release are ready", ready)
		}
		return nil
	})
}

// release is the one release of a service that has converged.
func (tr *trial) release(t *testing.T, service string) int64 {
	t.Helper()
	for _, view := range tr.Node(0).Instances(t) {
		if view.Instance.Service == service {
			return view.Instance.Release
		}
	}
	t.Fatalf("%s has no instance", service)
	return 0
}

// follower is a server that does not lead.
func (tr *trial) follower(t *testing.T) *lab.Node {
	t.Helper()
	leader := tr.Leader(t)
	for _, n := range tr.Nodes()[:tr.shape.Servers] {
		if n != leader {
			return n
		}
	}
	t.Fatal("there is no second server")
	return nil
}

// refuses wants a server to acknowledge no change and to say so in time. The change is one that may take effect later.
func refuses(t *testing.T, n *lab.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	began := time.Now()
	_, err := n.Client(t).Configs.Create(ctx, connect.NewRequest(&gantryv1.CreateFileRequest{
		Environment: environment, Name: "refused-by-" + n.Name(), Content: []byte("x"),
	}))
	took := time.Since(began).Round(100 * time.Millisecond)
	switch {
	case err == nil:
		t.Errorf("%s takes a change without a majority", n.Name())
	case took > 15*time.Second || !fault.Is(err, fault.Unavailable):
		t.Errorf("%s, without a majority, answers after %s: %v", n.Name(), took, err)
	default:
		t.Logf("%s refused after %s: %v (hint: %s)", n.Name(), took, err, fault.HintOf(err))
	}
}

// ids is what runs on a machine.
func ids(n *lab.Node) map[string]bool {
	out := map[string]bool{}
	for _, r := range n.Running() {
		out[r.ID] = true
	}
	return out
}

func TestLeaderKilledInRollout(t *testing.T) {
	instances := 9
	if !short() {
		instances = 30
	}
	tr := begin(t, three)
	tr.up(t, "web", instances)
	old := tr.release(t, "web")
	leader, other := tr.Leader(t), tr.follower(t)
	tr.update(t, other, 2)
	tr.awaitNew(t, other, "web", old, instances/5)
	leader.KillDaemon(t)
	tr.awaitNew(t, tr.Leader(t, tr.Except(leader)...), "web", old, instances*4/5)
	leader.StartDaemon(t)
	tr.settle(t)
	if now := tr.release(t, "web"); now == old {
		t.Error("the old release runs")
	}
}

// TestServersCutOff takes one server of three away, then the leader of the rest, so that nobody has a majority.
func TestServersCutOff(t *testing.T) {
	tr := begin(t, three)
	tr.up(t, "web", 6)
	first := tr.follower(t)
	first.Isolate(t)
	leader := tr.Leader(t, tr.Except(first)...)
	tr.want["web"] = 8
	leader.GantryIn(t, tr.dir, "scale", "web=8")
	tr.awaitRunning(t, 8, tr.Except(first)...)

	leader.Isolate(t)
	before := map[*lab.Node]map[string]bool{}
	for _, n := range tr.Nodes() {
		before[n] = ids(n)
	}
	for _, n := range tr.Nodes() {
		refuses(t, n)
	}
	for _, n := range tr.Nodes() {
		for id := range before[n] {
			if !ids(n)[id] {
				t.Errorf("%s stopped running on %s, which lost the majority", id, n.Name())
			}
		}
	}
	tr.settle(t)
}

// awaitRunning waits until that many instances run on the machines together, as the kernel says.
func (tr *trial) awaitRunning(t *testing.T, want int, on ...*lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, fmt.Sprintf("%d instances", want), func() error {
		slots := map[string]bool{}
		for _, n := range on {
			for _, r := range n.Running() {
				slots[r.Slot] = true
			}
		}
		if len(slots) != want {
			return fmt.Errorf("%d slots run", len(slots))
		}
		return nil
	})
}

func TestAllRestart(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 9)
	ranges, addresses := tr.places(t)
	kept := func(t *testing.T) {
		t.Helper()
		afterRanges, afterAddresses := tr.places(t)
		if !maps.Equal(ranges, afterRanges) {
			t.Errorf("the ranges of the machines were %v and are %v", ranges, afterRanges)
		}
		if !maps.Equal(addresses, afterAddresses) {
			t.Errorf("the addresses of the instances were %v and are %v", addresses, afterAddresses)
		}
	}
	t.Run("daemons are killed", func(t *testing.T) {
		before := map[*lab.Node]map[string]bool{}
		for _, n := range tr.Nodes() {
			before[n] = ids(n)
			n.KillDaemon(t)
		}
		tr.StartDaemons(t)
		tr.converge(t)
		for _, n := range tr.Nodes() {
			for id := range before[n] {
				if !ids(n)[id] {
					t.Errorf("%s did not outlive the daemons", id)
				}
			}
		}
		kept(t)
	})
	t.Run("the power fails", func(t *testing.T) {
		for _, n := range tr.Nodes() {
			n.PowerOff(t)
		}
		tr.PowerOn(t)
		tr.converge(t)
		kept(t)
	})
	tr.settle(t)
}

// places are the ranges of the machines, by name, and the addresses of the instances.
func (tr *trial) places(t *testing.T) (ranges, addresses map[string]string) {
	t.Helper()
	views, err := tr.Node(0).Machines()
	if err != nil {
		t.Fatal(err)
	}
	ranges, addresses = map[string]string{}, map[string]string{}
	for _, v := range views {
		if ranges[v.Node.Name] = v.Node.Subnet; v.Node.Subnet == "" {
			t.Errorf("%s has no range", v.Node.Name)
		}
	}
	for _, v := range tr.Node(0).Instances(t) {
		addresses[v.Instance.Meta.Key] = v.Status.GetAddress()
	}
	return ranges, addresses
}

// TestOneWayLinks breaks links in one direction: each machine in turn hears nothing, or is not heard.
func TestOneWayLinks(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	leader, follower := tr.Leader(t), tr.follower(t)
	for what, harm := range map[string]func(){
		"the follower is not heard":                   func() { follower.Mute(t) },
		"the follower hears nothing":                  func() { follower.Deafen(t) },
		"the leader is not heard":                     func() { leader.Mute(t) },
		"the leader hears nothing":                    func() { leader.Deafen(t) },
		"the follower does not hear the leader":       func() { tr.CutOneWay(t, leader, follower) },
		"the leader does not hear the follower":       func() { tr.CutOneWay(t, follower, leader) },
		"leader and follower do not reach each other": func() { tr.Cut(t, leader, follower) },
	} {
		t.Run(what, func(t *testing.T) {
			harm()
			time.Sleep(12 * time.Second)
			tr.Heal(t)
			tr.AwaitNodes(t, 3)
			tr.converge(t)
		})
	}
	tr.settle(t)
}

func TestFlappingLinks(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	for _, n := range []*lab.Node{tr.follower(t), tr.Leader(t)} {
		n.Flap(t, 200*time.Millisecond, time.Minute)
		tr.AwaitNodes(t, 3)
		tr.converge(t)
	}
	tr.settle(t)
}

// TestSlowLinks delays every frame by a tenth of a second and loses one in twenty.
func TestSlowLinks(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	for _, n := range tr.Nodes() {
		n.Lose(t, 2.5)
		n.Delay(t, 50*time.Millisecond)
	}
	old := tr.release(t, "web")
	tr.update(t, tr.Node(0), 2)
	tr.awaitNew(t, tr.Node(0), "web", old, 6)
	tr.settle(t)
}

func TestStalledDisk(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Disk: "2G"})
	tr.up(t, "web", 6)
	for _, n := range []*lab.Node{tr.follower(t), tr.Leader(t)} {
		n.StallDisk(t)
		time.Sleep(3 * time.Second)
		n.ResumeDisk(t)
		tr.AwaitNodes(t, 3)
		tr.converge(t)
	}
	tr.settle(t)
}

// TestWrongClocks sets the clock of a follower, then of the leader, an hour ahead while it goes on, and an hour back before it is
// killed and comes back.
func TestWrongClocks(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	for role, choose := range map[string]func() *lab.Node{
		"a follower": func() *lab.Node { return tr.follower(t) }, "the leader": func() *lab.Node { return tr.Leader(t) },
	} {
		for _, offset := range []time.Duration{time.Hour, -time.Hour} {
			n := choose()
			by := tr.Except(n)[0]
			n.SetClock(t, offset)
			if offset < 0 {
				n.KillDaemon(t)
				n.StartDaemon(t)
				tr.AwaitNodes(t, 3)
				tr.converge(t)
			}
			awaitFinding(t, by, n, "the clock of node "+n.Name()+" is off by ")
			noOtherClock(t, by, n, offset)
			t.Logf("%s, %s off: it is named, and %s leads", role, offset, tr.Leader(t).Name())
			n.SetClock(t, 0)
			tr.awaitWell(t)
		}
	}
	tr.settle(t)
}

// noOtherClock waits until no other clock is named than the one that is wrong, and that one as ahead or behind as it is: one that
// has just been set is heard machine after machine.
func noOtherClock(t *testing.T, by, wrong *lab.Node, offset time.Duration) {
	t.Helper()
	lab.Eventually(t, time.Minute, "only the clock of "+wrong.Name()+" is named", func() error {
		st, err := by.Status()
		if err != nil {
			return err
		}
		named := false
		for _, f := range st.Findings {
			if strings.Contains(f.Message, "clock") {
				if f.Subject != wrong.Name() || strings.Contains(f.Message, "off by -") != (offset < 0) {
					return errors.New(f.Message)
				}
				named = true
			}
		}
		if !named {
			return fmt.Errorf("findings %v", st.Findings)
		}
		return nil
	})
}

// TestWrongClockAndAnotherLeader has a machine whose clock is an hour behind, before the day its certificate was made, look for
// another server: it goes on with what it runs, and nothing is started a second time elsewhere.
func TestWrongClockAndAnotherLeader(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
	tr.up(t, "web", 8)
	node, leader := tr.Node(3), tr.Leader(t)
	node.SetClock(t, -time.Hour)
	leader.PauseDaemon(t)
	next := tr.Leader(t, tr.Except(leader, node)...)
	time.Sleep(15 * time.Second)
	views, err := next.Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, view := range views {
		if view.Node.Name == node.Name() && view.Status.GetState() != "ready" {
			t.Errorf("with its clock an hour behind the node is %s for the next leader", view.Status.GetState())
		}
	}
	leader.ResumeDaemon(t)
	node.SetClock(t, 0)
	tr.settle(t)
}

// TestPausedLeader stops the leader in its tracks for longer than an election, so that it wakes up deposed.
func TestPausedLeader(t *testing.T) {
	tr := begin(t, three)
	tr.up(t, "web", 6)
	leader := tr.Leader(t)
	leader.PauseDaemon(t)
	next := tr.Leader(t, tr.Except(leader)...)
	tr.want["web"] = 9
	next.GantryIn(t, tr.dir, "scale", "--detach", "web=9")
	tr.awaitRunning(t, 9, tr.Except(leader)...)
	leader.ResumeDaemon(t)
	tr.settle(t)
}

func TestFrozenMachine(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	for _, n := range []*lab.Node{tr.follower(t), tr.Leader(t)} {
		n.Freeze(t)
		tr.awaitRunning(t, 6, tr.Except(n)...)
		n.Thaw(t)
		tr.AwaitNodes(t, 3)
		tr.converge(t)
	}
	tr.settle(t)
}

// TestJoinAndRemove changes who belongs to the cluster in the middle of a rollout.
func TestJoinAndRemove(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1, Nodes: 2})
	tr.up(t, "web", 20)
	old := tr.release(t, "web")
	server, leaving := tr.Node(0), tr.Node(2)
	tr.update(t, server, 2)
	tr.awaitNew(t, server, "web", old, 4)
	tr.Join(t, "node", tr.shape)
	server.Gantry(t, "node", "drain", leaving.Name())
	lab.Eventually(t, 2*time.Minute, "drained", func() error {
		if left := ids(leaving); len(left) > 0 {
			return fmt.Errorf("%d instances are left", len(left))
		}
		return nil
	})
	as, err := identity.OpenKeeper(filepath.Join(leaving.Root(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	server.Gantry(t, "node", "rm", "--force", leaving.Name())
	if err := session(as, server); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a session of a machine that was removed: %v", err)
	}
	tr.Retire(t, leaving)
	tr.settle(t)
}

// TestWipedMachine loses a machine's disk; what replaces it joins as a new one.
func TestWipedMachine(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
	tr.up(t, "web", 8)
	lost := tr.Node(3)
	lost.Wipe(t)
	tr.awaitRunning(t, 8, tr.Except(lost)...)
	tr.Node(0).Gantry(t, "node", "rm", "--force", lost.Name())
	lost.Rejoin(t, "node")
	tr.settle(t)
}
