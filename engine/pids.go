package engine

import "time"

// pidsInterval is how often running containers are asked whether they have reached their limit of processes. Version 1 of
// control groups tells nobody of it (seen with Linux 6.18).
const pidsInterval = time.Second

// pidsLimit is the limit of processes of a container; 0 if it has none.
func (g cgroups) pidsLimit(id string) int64 {
	return int64(readNumber(g.file("pids", id, "pids.max"))) // "max" is no number
}

// pidsReached is the limit of processes for which a container was refused one; 0 if it was not.
func (g cgroups) pidsReached(id string) int64 {
	if readKeyed(g.file("pids", id, "pids.events"), "max") == 0 {
		return 0
	}
	return g.pidsLimit(id)
}

// watchPids tells of runs that reach their limit of processes, until the engine ends.
func (e *Engine) watchPids() error {
	tick := time.NewTicker(pidsInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, c := range e.all() {
				if r := c.current(); r != nil && r.pidsLimit > 0 && !r.pidsTold {
					r.pidsTold = e.notePids(c, r)
				}
			}
		case <-e.ctx.Done():
			return nil
		}
	}
}

// notePids records and tells that a run has reached its limit of processes, and says whether it has.
func (e *Engine) notePids(c *container, r *run) bool {
	limit := e.cgroup.pidsReached(c.ID)
	if limit == 0 {
		return false
	}
	c.mu.Lock()
	current := c.run == r && c.state.Pid != 0
	if current {
		c.state.PidsReached = limit
	}
	c.mu.Unlock()
	if current {
		e.saveState(c)
		e.hub.publish(Event{Kind: EventPids, ID: c.ID, At: time.Now()})
	}
	return true
}
