package build

import (
	"context"
	"time"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"

	"github.com/gantryd/gantry/internal/groupmove"
)

// startTime is more than runc takes to get a step's process into its control groups.
const startTime = 200 * time.Millisecond

// quickStart has the kernel ready to move a step's process when runc does.
type quickStart struct {
	executor.Executor
	mover *groupmove.Mover
}

// Run runs a step.
func (q quickStart) Run(ctx context.Context, id string, rootfs executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	release := q.mover.Hold()
	defer release()
	defer time.AfterFunc(startTime, release).Stop()
	return q.Executor.Run(ctx, id, rootfs, mounts, process, started)
}
