package nodesession

import "github.com/gantryd/gantry/internal/tally"

// Figures is what a hub counts of its sessions, one term of leading after the other.
type Figures struct {
	Updates tally.Latency // news given to the stream of a node, which takes its time if the node does
}

// Figures are the hub's own; they are live.
func (h *Hub) Figures() *Figures { return &h.figures }

// Backlog is how many sessions have something to send, and how much: instances, services and machines that have changed.
func (h *Hub) Backlog() (sessions, changes int) {
	t := h.term.Load()
	if t == nil {
		return 0, 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		if n.session == nil {
			continue
		}
		waits := n.session.waiting()
		changes += waits
		if waits > 0 {
			sessions++
		}
	}
	return sessions, changes
}

// waiting is how much a session has to send; the term's mu is held.
func (s *session) waiting() int {
	n := len(s.dirty) + len(s.dropped) + len(s.news)
	for _, due := range []bool{s.full, s.recheck, s.self, s.servers, s.cluster} {
		if due {
			n++
		}
	}
	return n
}
