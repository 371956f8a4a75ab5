package tally_test

import (
	"sync"
	"testing"
	"time"

	"github.com/gantryd/gantry/internal/tally"
)

func TestLatencyFillsBuckets(t *testing.T) {
	var l tally.Latency
	for _, d := range []time.Duration{0, time.Millisecond, 1500 * time.Microsecond, 2 * time.Minute} {
		l.Observe(d)
	}
	count, sum, atMost := l.Read()
	if count != 4 || sum < 120 || sum > 120.01 {
		t.Errorf("%d durations, together %v s", count, sum)
	}
	for bound, want := range map[float64]uint64{.0001: 1, .001: 2, .0025: 3, 60: 3} {
		if atMost[bound] != want {
			t.Errorf("%d are at most %v s, want %d", atMost[bound], bound, want)
		}
	}
}

func TestCountsInParallel(t *testing.T) {
	var c tally.Counter
	var g tally.Gauge
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				c.Add(1)
				g.Add(1)
				g.Add(-1)
			}
		})
	}
	wg.Wait()
	if c.Value() != 8000 || g.Value() != 0 {
		t.Errorf("counter %d, gauge %d", c.Value(), g.Value())
	}
	g.Set(7)
	if g.Value() != 7 {
		t.Error(g.Value())
	}
}

func BenchmarkObserve(b *testing.B) {
	var l tally.Latency
	for b.Loop() {
		l.Observe(3 * time.Millisecond)
	}
}
