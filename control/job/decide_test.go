package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

const (
	pending = gantryv1.InstanceStatus_PHASE_PENDING
	phase   = gantryv1.InstanceStatus_PHASE_RUNNING
	exited  = gantryv1.InstanceStatus_PHASE_EXITED
)

// world is one job with its instances, as nodes would move them.
type world struct {
	service   *gantryv1.Service
	job       *gantryv1.Job
	instances []*gantryv1.InstanceView
	nodes     map[string]progress.NodeState
	eligible  []string
	blocked   bool
	made      int
	now       time.Time
	again     time.Time
}

func newWorld(mode string, replicas int32, spec *gantryv1.JobSpec) *world {
	return &world{
		now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), nodes: map[string]progress.NodeState{},
		service: &gantryv1.Service{
			Meta: store.NewMeta("p/a/task"), Environment: "p", App: "a", Name: "task", Replicas: replicas, Release: 1,
			Spec: &gantryv1.ServiceSpec{Mode: mode, Job: spec, Container: &gantryv1.ContainerSpec{}},
		},
	}
}

// step decides and applies once; it reports whether anything changed.
func (w *world) step(t rapid.TB) bool {
	plan := Decide(Input{
		Service: w.service, Job: w.job, Instances: w.instances, Blocked: w.blocked, Now: w.now,
		Eligible: func() []string { return slices.Clone(w.eligible) }, Node: func(id string) progress.NodeState { return w.nodes[id] },
	})
	if plan.Job != nil {
		w.job = plan.Job
	}
	w.again = plan.Again
	for _, c := range plan.Changes {
		w.apply(t, c)
	}
	return plan.Job != nil || len(plan.Changes) > 0
}

func (w *world) apply(t rapid.TB, c Change) {
	if c.Action == Create {
		w.made++
		i := newInstance(w.service, c)
		i.Meta.Key = fmt.Sprint("i", w.made)
		if i.Node == "" {
			i.Node = "n1" // as the scheduler does
		}
		w.instances = append(w.instances, &gantryv1.InstanceView{Instance: i, Status: &gantryv1.InstanceStatus{Phase: pending}})
		return
	}
	at := slices.IndexFunc(w.instances, func(v *gantryv1.InstanceView) bool { return v.Instance.Meta.Key == c.Instance })
	if at < 0 {
		if c.Action != Forget {
			t.Fatalf("the plan names the unknown instance %s", c.Instance)
		}
		return
	}
	i := w.instances[at].Instance
	switch c.Action {
	case Forget:
		w.instances = slices.Delete(w.instances, at, at+1)
	case SetDesired:
		i.Desired = c.Desired
	case SetOutcome:
		i.Outcome = c.Outcome
		if i.Desired == wantRunning {
			i.Desired = wantStopped
		}
	case Retry:
		i.Attempt, i.RestartGeneration = c.Attempt, i.RestartGeneration+1
	}
}

func (w *world) settle(t rapid.TB) {
	for range 100 {
		if !w.step(t) {
			return
		}
	}
	t.Fatalf("does not settle: %v", w.job)
}

// end has an instance's process end with a code.
func (w *world) end(slot int32, code int32) {
	for _, v := range w.instances {
		if v.Instance.Slot == slot && v.Instance.Outcome == "" && v.Instance.Desired == wantRunning {
			v.Status = &gantryv1.InstanceStatus{
				Phase: exited, ExitCode: code, FinishedAt: timestamppb.New(w.now), RestartGeneration: v.Instance.RestartGeneration,
			}
		}
	}
}

// leave has nodes take away what is to be removed, and stop what is to be stopped.
func (w *world) leave() {
	w.instances = slices.DeleteFunc(w.instances, func(v *gantryv1.InstanceView) bool {
		if v.Instance.Desired == wantStopped && v.Status.Phase != exited {
			v.Status = &gantryv1.InstanceStatus{Phase: exited, ExitCode: 143, FinishedAt: timestamppb.New(w.now)}
		}
		return v.Instance.Desired == wantRemoved && w.nodes[v.Instance.Node] != progress.NodeLost
	})
}

