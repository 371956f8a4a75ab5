// Package tally is how a part of the daemon counts and times what it does: plain fields with useful zero values, which
// whoever wants to publish them reads.
//
// A part has them as exported fields of one struct and calls Add and Since where things happen; package observe reads them.
// Everything is safe in parallel and costs some nanoseconds. The package keeps no names and publishes nothing.
package tally

import (
	"sync/atomic"
	"time"
)

// Counter counts upwards.
type Counter struct{ n atomic.Int64 }

// Add counts n more.
func (c *Counter) Add(n int) { c.n.Add(int64(n)) }

// Value is the count so far.
func (c *Counter) Value() int64 { return c.n.Load() }

// Gauge goes up and down.
type Gauge struct{ n atomic.Int64 }

// Add changes the value by n, which may be negative.
func (g *Gauge) Add(n int) { g.n.Add(int64(n)) }

// Set gives the value.
func (g *Gauge) Set(n int) { g.n.Store(int64(n)) }

// Value is the value now.
func (g *Gauge) Value() int64 { return g.n.Load() }

// Bounds are the upper ends of the buckets of a Latency, in seconds.
func Bounds() [buckets]float64 {
	return [...]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
}

const buckets = 18

// Latency is how long something took, each time.
type Latency struct {
	sum    atomic.Int64 // nanoseconds
	counts [buckets + 1]atomic.Int64
}

// Observe takes one duration.
func (l *Latency) Observe(d time.Duration) {
	n := 0
	for bounds := Bounds(); n < buckets && d.Seconds() > bounds[n]; n++ {
	}
	l.sum.Add(int64(d))
	l.counts[n].Add(1)
}

// Since takes the time that has passed since begun: defer l.Since(time.Now()).
func (l *Latency) Since(begun time.Time) { l.Observe(time.Since(begun)) }

// Read gives the number of durations, their sum in seconds, and how many were at most each bound.
func (l *Latency) Read() (count uint64, sum float64, atMost map[float64]uint64) {
	atMost = make(map[float64]uint64, buckets)
	for n, bound := range Bounds() {
		count += uint64(l.counts[n].Load())
		atMost[bound] = count
	}
	count += uint64(l.counts[buckets].Load())
	return count, time.Duration(l.sum.Load()).Seconds(), atMost
}
