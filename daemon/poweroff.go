package daemon

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/gantryd/gantry/agent"
)

// endLimit is how long instances may take to end with their machine. The unit of systemd gives the daemon half a minute more.
const endLimit = 150 * time.Second

// awaitEnd returns when the daemon has been told to end, or a part has failed. Containers go on without the daemon, but not
// without the machine.
func (d *daemon) awaitEnd(ctx, told context.Context, ag *agent.Agent) error {
	select {
	case <-told.Done():
	case <-ctx.Done():
		return nil
	}
	if machineGoesDown(ctx) {
		ctx, cancel := context.WithTimeout(ctx, endLimit)
		defer cancel()
		ag.End(ctx)
	}
	return nil
}

// machineGoesDown asks systemd. Elsewhere nobody knows.
func machineGoesDown(ctx context.Context) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	state, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() // it fails unless the state is "running"
	return strings.TrimSpace(string(state)) == "stopping"
}
