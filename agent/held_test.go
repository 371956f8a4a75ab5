package agent

import (
	"testing"
	"time"

	"github.com/gantryd/gantry/fault"
)

// A container of `gantry run` waits for its client. With --rm nobody else would remove it: it waits for so long only.
func TestHold(t *testing.T) {
	for _, rm := range []bool{true, false} {
		w, _ := keeper(t, 0)
		as := w.assignment()
		as.Instance.WaitAttach, as.Instance.AutoRemove = true, rm
		if !w.held(as) {
			t.Fatal("starts without its client")
		}
		if wait, err := w.hold(as); err != nil || rm != (wait > 0) {
			t.Errorf("--rm=%v: looks again after %s, %v", rm, wait, err)
		}
		w.heldSince = w.heldSince.Add(-clientPatience - time.Second)
		if _, err := w.hold(as); rm != fault.Is(err, fault.Canceled) {
			t.Errorf("--rm=%v: when the client has not come: %v", rm, err)
		}
		w.attach()
		if w.held(as) {
			t.Error("does not start for its client")
		}
	}
}
