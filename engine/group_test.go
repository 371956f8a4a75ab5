package engine_test

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

// TestGroupIsRestartedWhileItsShimEnds stops and starts all containers of a group at once, many times: the shim they share
// ends with the last stop, just when the first start comes.
func TestGroupIsRestartedWhileItsShimEnds(t *testing.T) {
	enginetest.Require(t)
	e := enginetest.Open(t)
	spec := enginetest.Spec(enginetest.BusyboxImage(t, e), "sleep 1000")
	const members, rounds = 3, 6
	cycle := func(id string) error {
		for range rounds {
			if _, err := e.Start(t.Context(), id); err != nil {
				return fmt.Errorf("starting %s: %w", id, err)
			}
			if err := e.Stop(t.Context(), id, 0); err != nil {
				return fmt.Errorf("stopping %s: %w", id, err)
			}
		}
		return e.Remove(t.Context(), id)
	}
	var g errgroup.Group
	for i := range members {
		id := fmt.Sprint("m", i)
		if err := e.Create(t.Context(), engine.CreateRequest{ID: id, Name: id, Spec: spec, Group: "g"}); err != nil {
			t.Fatal(err)
		}
		g.Go(func() error { return cycle(id) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}
