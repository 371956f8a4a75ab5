package cluster_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// slots watches what runs on every machine and finds slots that run twice. Two machines that cannot talk to each other may run
// a slot each, until they can; an update that starts first runs two for a moment.
type slots struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	since  map[string]time.Time // since when a slot runs more than once on sound machines
	longer map[string]string    // slots that did so for too long, and what ran
	most   time.Duration
}

// overlap is how long a slot may run twice while nothing is wrong: the time until a machine that was given up for lost has a
// session again and hears that it has to stop, up to 4.5 s where it waits for a server that is silent, and a stop with its grace
// period of a second. A machine of whatever speed is given more.
func overlap() time.Duration {
	if short() {
		return 15 * time.Second
	}
	return 6 * time.Second
}

// observe starts the observer, which ends with the test.
func observe(t *testing.T, c *lab.Lab) *slots {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	s := &slots{stop: stop, since: map[string]time.Time{}, longer: map[string]string{}}
	s.done.Go(func() {
		for ctx.Err() == nil {
			s.look(c)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	t.Cleanup(s.end)
	return s
}

func (s *slots) end() { s.stop(); s.done.Wait() }

// look takes one picture of all machines with which nothing is wrong.
func (s *slots) look(c *lab.Lab) {
	where, releases := map[string][]string{}, map[string]map[int64]bool{}
	for _, n := range c.Nodes() {
		if !n.Sound() {
			continue
		}
		for _, r := range n.Running() {
			where[r.Slot] = append(where[r.Slot], fmt.Sprintf("%s on %s (release %d)", r.ID, n.Name(), r.Release))
			if releases[r.Slot] == nil {
				releases[r.Slot] = map[int64]bool{}
			}
			releases[r.Slot][r.Release] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	twice := map[string]bool{}
	for slot, running := range where {
		if len(running) < 2 {
			continue
		}
		// An update that starts first keeps the old one until the new one is healthy, as long as a machine takes for it.
		key, limit := slot, overlap()
		if len(releases[slot]) == len(running) {
			key, limit = slot+", in several releases", limit+updating
		}
		twice[key] = true
		if s.since[key].IsZero() {
			s.since[key] = time.Now()
		}
		long := time.Since(s.since[key])
		if s.most = max(s.most, long); long > limit {
			s.longer[key] = strings.Join(running, ", ")
		}
	}
	for key := range s.since {
		if !twice[key] {
			delete(s.since, key)
		}
	}
}

// updating is how long an instance may take in an update until it is healthy. One that could not be made is tried again after up
// to 8 s.
const updating = 15 * time.Second

// check ends the observer and reports what ran twice.
func (s *slots) check(t *testing.T) {
	t.Helper()
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("a slot ran twice for at most %s", s.most.Round(100*time.Millisecond))
	var found []string
	for slot, what := range s.longer {
		found = append(found, fmt.Sprintf("%s ran more than once for too long: %s", slot, what))
	}
	slices.Sort(found)
	for _, line := range found {
		t.Error(line)
	}
}
