package cluster_test

import (
	"sync"
	"testing"
	"time"

	"github.com/gantryd/gantry/cluster/identity"
)

// TestConfirmationsAreShared: on several servers each answer is preceded by a question to the others. Those who ask at the
// same time share one.
func TestConfirmationsAreShared(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	r.join(a, "b")
	r.join(a, "c")
	r.eventually("it leads", func() error { return a.Confirm(t.Context()) })
	const many = 1000
	begun := time.Now()
	for range many {
		check(t, a.Confirm(t.Context()))
	}
	alone := time.Since(begun)
	begun = time.Now()
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			if err := a.Confirm(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	together := time.Since(begun)
	t.Logf("%d one after the other: %s each; at the same time: %s each", many, alone/many, together/many)
	if together > alone/2 {
		t.Errorf("asking together takes %s, one after the other %s", together, alone)
	}
}
