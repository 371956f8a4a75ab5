package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Shape is what a cluster is made of. The zero value is one server.
type Shape struct {
	Servers int      // machines that hold the state and run containers; at least 1
	Nodes   int      // machines that run containers only
	Disk    string   // size of a disk of each machine's own, as in "1G"; "" for a folder of the host's
	Flags   []string // of every daemon
	// Volatile is the kind of a disk that loses at a power cut what was not synced; "" for one that keeps what was written.
	Volatile Volatile
	// Programs is the folder that the daemons are started from, as in SetPrograms; "" for the lab's.
	Programs string
}

// Cluster starts n machines that are one cluster; up to three of them are servers. It skips the test where it is not root.
func Cluster(t testing.TB, n int) *Lab {
	t.Helper()
	return Form(t, Shape{Servers: min(n, 3), Nodes: max(0, n-3)})
}

// Form starts a cluster of that shape: first the servers, Node(0) and on, then the nodes. The machines are ready to run
// containers when it returns, and every server votes.
func Form(t testing.TB, shape Shape) *Lab {
	t.Helper()
	l := Network(t)
	first := l.newNode(t)
	first.prepare(t, shape)
	first.join = []string{"--advertise", first.addr}
	first.powerOn(t)
	first.StartDaemon(t)
	for range shape.Servers - 1 {
		l.Join(t, "server", shape)
	}
	for range shape.Nodes {
		l.Join(t, "node", shape)
	}
	l.AwaitNodes(t, len(l.nodes))
	l.AwaitVoters(t)
	return l
}

// Join starts another machine and lets it join as "server" or "node". Of the shape all but the numbers counts.
func (l *Lab) Join(t testing.TB, role string, shape Shape) *Node {
	t.Helper()
	by := l.answering(t)
	n := l.newNode(t)
	n.prepare(t, shape)
	n.joinAs(t, role, by)
	n.powerOn(t)
	n.StartDaemon(t)
	return n
}

// Rejoin is PowerOn for a machine that was wiped: it joins the cluster as a new one.
func (n *Node) Rejoin(t testing.TB, role string) {
	t.Helper()
	n.joinAs(t, role, n.lab.answering(t))
	n.PowerOn(t)
}

// Refound is PowerOn for a machine that was wiped: it founds a cluster of its own.
func (n *Node) Refound(t testing.TB, flags ...string) {
	t.Helper()
	n.join, n.flags = []string{"--advertise", n.addr}, flags
	n.PowerOn(t)
}

func (n *Node) prepare(t testing.TB, shape Shape) {
	t.Helper()
	n.flags, n.bin = shape.Flags, shape.Programs
	if shape.Disk != "" {
		n.addDisk(t, shape.Disk)
	}
	if shape.Volatile != "" {
		n.addVolatile(t, shape.Volatile)
	}
}

// joinAs gives the machine a token of the cluster.
func (n *Node) joinAs(t testing.TB, role string, by *Node) {
	t.Helper()
	token := strings.TrimSpace(by.Gantry(t, "cluster", "token", "create", "--role", role, "--quiet"))
	file := filepath.Join(n.dir, "token")
	must(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	n.join = []string{"--advertise", n.addr, "--join", net.JoinHostPort(by.addr, clusterPort), "--token-file", file}
}

const clusterPort = "7450"

// answering returns a machine whose daemon runs and answers for the cluster.
func (l *Lab) answering(t testing.TB) *Node {
	t.Helper()
	var by *Node
	Eventually(t, time.Minute, "a machine answers for the cluster", func() error {
		for _, n := range l.nodes {
			if _, err := n.Status(); err == nil {
				by = n
				return nil
			}
		}
		return errors.New("none does")
	})
	return by
}

// Status asks the machine's daemon about its cluster.
func (n *Node) Status() (*gantryv1.ClusterStatusResponse, error) {
	if n.daemon == nil {
		return nil, errors.New("the daemon does not run")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := n.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	res, err := c.Cluster.Status(ctx, connect.NewRequest(&gantryv1.ClusterStatusRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// Machines lists the machines of the cluster as the machine's daemon sees them.
func (n *Node) Machines() ([]*gantryv1.NodeView, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := n.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	res, err := c.Nodes.List(ctx, connect.NewRequest(&gantryv1.ListNodesRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg.Nodes, nil
}

// AwaitNodes waits until exactly want machines are ready, as some machine sees it.
func (l *Lab) AwaitNodes(t testing.TB, want int) {
	t.Helper()
	Eventually(t, 2*time.Minute, fmt.Sprintf("%d machines ready", want), func() error {
		views, err := l.answering(t).Machines()
		if err != nil {
			return err
		}
		ready, seen := 0, ""
		for _, view := range views {
			seen += fmt.Sprintf(" %s %s;", view.Node.GetName(), view.Status.GetState())
			if view.Status.GetState() == "ready" {
				ready++
			}
		}
		if ready != want {
			return fmt.Errorf("%d of %d:%s", ready, want, seen)
		}
		return nil
	})
}

// AwaitVoters waits until every server votes, so that a minority of them can be lost. One that has joined does not at once: etcd
// takes it in when those that vote have been connected with each other for five seconds.
func (l *Lab) AwaitVoters(t testing.TB) {
	t.Helper()
	Eventually(t, 2*time.Minute, "all servers vote", func() error {
		by := l.answering(t)
		views, err := by.Machines()
		if err != nil {
			return err
		}
		s, err := by.Status()
		if err != nil {
			return err
		}
		servers, voters := 0, 0
		for _, view := range views {
			if view.Node.GetRole() == "server" {
				servers++
			}
		}
		for _, m := range s.Members {
			if m.Reachable && !m.Learner {
				voters++
			}
		}
		if voters != servers || len(s.Members) != servers {
			return fmt.Errorf("%d of %d servers vote, %d are members", voters, servers, len(s.Members))
		}
		return nil
	})
}

// Leader returns the machine that leads, asked of those that answer, and waits until there is one.
func (l *Lab) Leader(t testing.TB, of ...*Node) *Node {
	t.Helper()
	if len(of) == 0 {
		of = l.nodes
	}
	var leader *Node
	Eventually(t, time.Minute, "leader", func() error {
		var failed error
		for _, n := range of {
			if leader, failed = n.leader(); failed == nil {
				return nil
			}
		}
		return failed
	})
	return leader
}

func (n *Node) leader() (*Node, error) {
	views, err := n.Machines()
	if err != nil {
		return nil, err
	}
	for _, view := range views {
		for _, other := range n.lab.nodes {
			if view.Leader && view.Node.GetName() == other.name {
				return other, nil
			}
		}
	}
	return nil, errors.New("nobody leads")
}

// Except returns all machines but those.
func (l *Lab) Except(these ...*Node) []*Node {
	var out []*Node
	for _, n := range l.nodes {
		if !slices.Contains(these, n) {
			out = append(out, n)
		}
	}
	return out
}