// runs is "1 running 0/3; …".
func (w *world) runs() string {
	var out []string
	for _, r := range w.job.GetRuns() {
		text := fmt.Sprintf("%d %s %d/%d", r.Number, r.State, r.Succeeded, r.Completions)
		if r.Error != "" {
			text += " " + r.Error
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// active is the slots with an instance that is to run, "1 2 3".
func (w *world) active() string {
	var out []string
	for _, v := range w.instances {
		if v.Instance.Outcome == "" && v.Instance.Desired == wantRunning {
			out = append(out, fmt.Sprint(v.Instance.Slot))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w *world) expect(t *testing.T, runs, active string) {
	t.Helper()
	w.settle(t)
	if w.runs() != runs || w.active() != active {
		t.Fatalf("got  %q, active %q\nwant %q, active %q", w.runs(), w.active(), runs, active)
	}
}

func TestARunPerRelease(t *testing.T) {
	w := newWorld("replicated-job", 2, nil)
	w.expect(t, "1 running 0/2", "1 2")
	w.end(1, 0)
	w.expect(t, "1 running 1/2", "2")
	w.end(2, 0)
	w.expect(t, "1 succeeded 2/2", "")
	w.service.Release = 2
	w.expect(t, "1 succeeded 2/2; 2 running 0/2", "1 2")
	w.leave()
	w.service.Release = 3
	w.expect(t, "1 succeeded 2/2; 2 replaced 0/2 another run has begun; 3 running 0/2", "1 2")
	w.leave()
	if len(w.instances) != 2 {
		t.Fatalf("what was replaced is still there: %v", w.instances)
	}
	w.service.RestartGeneration++
	w.expect(t, "1 succeeded 2/2; 2 replaced 0/2 another run has begun; 3 replaced 0/2 another run has begun; 4 running 0/2", "1 2")
}

func TestCompletionsAndParallelism(t *testing.T) {
	w := newWorld("replicated-job", 1, &gantryv1.JobSpec{Completions: 5, Parallelism: 2})
	w.expect(t, "1 running 0/5", "1 2")
	w.end(2, 0)
	w.expect(t, "1 running 1/5", "1 3")
	for slot := range int32(6) {
		w.end(slot, 0)
		w.settle(t)
	}
	w.expect(t, "1 succeeded 5/5", "")
	if len(w.instances) != 5 {
		t.Fatalf("its instances are kept for their logs: %d", len(w.instances))
	}
}

func TestRetries(t *testing.T) {
	w := newWorld("replicated-job", 2, &gantryv1.JobSpec{Retries: 1})
	w.settle(t)
	w.end(1, 3)
	w.settle(t)
	if want := w.now.Add(firstBackoff); !w.again.Equal(want) || w.instances[0].Instance.Attempt != 1 {
		t.Fatalf("no back-off: %v", w.instances[0])
	}
	w.now = w.again
	w.expect(t, "1 running 0/2", "1 2")
	if i := w.instances[0].Instance; i.Attempt != 2 || i.RestartGeneration != 1 {
		t.Fatalf("not started again: %v", i)
	}
	w.end(1, 4)
	w.expect(t, "1 failed 0/2 task.1 exited with code 4, after 2 starts", "")
	if got := w.job.Runs[0].Failures; got != 2 {
		t.Errorf("%d failures", got)
	}
	w.leave()
	w.settle(t)
	for _, v := range w.instances {
		if v.Instance.Outcome != Failed || v.Instance.Desired != wantStopped {
			t.Errorf("still takes its room: %v", v.Instance)
		}
	}
	w.service.Spec.Job.Retries = -1
	w.service.RestartGeneration++
	for range 30 {
		w.end(1, 1)
		w.now = w.now.Add(lastBackoff)
		w.settle(t)
	}
	if got := w.job.Runs[1]; got.State != Running || got.Failures < 20 {
		t.Errorf("any number of retries: %v", got)
	}
}

func TestTimeout(t *testing.T) {
	w := newWorld("replicated-job", 1, &gantryv1.JobSpec{Timeout: durationpb.New(time.Minute)})
	w.settle(t)
	if !w.again.Equal(w.now.Add(time.Minute)) {
		t.Fatalf("looks again at %s", w.again)
	}
	w.now = w.again
	w.expect(t, "1 failed 0/1 it has not ended within 1m0s", "")
}

func TestStopAndStart(t *testing.T) {
	w := newWorld("replicated-job", 1, nil)
	w.settle(t)
	w.service.Stopped = true
	w.expect(t, "1 stopped 0/1 the service was stopped", "")
	w.leave()
	w.service.Stopped = false
	w.service.RestartGeneration++
	w.expect(t, "1 stopped 0/1 the service was stopped; 2 running 0/1", "1")

	w = newWorld("replicated-job", 1, &gantryv1.JobSpec{Schedule: "0 * * * *"})
	w.settle(t)
	w.service.Stopped = true
	w.settle(t)
	w.service.Stopped = false
	w.service.RestartGeneration++
	w.expect(t, "", "") // a schedule goes on, and nothing is due
	w.service.RestartGeneration++
	w.expect(t, "1 running 0/1", "1") // gantry restart runs it now
}

func TestDependenciesHoldARunBack(t *testing.T) {
	w := newWorld("replicated-job", 1, nil)
	w.blocked = true
	w.expect(t, "", "")
	w.blocked = false
	w.expect(t, "1 running 0/1", "1")
}

func TestSchedule(t *testing.T) {
	for _, test := range []struct {
		name  string
		spec  *gantryv1.JobSpec
		world func(w *world)
		want  string
	}{
		{"waits for its time", nil, func(w *world) { w.now = w.now.Add(59 * time.Minute) }, ""},
		{"in time", nil, func(w *world) { w.now = w.now.Add(time.Hour) }, "1 running 0/1"},
		{"a little late", nil, func(w *world) { w.now = w.now.Add(time.Hour + late) }, "1 running 0/1"},
		{"missed", nil, func(w *world) { w.now = w.now.Add(time.Hour + late + time.Second) },
			"1 skipped 0/0 a start was missed while no server led"},
		{"missed, once", &gantryv1.JobSpec{Missed: "once"}, func(w *world) { w.now = w.now.Add(5*time.Hour + 10*time.Minute) },
			"1 skipped 0/0 5 starts were missed while no server led; one run makes up for it; 2 running 0/1"},
		{"some missed, the last in time", nil, func(w *world) { w.now = w.now.Add(3 * time.Hour) },
			"1 skipped 0/0 2 starts were missed while no server led; 2 running 0/1"},
		{"years missed", nil, func(w *world) { w.now = w.now.Add(5*365*24*time.Hour + 10*time.Minute) },
			"1 skipped 0/0 more than 10000 starts were missed while no server led"},
		{"years missed, the last in time", nil, func(w *world) { w.now = w.now.Add(5 * 365 * 24 * time.Hour) },
			"1 skipped 0/0 more than 10000 starts were missed while no server led; 2 running 0/1"},
		{"suspended for hours", &gantryv1.JobSpec{Missed: "once"}, func(w *world) {
			w.service.Stopped = true
			w.settle(nil)
			w.now = w.now.Add(5*time.Hour + 10*time.Minute)
			w.service.Stopped = false
			w.service.RestartGeneration++
		}, ""},
		{"another schedule has missed nothing", &gantryv1.JobSpec{Missed: "once"}, func(w *world) {
			w.now = w.now.Add(10*time.Minute + 30*time.Second)
			w.service.Release, w.service.Spec.Job.Schedule = 2, "*/2 * * * *"
		}, ""},
		{"a clock that was an hour ahead", nil, func(w *world) {
			w.now = w.now.Add(61 * time.Minute)
			w.settle(nil)
			w.end(1, 0)
			w.settle(nil)
			w.now = w.now.Add(-61 * time.Minute)
			w.settle(nil)
			w.now = w.now.Add(time.Hour)
		}, "1 succeeded 1/1"},
		{"a clock that was a day ahead", nil, func(w *world) {
			w.now = w.now.Add(24 * time.Hour)
			w.settle(nil)
			w.now = w.now.Add(-24 * time.Hour)
			w.settle(nil)
			w.now = w.now.Add(time.Hour)
		}, "1 skipped 0/0 23 starts were missed while no server led; 2 running 0/1; 3 skipped 0/0 run 2 had not ended"},
		{"overlap forbidden", nil, func(w *world) {
			w.now = w.now.Add(time.Hour)
			w.step(nil)
			w.now = w.now.Add(time.Hour)
		}, "1 running 0/1; 2 skipped 0/0 run 1 had not ended"},
		{"overlap allowed", &gantryv1.JobSpec{Overlap: "allow"}, func(w *world) {
			w.now = w.now.Add(time.Hour)
			w.step(nil)
			w.now = w.now.Add(time.Hour)
		}, "1 running 0/1; 2 running 0/1"},
		{"overlap replaces", &gantryv1.JobSpec{Overlap: "replace"}, func(w *world) {
			w.now = w.now.Add(time.Hour)
			w.step(nil)
			w.now = w.now.Add(time.Hour)
		}, "1 replaced 0/1 the next run was due; 2 running 0/1"},
		{"a new release waits for its time", nil, func(w *world) { w.service.Release = 2 }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.spec == nil {
				test.spec = &gantryv1.JobSpec{}
			}
			test.spec.Schedule = "0 * * * *"
			w := newWorld("replicated-job", 1, test.spec)
			w.settle(t)
			test.world(w)
			w.settle(t)
			if w.runs() != test.want {
				t.Errorf("got  %s\nwant %s", w.runs(), test.want)
			}
		})
	}
}

func TestOnlyTheLastRunsAreKept(t *testing.T) {
	w := newWorld("replicated-job", 1, &gantryv1.JobSpec{Schedule: "* * * * *"})
	w.settle(t)
	for range 50 {
		w.now = w.now.Add(time.Minute)
		w.settle(t)
		w.end(1, 0)
		w.settle(t)
		w.leave()
	}
	if n := len(w.job.Runs); n != keepRuns || w.job.Runs[n-1].Number != 50 || w.job.Runs[n-1].State != Succeeded {
		t.Errorf("%d runs: %s", n, w.runs())
	}
	if len(w.instances) != 1 {
		t.Errorf("%d instances are kept", len(w.instances))
	}
}

func TestLossOfNodes(t *testing.T) {
	w := newWorld("replicated-job", 2, nil)
	w.settle(t)
	w.instances[0].Instance.Node = "n2"
	w.nodes["n2"] = progress.NodeLost
	w.expect(t, "1 running 0/2", "1 2")
	if len(w.instances) != 3 || w.instances[0].Instance.Desired != wantRemoved {
		t.Fatalf("not run elsewhere: %v", w.instances)
	}
	w.nodes["n2"] = progress.NodeServes
	w.leave()
	w.nodes["n1"] = progress.NodeDrained
	w.expect(t, "1 running 0/2", "")
	w.leave()
	w.nodes["n1"] = progress.NodeServes
	w.expect(t, "1 running 0/2", "1 2")
	w.nodes["n1"] = progress.NodeRemoved
	w.step(t)
	w.nodes["n1"] = progress.NodeServes
	w.expect(t, "1 running 0/2", "1 2")
	if len(w.instances) != 2 {
		t.Fatalf("objects of a removed node are left: %v", w.instances)
	}
}

func TestGlobal(t *testing.T) {
	w := newWorld("global-job", 0, nil)
	w.eligible = []string{"n1", "n2", "n3"}
	w.expect(t, "1 running 0/3", "1 2 3")
	for n, v := range w.instances {
		if v.Instance.Node != w.eligible[n] {
			t.Errorf("slot %d is on %s", v.Instance.Slot, v.Instance.Node)
		}
	}
	w.end(1, 0)
	w.nodes["n2"] = progress.NodeLost
	w.expect(t, "1 running 1/3", "2 3") // it may come back
	w.nodes["n2"] = progress.NodeRemoved
	w.expect(t, "1 running 1/2", "3")
	w.end(3, 0)
	w.expect(t, "1 succeeded 2/2", "")

	w = newWorld("global-job", 0, nil)
	w.expect(t, "1 failed 0/0 no node is eligible", "")
}

func TestWhatIsNoInstanceOfARunGoes(t *testing.T) {
	w := newWorld("replicated-job", 1, nil)
	w.instances = []*gantryv1.InstanceView{{
		Instance: &gantryv1.Instance{Meta: store.NewMeta("old"), Node: "n1", Slot: 1, Desired: wantRunning}, Status: &gantryv1.InstanceStatus{},
	}}
	w.settle(t)
	if w.instances[0].Instance.Desired != wantRemoved {
		t.Errorf("%v", w.instances[0])
	}
}

// TestRandomSchedules lets processes end, nodes go and come, people stop and start, in any order, and checks in every state:
// never two instances in a slot of a run but where a node is lost, never more at a time than allowed, no run twice.
func TestRandomSchedules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := &gantryv1.JobSpec{
			Completions: rapid.Int32Range(0, 4).Draw(t, "completions"), Parallelism: rapid.Int32Range(0, 3).Draw(t, "parallelism"),
			Retries: rapid.Int32Range(-1, 2).Draw(t, "retries"), Overlap: rapid.SampledFrom([]string{"", "allow", "replace"}).Draw(t, "overlap"),
		}
		if rapid.Bool().Draw(t, "scheduled") {
			spec.Schedule = "*/10 * * * *"
		}
		w := newWorld("replicated-job", 2, spec)
		seen := map[int64]string{}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			w.happen(t)
			w.check(t, seen)
		}
		w.service.Stopped, w.nodes = false, map[string]progress.NodeState{}
		w.service.Spec.Job.Schedule = ""
		for range 200 {
			w.leave()
			for slot := range int32(5) {
				w.end(slot, 0)
			}
			w.now = w.now.Add(lastBackoff)
			if changed := w.step(t); !changed && !strings.Contains(w.runs(), Running) {
				return
			}
			w.check(t, seen)
		}
		t.Fatalf("does not end: %s, active %s", w.runs(), w.active())
	})
}

