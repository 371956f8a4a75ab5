package job

import (
	"context"
	"log/slog"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store/storetest"
)

// A pass counts the jobs it looks at, and those that it cannot bring on.
func TestPassesAreCounted(t *testing.T) {
	s := storetest.New(t)
	put(t, s, task(&gantryv1.JobSpec{Schedule: "* * * * *"}))
	var f Figures
	c := New(s, slog.New(slog.DiscardHandler)).Measure(&f)
	now := time.Date(2026, 11, 21, 10, 0, 30, 0, time.UTC)
	c.now = func() time.Time { return now }
	sub, err := s.ViewAndWatch(c.read)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	counted := func(what string, passes uint64, queue, failed int64) {
		t.Helper()
		if n, _, _ := f.Passes.Read(); n != passes || f.Queue.Value() != queue || f.Failed.Value() != failed {
			t.Errorf("%s: %d passes, %d jobs in the last, %d failures; want %d, %d, %d", what, n, f.Queue.Value(), f.Failed.Value(), passes, queue, failed)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if c.pass(over) == nil {
		t.Fatal("a record was written though the time was over")
	}
	counted("a job that cannot be recorded", 1, 1, 1)
	now = now.Add(retryDelay)
	if err := c.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	counted("the same again", 2, 1, 1)
	if err := c.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	counted("nothing to do", 2, 0, 1)
}
