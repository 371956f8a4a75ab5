package agent

import (
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// clientPatience is how long a container of `gantry run --rm` waits for the client that has asked for it.
const clientPatience = 20 * time.Second

// held reports that the process waits for a client to be attached.
func (w *worker) held(as *gantryv1.Assignment) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return as.Instance.WaitAttach && !w.attached && w.rec.Status.StartedAt == nil
}

// hold waits for the client. Where nobody else would remove the instance, one whose client has died before it came fails.
func (w *worker) hold(as *gantryv1.Assignment) (time.Duration, error) {
	if w.heldSince.IsZero() {
		w.heldSince = time.Now()
	}
	wait := time.Until(w.heldSince.Add(clientPatience))
	if as.Instance.AutoRemove && wait <= 0 {
		return 0, fault.New(fault.Canceled, "the client that it waited for has not come").WithHint("run it again")
	}
	w.progress(inPhase(gantryv1.InstanceStatus_PHASE_CREATED))
	if !as.Instance.AutoRemove {
		return 0, nil
	}
	return wait, nil
}
