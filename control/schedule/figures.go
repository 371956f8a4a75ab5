package schedule

import "github.com/gantryd/gantry/internal/tally"

// Figures is what a scheduler counts of its work.
type Figures struct {
	Passes  tally.Latency // plans that had something to do, with their commit
	Placed  tally.Counter
	Evicted tally.Counter // sent away to make room, or to even out
	Waiting tally.Gauge   // instances that fit nowhere
}

// Figures are the scheduler's own; they are live.
func (c *Controller) Figures() *Figures { return &c.figures }
