package engine_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
)

// Whoever gives up a process while it is being started, as a health check of a container that is stopped, does not hold up the
// container's end: its shim waited half a minute for readers of the output.
func TestAProcessThatIsGivenUpHoldsNothingUp(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	for n := range 10 {
		id := enginetest.Run(t, e, fmt.Sprint("c", n), enginetest.Spec(image, "exec sleep 1000"))
		ctx, cancel := context.WithCancel(t.Context())
		giveUp := time.AfterFunc(time.Duration(5+7*n)*time.Millisecond, cancel) // a start takes some 50
		_, err := e.Exec(ctx, id, engine.ExecRequest{Command: []string{"sleep", "1000"}}, engine.IO{})
		giveUp.Stop()
		cancel()
		if err == nil {
			t.Error("a process that was given up has ended well")
		}
		if err := e.Stop(t.Context(), id, 0); err != nil {
			t.Errorf("given up after %d ms: %v", 5+7*n, err)
		}
	}
}
