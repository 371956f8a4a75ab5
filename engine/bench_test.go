package engine_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

// BenchmarkStart measures the way from a request to a running process, in its two steps, with a shim of its own for each
// container and with one for all.
func BenchmarkStart(b *testing.B) {
	enginetest.Require(b)
	for name, group := range map[string]string{"shim=own": "", "shim=shared": "bench"} {
		b.Run(name, func(b *testing.B) {
			e := enginetest.Open(b)
			spec := enginetest.Spec(enginetest.BusyboxImage(b, e), "sleep 1000")
			var create, start time.Duration
			n := 0
			for b.Loop() {
				id := fmt.Sprint("c", n)
				n++
				t0 := time.Now()
				if err := e.Create(b.Context(), engine.CreateRequest{ID: id, Name: id, Spec: spec, Group: group}); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if _, err := e.Start(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				create, start = create+t1.Sub(t0), start+time.Since(t1)
			}
			b.ReportMetric(float64(create.Microseconds())/float64(n)/1000, "create-ms")
			b.ReportMetric(float64(start.Microseconds())/float64(n)/1000, "start-ms")
			b.StopTimer()
			for i := range n {
				if err := e.Remove(b.Context(), fmt.Sprint("c", i)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
