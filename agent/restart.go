package agent

import (
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const (
	stableRun    = 10 * time.Second // unless the policy has a window; as in Docker
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
)

// policy is a restart policy with its defaults resolved.
type policy struct {
	condition gantryv1.RestartPolicy_Condition
	delay     time.Duration // 0: exponential
	attempts  int32         // 0: no limit
	stable    time.Duration // a run this long ends a streak of restarts
}

func policyOf(as *gantryv1.Assignment) policy {
	if as.Instance.Job > 0 {
		return policy{condition: gantryv1.RestartPolicy_CONDITION_NO} // who runs the job counts its starts
	}
	r := as.Spec.GetRestart()
	p := policy{condition: r.GetCondition(), delay: r.GetDelay().AsDuration(), attempts: r.GetMaxAttempts(), stable: stableRun}
	if window := r.GetWindow().AsDuration(); window > 0 {
		p.stable = window
	}
	if p.condition == gantryv1.RestartPolicy_CONDITION_UNSPECIFIED {
		p.condition = gantryv1.RestartPolicy_CONDITION_NO
		if as.Instance.App != "" && as.Instance.Slot > 0 {
			// A service that fails is put up again; one that ends with 0 has done its work.
			p.condition = gantryv1.RestartPolicy_CONDITION_ON_FAILURE
		}
	}
	return p
}

// restarts reports whether a process that exited with code shall be started again after streak restarts in a row.
func (p policy) restarts(code int32, streak int32) bool {
	if p.attempts > 0 && streak >= p.attempts {
		return false
	}
	switch p.condition {
	case gantryv1.RestartPolicy_CONDITION_ALWAYS, gantryv1.RestartPolicy_CONDITION_UNLESS_STOPPED:
		return true
	case gantryv1.RestartPolicy_CONDITION_ON_FAILURE:
		return code != 0
	}
	return false
}

// backoff is the wait before the next start, doubled with every restart in a row.
func (p policy) backoff(streak int32) time.Duration {
	if p.delay > 0 {
		return p.delay
	}
	return min(firstBackoff<<min(streak, 20), lastBackoff)
}
