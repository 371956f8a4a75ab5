package job

import "github.com/gantryd/gantry/internal/tally"

// Figures is what controllers count of their work, one term of leading after the other.
type Figures struct {
	Passes tally.Latency // passes that had jobs to look at, with their commits
	Queue  tally.Gauge   // jobs that the pass under way looks at, or the last one did
	Failed tally.Counter // times a job could not be brought on
}

// Measure has the controller count into f. Call it before Run.
func (c *Controller) Measure(f *Figures) *Controller {
	c.figures = f
	return c
}