func (w *world) happen(t *rapid.T) {
	switch rapid.IntRange(0, 11).Draw(t, "what") {
	case 0:
		w.service.Release++
	case 1:
		w.service.Stopped = !w.service.Stopped
	case 2:
		w.service.RestartGeneration++
	case 3:
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 900).Draw(t, "seconds")) * time.Second)
	case 4, 5:
		w.end(rapid.Int32Range(1, 4).Draw(t, "slot"), rapid.Int32Range(0, 1).Draw(t, "code"))
	case 6:
		w.nodes["n1"] = rapid.SampledFrom([]progress.NodeState{progress.NodeServes, progress.NodeLost, progress.NodeDrained}).Draw(t, "node")
	case 7:
		w.leave()
	case 8:
		if len(w.instances) > 0 { // the scheduler makes room
			v := rapid.SampledFrom(w.instances).Draw(t, "evicted")
			v.Instance = proto.Clone(v.Instance).(*gantryv1.Instance)
			v.Instance.Desired = wantRemoved
		}
	default:
		w.step(t)
	}
}

func (w *world) check(t *rapid.T, seen map[int64]string) {
	type place struct {
		run  int64
		slot int32
	}
	slots, active := map[place]int{}, map[int64]int32{}
	for _, v := range w.instances {
		i := v.Instance
		if i.Desired == wantRemoved && w.nodes[i.Node] == progress.NodeLost {
			continue
		}
		slots[place{i.Job, i.Slot}]++
		if i.Outcome == "" && i.Desired == wantRunning {
			active[i.Job]++
		}
	}
	for p, n := range slots {
		if n > 1 && w.nodes["n1"] == progress.NodeServes && !w.wasLost() {
			t.Fatalf("slot %d of run %d has %d instances", p.slot, p.run, n)
		}
	}
	for run, n := range active {
		if most := w.service.Spec.Job.Parallelism; most > 0 && n > most {
			t.Fatalf("run %d has %d at a time", run, n)
		}
	}
	for _, r := range w.job.GetRuns() {
		what := fmt.Sprint(r.Cause, r.Release, r.ScheduledAt, r.StartedAt)
		if was, ok := seen[r.Number]; ok && was != what {
			t.Fatalf("run %d was %s and is %s", r.Number, was, what)
		}
		seen[r.Number] = what
		if r.State == Succeeded && r.Succeeded < r.Completions {
			t.Fatalf("not all have succeeded: %v", r)
		}
	}
}

// wasLost reports that the node's instances were replaced while it was lost, and it has not been told yet.
func (w *world) wasLost() bool {
	return slices.ContainsFunc(w.instances, func(v *gantryv1.InstanceView) bool { return v.Instance.Desired == wantRemoved })
}
