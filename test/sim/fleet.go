package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// The simulated nodes live in a process of their own, so that what the server takes can be told from what they take. The
// two talk in lines of JSON over the process's standard input and output.

// command is one line to the process of the nodes.
type command struct {
	Do    string // "begin", "lose", "stats"
	Node  int
	Nodes int
	At    string
	Delay time.Duration
}

// stats is its answer to "stats", and an empty one to everything else.
type stats struct {
	Updates, Assignments, Bytes int64
	Instances                   int
	Phases                      map[string]int
	Ready                       []int // endpoints that each of the nodes which keep them knows to be ready
	CPU                         time.Duration
}

// keepers is the number of nodes that keep all endpoints.
const keepers = 3

// serveFleet is the whole process of the nodes.
func serveFleet() error {
	f := &fleet{count: &counters{}}
	in := json.NewDecoder(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for {
		var c command
		if err := in.Decode(&c); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(f.do(c)); err != nil {
			return err
		}
	}
}

// fleet is the nodes of the process.
type fleet struct {
	count *counters
	nodes []*simNode
	stops []context.CancelFunc
	group errgroup.Group
}

func (f *fleet) do(c command) stats {
	switch c.Do {
	case "begin":
		for n := range c.Nodes {
			node := newSimNode(n, c.Delay, f.count, n < keepers)
			ctx, cancel := context.WithCancel(context.Background())
			f.nodes, f.stops = append(f.nodes, node), append(f.stops, cancel)
			f.group.Go(func() error { return node.run(ctx, c.At) })
		}
	case "lose":
		f.stops[c.Node]()
	case "stats":
		return f.stats()
	}
	return stats{}
}

func (f *fleet) stats() stats {
	s := stats{
		Updates: f.count.updates.Load(), Assignments: f.count.assignments.Load(), Bytes: f.count.bytes.Load(), CPU: cpuTime(),
		Phases: map[string]int{},
	}
	for _, n := range f.nodes {
		n.mu.Lock()
		s.Instances += len(n.instances)
		for _, st := range n.instances {
			s.Phases[st.Phase.String()]++
		}
		if n.keeps {
			ready := 0
			for _, r := range n.endpoints {
				ready += r
			}
			s.Ready = append(s.Ready, ready)
		}
		n.mu.Unlock()
	}
	return s
}

// machines is the process of the nodes, seen from the server's.
type machines struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	mu  sync.Mutex
}

func startMachines() (*machines, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := &machines{cmd: exec.Command(exe, fleetArgument)}
	m.cmd.Stderr = os.Stderr
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.out = bufio.NewReader(out)
	return m, m.cmd.Start()
}

func (m *machines) stop() {
	_ = m.in.Close()
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func (m *machines) do(c command) (stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s stats
	line, err := json.Marshal(c)
	if err != nil {
		return s, err
	}
	if _, err := fmt.Fprintf(m.in, "%s\n", line); err != nil {
		return s, err
	}
	answer, err := m.out.ReadBytes('\n')
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(answer, &s)
}
