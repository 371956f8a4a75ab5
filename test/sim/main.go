// Command sim measures Gantry at the scale of a thousand machines, and prints a table.
//
//	go run ./test/sim [-rows scale,loss] [-nodes 1000] [-instances 100000] [-profile DIR] [-o FILE]
//
// The server is real: store on etcd, API, all controllers, sessions, tracker of images, in one process whose memory and CPU time are measured. The
// nodes are a second process that speaks the real protocol (package agent/nodelink) over a connection for each, and whose
// containers are made up: what is assigned runs after -delay. It exits with 1 when the scale row misses its goal.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// options are what the command line says.
type options struct {
	nodes, instances int
	split            int
	services         int
	delay            time.Duration
	rounds           int
	steady           time.Duration
	dir, profile     string
}

// row is one part of the table. It may measure several lines on one platform.
type row struct {
	name    string
	measure func(ctx context.Context, o options) ([]line, error)
}

// fleetArgument makes the program the process of the nodes.
const fleetArgument = "nodes"

func main() {
	if len(os.Args) == 2 && os.Args[1] == fleetArgument {
		if err := serveFleet(); err != nil {
			fmt.Fprintln(os.Stderr, "sim: nodes:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	names := flag.String("rows", "scale,rolling,growth", "rows, separated by commas")
	out := flag.String("o", "", "also write the table to this file")
	flag.IntVar(&o.nodes, "nodes", 1000, "simulated nodes")
	flag.IntVar(&o.instances, "instances", 100_000, "instances of the scale row")
	flag.IntVar(&o.split, "split", 1, "services that share these instances")
	flag.IntVar(&o.services, "services", 500, "services of the rolling row, each with 20 instances")
	flag.DurationVar(&o.delay, "delay", 100*time.Millisecond, "from an instance's assignment until it runs")
	flag.IntVar(&o.rounds, "rounds", 300, "of the latency rows; of 100 or fewer the p99 is the slowest one")
	flag.DurationVar(&o.steady, "steady", 20*time.Second, "how long the steady state is measured")
	flag.StringVar(&o.dir, "dir", "", "where the state is kept; the default directory for temporary files if empty")
	flag.StringVar(&o.profile, "profile", "", "directory for CPU and heap profiles of the server")
	flag.Parse()

	var lines []line
	for _, r := range []row{{"scale", measureScale}, {"rolling", measureRolling}, {"growth", measureGrowth}} {
		if !slices.Contains(strings.Split(*names, ","), r.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "sim: measuring %s\n", r.name)
		measured, err := r.measure(context.Background(), o)
		lines = append(lines, measured...)
		fmt.Fprint(os.Stderr, table(measured))
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	text := table(lines)
	fmt.Print(text)
	if *out != "" {
		if err := os.WriteFile(*out, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, l := range lines {
		if l.must && !l.met() {
			return fmt.Errorf("missed: %s", l.what)
		}
	}
	return nil
}
