package agent

import (
	"context"
	"slices"
	"sync"

	"github.com/gantryd/gantry/engine"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// End stops all instances of the node because its machine goes down, each with its own signal and in its own time, and after
// those that depend on it. Nothing starts any more, but names and networks work, so that one may still write to another. What
// is wanted of them stays as it is: the next agent starts again what a restart policy covers. Call it while Run runs.
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
	ended := make(map[*worker]chan struct{}, len(workers))
	for _, w := range workers {
		ended[w] = make(chan struct{})
	}
	for _, w := range workers {
		all.Go(func() {
			defer close(ended[w])
			for _, d := range dependents(w, workers) {
				w.letEnd(ctx, ended[d])
			}
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

// dependents are those of an instance's app that depend on its service.
func dependents(w *worker, all []*worker) []*worker {
	i := w.assignment().Instance
	return slices.DeleteFunc(slices.Clone(all), func(d *worker) bool {
		as := d.assignment()
		return d == w || i.App == "" || as.Instance.Environment != i.Environment || as.Instance.App != i.App ||
			!slices.Contains(as.DependsOn, i.Service)
	})
}

// letEnd waits for another instance to end, as long as there is time enough left for this one.
func (w *worker) letEnd(ctx context.Context, ended <-chan struct{}) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-grace(w.assignment())))
		defer cancel()
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
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
	w.drain(ctx, as)
	return w.a.Engine.Stop(ctx, w.id, grace(as))
}
