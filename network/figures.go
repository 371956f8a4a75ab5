package network

import "github.com/gantryd/gantry/internal/tally"

// Figures is what a network counts of its work.
type Figures struct {
	Applies  tally.Latency // calls of Apply
	Failed   tally.Counter // of those, the ones after which nobody knows what the kernel has
	Rewrites tally.Counter // tables written as a whole: a change did not fit, or somebody else had changed the table
}

// Figures are the network's own; they are live.
func (n *Network) Figures() *Figures { return &n.figures }
