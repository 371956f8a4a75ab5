package agent

import (
	"context"
	"sync"

	"github.com/gantryd/gantry/engine"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// End stops all instances of the node because its machine goes down, each with its own signal and in its own time. Nothing
// starts any more, but names and networks work, so that one may still write to another. What is wanted of them stays as it
// is: the next agent starts again what a restart policy covers. Call it while Run runs.
func (a *Agent) End(ctx context.Context) {
	select {
	case <-a.started:
	case <-ctx.Done():
		return
	}
	a.endWork()
	workers := a.all()
	a.log.Info("the machine goes down: its instances are stopped", "instances", len(workers))
	var all sync.WaitGroup
	for _, w := range workers {
		all.Go(func() {
			select {
			case <-w.idle:
			case <-ctx.Done():
				a.log.Warn("an instance is busy and may be killed with the machine", "instance", w.id)
				return
			}
			if err := w.endWithMachine(ctx); err != nil {
				a.log.Warn("an instance may be killed with the machine", "instance", w.id, "err", err)
			}
		})
	}
	all.Wait()
}

// endWithMachine stops the process. The worker does nothing any more.
func (w *worker) endWithMachine(ctx context.Context) error {
	st, err := w.a.Engine.State(ctx, w.id)
	if err != nil || st.Status != engine.StatusRunning && st.Status != engine.StatusPaused {
		return nil // there is none, or it has ended
	}
	as := w.assignment()
	w.mu.Lock()
	// Whatever its exit code will be: one that ends well now has not done its work.
	w.rec.StopRequested = w.rec.StopRequested || policyOf(as).condition != gantryv1.RestartPolicy_CONDITION_NO
	w.mu.Unlock()
	w.phase(gantryv1.InstanceStatus_PHASE_STOPPING)
	return w.a.Engine.Stop(ctx, w.id, grace(as))
}
