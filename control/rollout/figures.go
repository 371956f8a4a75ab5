package rollout

import "github.com/gantryd/gantry/internal/tally"

// Figures is what controllers count of their work, one term of leading after the other.
type Figures struct {
	Passes tally.Latency // passes that decided something, with their commit
	Queue  tally.Gauge   // services that the pass under way decides
}

// Measure has the controller count into f. Call it before Run.
func (c *Controller) Measure(f *Figures) *Controller {
	c.figures = f
	return c
}
