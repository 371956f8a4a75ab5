package appwait

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const (
	unchecked = gantryv1.InstanceStatus_HEALTH_UNSPECIFIED
	healthy   = gantryv1.InstanceStatus_HEALTH_HEALTHY
)

func runs(health gantryv1.InstanceStatus_Health, since time.Time) []*gantryv1.ServiceView {
	return []*gantryv1.ServiceView{{Converged: true, Instances: []*gantryv1.InstanceView{{Status: &gantryv1.InstanceStatus{
		Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Health: health, StartedAt: timestamppb.New(since),
	}}}}}
}

func restarting(failure string) []*gantryv1.ServiceView {
	return []*gantryv1.ServiceView{{Failure: failure}}
}

// clock is a time that the test moves.
type clock struct{ at time.Time }

func (c *clock) judge(settle bool) *judge {
	return &judge{wait: Wait{Done: converged, coming: true, Settle: settle}, now: func() time.Time { return c.at }}
}

func (c *clock) want(t *testing.T, j *judge, after time.Duration, over bool) {
	t.Helper()
	c.at = c.at.Add(after)
	if j.settled() != over {
		t.Errorf("over: %v, want %v", !over, over)
	}
}

func hear(t *testing.T, j *judge, views []*gantryv1.ServiceView) {
	t.Helper()
	if err := j.hear(views); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsThereIsNotWaitedFor(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	for name, views := range map[string][]*gantryv1.ServiceView{
		"old": runs(unchecked, c.at.Add(-time.Minute)), "checked": runs(healthy, c.at), "empty": nil,
	} {
		t.Run(name, func(t *testing.T) {
			j := c.judge(true)
			hear(t, j, views)
			c.want(t, j, 0, true)
		})
	}
	j := c.judge(false)
	hear(t, j, runs(unchecked, c.at))
	c.want(t, j, 0, true)
}

func TestAYoungContainerHasToRunForAMoment(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	j := c.judge(true)
	hear(t, j, runs(unchecked, c.at.Add(-300*time.Millisecond)))
	c.want(t, j, 0, false)
	c.want(t, j, 600*time.Millisecond, false)
	hear(t, j, runs(unchecked, c.at.Add(-900*time.Millisecond)))
	c.want(t, j, 100*time.Millisecond, true)
}

func TestACrashMeanwhileBeginsAnew(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	j := c.judge(true)
	hear(t, j, runs(unchecked, c.at))
	c.want(t, j, 100*time.Millisecond, false)
	hear(t, j, restarting(""))
	c.want(t, j, 5*time.Second, false)
	hear(t, j, runs(unchecked, c.at))
	c.want(t, j, 900*time.Millisecond, false)
	// A restart that no view has shown.
	hear(t, j, runs(unchecked, c.at))
	c.want(t, j, 900*time.Millisecond, false)
	if err := j.hear(restarting("keeps exiting")); err == nil {
		t.Error("a failure while it settles is not told")
	}
}

func TestANodeWhoseClockIsAheadHoldsNoLonger(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	j := c.judge(true)
	ahead := c.at.Add(time.Hour)
	hear(t, j, runs(unchecked, ahead))
	c.want(t, j, 900*time.Millisecond, false)
	hear(t, j, runs(unchecked, ahead))
	c.want(t, j, 100*time.Millisecond, true)
}

// What could not be made is tried again: up without a change waits for that, and the next failure is one.
func TestAnOldFailureIsTriedAgain(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	unmade := func(at time.Time) []*gantryv1.ServiceView {
		return []*gantryv1.ServiceView{{Failure: "web.1: the port is taken", Instances: []*gantryv1.InstanceView{{
			Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "a"}},
			Status:   &gantryv1.InstanceStatus{Phase: gantryv1.InstanceStatus_PHASE_FAILED, FinishedAt: timestamppb.New(at)},
		}}}}
	}
	if err := c.judge(true).hear(unmade(c.at)); err == nil {
		t.Error("a failure of what was changed does not end the wait")
	}
	again := func() *judge {
		j := c.judge(false)
		j.wait.Again = true
		hear(t, j, unmade(c.at))
		hear(t, j, restarting(""))
		return j
	}
	j := again()
	hear(t, j, runs(healthy, c.at))
	c.want(t, j, 0, true)
	if err := again().hear(unmade(c.at.Add(time.Second))); err == nil {
		t.Error("a failure of the next attempt does not end the wait")
	}
}
