package network

import (
	"time"

	"github.com/gantryd/gantry/internal/tally"
)

// Figures is what a network counts of its work.
type Figures struct {
	Applies  tally.Latency // calls of Apply
	Failed   tally.Counter // of those, the ones after which nobody knows what the kernel has
	Rewrites tally.Counter // tables written as a whole: a change did not fit, or somebody else had changed the table
}

// Figures are the network's own; they are live.
func (n *Network) Figures() *Figures { return &n.figures }

// apply counts a call of Apply.
func (f *Figures) apply(begun time.Time, err error) {
	f.Applies.Since(begun)
	if err != nil {
		f.Failed.Add(1)
	}
}
