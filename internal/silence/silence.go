// Package silence derives the times of the sessions between nodes and the server that leads from the two that a cluster is
// configured with, so that both ends go by the same.
//
// Call After with what the Cluster object says.
package silence

import "time"

// Times of a cluster's sessions.
type Times struct {
	Suspect time.Duration // of a node's silence, after which it gets no new instances
	Down    time.Duration // of a node's silence, after which its instances are made again elsewhere
	// Beat is between two signs of life, of a node and of its server: one may be lost, and the next late.
	Beat time.Duration
	// Patience is how long a node waits for a silent server before it looks for another.
	Patience time.Duration
	// Unheard is Down for nodes that a new leader has not heard yet: they may just be leaving the one before.
	Unheard time.Duration
}

const (
	suspect       = 2 * time.Second
	down          = 5 * time.Second
	longestBeat   = time.Second
	leastPatience = 2 * time.Second
	mostPatience  = 4 * time.Second
	change        = time.Second // to come to another server
)

// After gives the times of a cluster in which nodes are suspect and down after so much silence; 0 is 2 s and 5 s.
func After(suspectAfter, downAfter time.Duration) Times {
	t := Times{Suspect: suspect, Down: down}
	if suspectAfter > 0 {
		t.Suspect = suspectAfter
	}
	if downAfter > 0 {
		t.Down = downAfter
	}
	t.Beat = min(t.Suspect/3, longestBeat)
	t.Patience = min(max(2*t.Suspect, leastPatience), mostPatience)
	t.Unheard = max(t.Down, t.Patience+change)
	return t
}
