package engine_test

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

// BenchmarkStart measures from Create to started, one container after the other, alone and in a group that shares a
// shim, with user namespaces and without. Each has a network namespace that was made before. Removal is not measured:
// nobody waits for it.
func BenchmarkStart(b *testing.B) {
	for _, c := range []struct{ group, userns string }{{"", ""}, {"", "host"}, {"shared", ""}, {"shared", "host"}} {
		b.Run("group="+c.group+"/userns="+c.userns, func(b *testing.B) {
			o := enginetest.Options(b)
			e := enginetest.OpenAt(b, o)
			b.Cleanup(func() { enginetest.Close(b, e) })
			image := enginetest.BusyboxImage(b, e)
			// One container runs already, as the image is unpacked and the group's shim started.
			first := engine.CreateRequest{ID: "first", Spec: enginetest.Spec(image, "exec sleep 1000"), Group: c.group}
			first.Spec.UsernsMode = c.userns
			if o.Users != nil {
				first.Netns = netnsOf(b, o.Users)
			}
			timedRun(b, e, first)
			var creates, starts, all []time.Duration
			for i := range b.N {
				r := first
				r.ID = "c" + strconv.Itoa(i)
				create, start := timedRun(b, e, r)
				creates, starts, all = append(creates, create), append(starts, start), append(all, create+start)
				b.StopTimer()
				if err := e.Remove(b.Context(), r.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(millis(creates, 50), "create-p50-ms")
			b.ReportMetric(millis(starts, 50), "start-p50-ms")
			b.ReportMetric(millis(all, 50), "p50-ms")
			b.ReportMetric(millis(all, 99), "p99-ms")
		})
	}
}

func timedRun(b *testing.B, e *engine.Engine, r engine.CreateRequest) (create, start time.Duration) {
	b.Helper()
	begin := time.Now()
	if err := e.Create(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	create = time.Since(begin)
	begin = time.Now()
	if _, err := e.Start(b.Context(), r.ID); err != nil {
		b.Fatal(err)
	}
	return create, time.Since(begin)
}

func millis(d []time.Duration, percentile int) float64 {
	slices.Sort(d)
	return float64(d[(len(d)-1)*percentile/100].Microseconds()) / 1000
}
