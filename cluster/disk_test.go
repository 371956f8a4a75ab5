package cluster

import (
	"testing"
	"time"
)

func TestAverage(t *testing.T) {
	for _, c := range []struct {
		seconds float64
		n       uint64
		want    time.Duration
	}{{0.049, 1, 0}, {0.5, 10, 50 * time.Millisecond}, {1.9, 10, 150 * time.Millisecond}} {
		if got := average(c.seconds, c.n); got != c.want {
			t.Errorf("%d in %g s: %s", c.n, c.seconds, got)
		}
	}
}

func TestDiskWatch(t *testing.T) {
	now := time.Now()
	d := &DiskWatch{}
	if got := d.Slow(now); got != 0 {
		t.Errorf("at first: %s", got)
	}
	// As if all that etcd has done took half a second each.
	d.sum, d.count = -0.5, ^uint64(0)
	if got := d.Slow(now.Add(diskWindow / 2)); got != 0 {
		t.Errorf("within the minute: %s", got)
	}
	sum, count := fsyncs()
	if got, want := d.Slow(now.Add(2*diskWindow)), average(sum+0.5, count+1); got != want {
		t.Errorf("after the minute: %s, want %s", got, want)
	}
}
