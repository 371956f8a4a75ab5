package schedule_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // of the machine that runs the test, which may have none

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// TestSchedules has a daemon whose clock is set run jobs by schedule, and come back after two of their starts.
func TestSchedules(t *testing.T) {
	n := machine(t)
	now := time.Now().UTC()
	const behind = 2 * time.Hour
	n.SetClock(t, -behind)
	// Half an hour away from now, so that between two hours ago and now it came twice, the last time long ago.
	hourly := fmt.Sprintf("%d * * * *", (now.Minute()+30)%60)
	job := func(name, keys string) string {
		return fmt.Sprintf("  %s:\n    image: %s\n    command: echo ran\n    deploy: {mode: replicated-job}\n    x-gantry: {job: {%s}}\n", name, lab.Busybox, keys)
	}
	dir := project(t, "cron", job("tick", `schedule: "* * * * *"`), job("night", `schedule: "0 3 * * *", time_zone: Europe/Berlin`),
		job("skip", fmt.Sprintf("schedule: %q, missed: skip", hourly)), job("once", fmt.Sprintf("schedule: %q, missed: once", hourly)))
	n.GantryIn(t, dir, "up", "-d")
	for _, name := range []string{"tick", "night", "skip", "once"} {
		lab.Eventually(t, patience, name+" is recorded", func() error {
			if e := explain(t, n, dir, name); e.GetJob() == nil || name != "tick" && len(e.Job.Runs) > 0 {
				return fmt.Errorf("%v", e)
			}
			return nil
		})
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	next := explain(t, n, dir, "night").NextStart.AsTime()
	if away := next.Sub(now.Add(-behind)); next.In(berlin).Format(time.TimeOnly) != "03:00:00" || away < 0 || away > 25*time.Hour {
		t.Errorf("at %s the next night begins at %s", now.Add(-behind), next)
	}

	// A moment before a full minute.
	n.SetClock(t, time.Until(time.Now().Add(-behind).Truncate(time.Minute).Add(58*time.Second)))
	n.Gantry(t, "node", "label", n.Name(), "looked=at") // has the daemon look at its jobs, and so at the clock
	var first *gantryv1.JobRun
	lab.Eventually(t, patience, "the minute's job has run", func() error {
		runs := explain(t, n, dir, "tick").Job.Runs
		if len(runs) == 0 || runs[0].State != "succeeded" {
			return fmt.Errorf("its runs are %v", runs)
		}
		first = runs[0]
		return nil
	})
	due := first.ScheduledAt.AsTime()
	if late := first.StartedAt.AsTime().Sub(due); first.Cause != "schedule" || !due.Equal(due.Truncate(time.Minute)) || late < 0 || late > time.Minute {
		t.Errorf("scheduled at %s, started %s later: %v", due, late, first)
	}

	n.StopDaemon(t)
	n.SetClock(t, 0)
	n.StartDaemon(t)
	skipped := "2 starts were missed while no server led"
	for range 2 { // the second time for another daemon, which repeats nothing
		for name, want := range map[string][]string{"skip": {"skipped"}, "once": {"skipped", "succeeded"}} {
			e := awaitRuns(t, n, dir, name, want...)
			r := e.Job.Runs[0]
			if got := strings.TrimSuffix(r.Error, "; one run makes up for it"); got != skipped || (got != r.Error) != (name == "once") {
				t.Errorf("%s: %q", name, r.Error)
			}
			if at := now.Sub(r.ScheduledAt.AsTime()); at < 29*time.Minute || at > 31*time.Minute {
				t.Errorf("%s: the last start was due %s ago", name, at)
			}
			if ran := strings.Count(n.TryIn(dir, "logs", name).Stdout, "ran"); ran != len(want)-1 {
				t.Errorf("%s ran %d times", name, ran)
			}
		}
		n.KillDaemon(t)
		n.StartDaemon(t)
	}
}

// TestALeaderDiesWhenAJobIsDue kills the server that leads a moment before a full minute, and one a moment after: the minute's
// job runs, and runs once.
func TestALeaderDiesWhenAJobIsDue(t *testing.T) {
	c := lab.Cluster(t, 3)
	c.Node(0).ImportBusybox(t)
	// Something else runs everywhere, so that every machine has the image when one dies.
	c.Node(0).GantryIn(t, project(t, "all", service("agent", "mode: global", "")), "up")
	dir := project(t, "due", fmt.Sprintf("  tick: {image: %s, command: echo ran, deploy: {mode: replicated-job}, x-gantry: {job: {schedule: %q}}}\n", lab.Busybox, "* * * * *"))
	c.Node(0).GantryIn(t, dir, "up", "-d")
	var minutes []time.Time
	offset := time.Duration(0)
	for _, before := range []time.Duration{2 * time.Second, 0} {
		c.AwaitVoters(t)
		old := c.Leader(t)
		minute := time.Now().Add(offset).Truncate(time.Minute).Add(time.Minute)
		offset = time.Until(minute.Add(-4 * time.Second))
		for _, n := range c.Nodes() {
			n.SetClock(t, offset)
		}
		old.Gantry(t, "node", "label", old.Name(), "looked="+fmt.Sprint(before.Seconds())) // has it look at its jobs, and so at the clock
		time.Sleep(time.Until(minute.Add(-offset - before)))
		old.KillDaemon(t)
		next := c.Leader(t, c.Except(old)...)
		minutes = append(minutes, minute)
		lab.Eventually(t, patience, "the minute's job has run", func() error {
			for _, r := range explain(t, next, dir, "tick").Job.GetRuns() {
				if r.State == "succeeded" && !r.ScheduledAt.AsTime().Before(minute) {
					return nil
				}
			}
			return fmt.Errorf("no run since %s", minute)
		})
		old.StartDaemon(t)
	}
	runs := map[time.Time]int{}
	for _, r := range explain(t, c.Leader(t), dir, "tick").Job.Runs {
		runs[r.ScheduledAt.AsTime()]++
	}
	for at, n := range runs {
		if n != 1 {
			t.Errorf("%d runs are scheduled at %s", n, at)
		}
	}
	for _, minute := range minutes {
		if runs[minute.UTC()] != 1 {
			t.Errorf("at %s ran %d; all: %v", minute, runs[minute.UTC()], runs)
		}
	}
}
