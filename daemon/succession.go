package daemon

import (
	"context"
	"time"

	"github.com/gantryd/gantry/cluster"
)

// loseLeader says that the session with the leader has ended. It may be called by anyone and does not wait.
func (m *machine) loseLeader() {
	m.mu.Lock()
	m.inTouch, m.alone = false, time.Now()
	m.mu.Unlock()
	select {
	case m.lost <- struct{}{}:
	default:
	}
}

// succeed has this server follow a leader whose process is gone, as soon as the session with it has ended.
func (r *serverRole) succeed(ctx context.Context, member *cluster.Member) error {
	for {
		select {
		case <-r.machine.lost:
		case <-ctx.Done():
			return nil
		}
		asked, err := member.Succeed(ctx)
		if err != nil && ctx.Err() == nil {
			r.d.Logger.Warn("the leader's process is gone, and this server cannot follow it at once", "err", err)
		} else if asked {
			r.d.Logger.Info("the leader's process is gone: this server asks to be elected")
		}
	}
}
