package store

import (
	"maps"
	"slices"
	"time"

	"github.com/gantryd/gantry/internal/tally"
)

// Figures is what a store counts of itself.
type Figures struct {
	Updates      tally.Latency // calls of Update, from the call to its end
	Waiting      tally.Gauge   // calls of Update that have not ended
	Transactions tally.Latency // attempts to commit
	Conflicts    tally.Counter // attempts that found the state changed
	Failures     tally.Counter // attempts that the state's server did not take
	Writes       tally.Counter // objects put and removed
}

// Figures are the store's own; they are live.
func (s *Store) Figures() *Figures { return &s.figures }

// Backlog is how many events wait for the subscriber that is furthest behind.
func (s *Store) Backlog() int {
	s.mu.Lock()
	subs := slices.Collect(maps.Keys(s.subs))
	s.mu.Unlock()
	most := 0
	for _, u := range subs {
		most = max(most, u.waiting())
	}
	return most
}

// waiting is how many events nobody has taken.
func (u *Subscription) waiting() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.queue) - u.holes
}

// update counts a call in and gives what counts it out.
func (f *Figures) update() func() {
	begun := time.Now()
	f.Waiting.Add(1)
	return func() {
		f.Waiting.Add(-1)
		f.Updates.Since(begun)
	}
}

// attempt counts an attempt to commit.
func (f *Figures) attempt(begun time.Time, writes int, done bool, err error) {
	f.Transactions.Since(begun)
	switch {
	case err != nil:
		f.Failures.Add(1)
	case !done:
		f.Conflicts.Add(1)
	default:
		f.Writes.Add(writes)
	}
}
