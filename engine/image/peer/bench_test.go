package peer_test

import (
	"strconv"
	"testing"
)

// BenchmarkFiveNodes brings an image of 64 MiB to five nodes at once, without unpacking it, over plain HTTP in one process.
// source/size is how often the source sent it.
func BenchmarkFiveNodes(b *testing.B) {
	s := noise(b, 32<<20, 32<<20)
	size := s.Layers[0].Size + s.Layers[1].Size
	b.SetBytes(5 * size)
	var sent int64
	for b.Loop() {
		c := newCluster(b)
		source := c.node("server-0")
		source.has(s)
		errs := make(chan error, 5)
		for i := range cap(errs) {
			n := c.node("node-" + strconv.Itoa(i))
			go func() { errs <- n.pull(s) }()
		}
		for range cap(errs) {
			check(b, <-errs)
		}
		sent += source.sent(s.Layers[0]) + source.sent(s.Layers[1])
	}
	b.ReportMetric(float64(sent)/float64(int64(b.N)*size), "source/size")
}
