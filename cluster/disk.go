package cluster

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	fsyncMetric = "etcd_disk_wal_fsync_duration_seconds"
	diskWindow  = time.Minute
	diskStep    = 50 * time.Millisecond
)

// DiskWatch tells how slow the disk under the state is, from what etcd measures in this process. The zero value works.
type DiskWatch struct {
	mu    sync.Mutex
	at    time.Time
	sum   float64 // seconds
	count uint64
	slow  time.Duration
}

// Slow is the time a change took on average to be on disk in the last minute that had changes, in steps of 50 ms; 0 if less
// than that.
func (d *DiskWatch) Slow(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Sub(d.at) < diskWindow {
		return d.slow
	}
	sum, count := fsyncs()
	if n := count - d.count; n > 0 && !d.at.IsZero() {
		d.slow = average(sum-d.sum, n)
	}
	d.at, d.sum, d.count = now, sum, count
	return d.slow
}

func average(seconds float64, n uint64) time.Duration {
	return time.Duration(seconds / float64(n) * float64(time.Second)).Truncate(diskStep)
}

// fsyncs reads etcd's histogram: seconds in total, and how many there were.
func fsyncs() (float64, uint64) {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		return 0, 0 // a part of the metrics is broken; the disk is not
	}
	for _, f := range families {
		if f.GetName() == fsyncMetric && len(f.GetMetric()) == 1 {
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleSum(), h.GetSampleCount()
		}
	}
	return 0, 0
}
