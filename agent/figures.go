package agent

import (
	"strings"

	"github.com/gantryd/gantry/internal/tally"
)

// Figures is what an agent counts of its work.
type Figures struct {
	Creates      tally.Latency // containers made, with their image, network and volumes
	Starts       tally.Latency // processes started
	Images       tally.Latency // images that were not here fetched
	Checks       tally.Latency // health checks
	FailedSteps  tally.Counter // instances that could not be moved on
	FailedChecks tally.Counter
	Restarts     tally.Counter // by restart policies
	Sessions     tally.Counter // sessions with a server begun
}

// Figures are the agent's own; they are live.
func (a *Agent) Figures() *Figures { return &a.figures }

// Reports is how many observations wait to be told to a server.
func (a *Agent) Reports() int { return a.reports.Len() }

// Lag is how many changes of endpoints the kernel and the name server do not have yet.
func (a *Agent) Lag() int { return a.state.lag() }

// lag is how many changes are not applied.
func (e *endpointState) lag() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return int(e.asked - e.done)
}

// Phases counts the instances of this machine by phase.
func (a *Agent) Phases() map[string]int {
	out := map[string]int{}
	for _, w := range a.all() {
		out[strings.ToLower(strings.TrimPrefix(w.status().GetPhase().String(), "PHASE_"))]++
	}
	return out
}
