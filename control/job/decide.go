package job

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/progress"
)

// Input is all that a decision about one job looks at.
type Input struct {
	Service   *gantryv1.Service
	Job       *gantryv1.Job // what is recorded of it; nil before the first decision
	Instances []*gantryv1.InstanceView
	Blocked   bool                               // a dependency is not there yet
	Waited    time.Time                          // since when it was blocked until now; zero if it was not
	Eligible  func() []string                    // of a global job: the nodes to run on
	Node      func(id string) progress.NodeState // nil: all serve
	Pinned    func(i *gantryv1.Instance) bool    // its data is on its node; nil: never
	Now       time.Time
}

// Action is what a Change does.
type Action int

// The actions.
const (
	Create     Action = iota // make an instance of Run in Slot, on Node if it is not empty
	SetDesired               // set Instance's wanted state to Desired
	SetOutcome               // Instance has ended for good
	Retry                    // start Instance once more
	Forget                   // delete the object of Instance
)

// Change is one thing to do.
type Change struct {
	Action   Action
	Instance string
	Desired  gantryv1.Instance_Desired
	Outcome  string
	Run      int64
	Release  int64
	Slot     int32
	Attempt  int32
	Node     string
}

// Plan is the outcome of a decision.
type Plan struct {
	// Job is what is recorded from now on, to be stored with the changes; nil if it stays as it is.
	Job     *gantryv1.Job
	Changes []Change
	// Again asks for another decision at this time even if nothing changes; zero for no.
	Again time.Time
}

// States of a run, and outcomes of instances.
const (
	Running   = "running"
	Succeeded = "succeeded"
	Failed    = "failed"
	Skipped   = "skipped"
	Stopped   = "stopped"
	Replaced  = "replaced"
)

const (
	wantRunning = gantryv1.Instance_DESIRED_RUNNING
	wantStopped = gantryv1.Instance_DESIRED_STOPPED
	wantRemoved = gantryv1.Instance_DESIRED_REMOVED

	keepRuns   = 20   // besides those that are running
	maxChanges = 2000 // in one plan
)

type decision struct {
	Input
	job  *gantryv1.Job
	spec *gantryv1.JobSpec
	plan Plan
}

// Decide compares what a job wants with what it has. It is pure. A service that is being removed is the rollout's affair.
func Decide(in Input) Plan {
	if in.Service.Removing {
		return Plan{}
	}
	d := &decision{Input: in, spec: in.Service.Spec.GetJob()}
	d.open()
	if d.Service.Stopped {
		d.halt()
	} else {
		d.start()
	}
	for _, r := range d.job.Runs {
		if r.State == Running {
			d.drive(r)
		}
	}
	d.clear()
	d.trim()
	if in.Job == nil || !proto.Equal(in.Job, d.job) {
		d.plan.Job = d.job
	}
	return d.plan
}

// open takes the record in hand. A schedule begins with its service; its first release is not run at once.
func (d *decision) open() {
	if d.Job != nil {
		d.job = proto.Clone(d.Job).(*gantryv1.Job)
		return
	}
	d.job = &gantryv1.Job{Meta: store.NewMeta(d.Service.Meta.Key), Handled: timestamppb.New(d.Now), Generation: d.Service.RestartGeneration}
}

func (d *decision) add(c Change) { d.plan.Changes = append(d.plan.Changes, c) }

func (d *decision) again(at time.Time) {
	if d.plan.Again.IsZero() || at.Before(d.plan.Again) {
		d.plan.Again = at
	}
}

func (d *decision) set(i *gantryv1.Instance, want gantryv1.Instance_Desired) {
	switch {
	case i.Desired == want || i.Desired == wantRemoved:
	case i.Node == "" && want != wantRunning:
		d.add(Change{Action: Forget, Instance: i.Meta.Key})
	default:
		d.add(Change{Action: SetDesired, Instance: i.Meta.Key, Desired: want})
	}
}

// halt ends what is running: a person has stopped the service.
func (d *decision) halt() {
	d.job.Stopped = true
	for _, r := range d.job.Runs {
		if r.State == Running {
			d.end(r, Stopped, "the service was stopped")
		}
	}
}

func (d *decision) end(r *gantryv1.JobRun, state, why string) {
	r.State, r.Error, r.FinishedAt = state, why, timestamppb.New(d.Now)
}

// views are the instances of a run.
func (d *decision) views(r *gantryv1.JobRun) (out []*gantryv1.InstanceView) {
	for _, v := range d.Instances {
		if v.Instance.Job == r.Number {
			out = append(out, v)
		}
	}
	return out
}

func (d *decision) node(i *gantryv1.Instance) progress.NodeState {
	if d.Node == nil || i.Node == "" {
		return progress.NodeServes
	}
	return d.Node(i.Node)
}

// drive takes a run one step on.
func (d *decision) drive(r *gantryv1.JobRun) {
	if timeout := d.spec.GetTimeout().AsDuration(); timeout > 0 {
		at := r.StartedAt.AsTime().Add(timeout)
		if !d.Now.Before(at) {
			d.end(r, Failed, fmt.Sprintf("it has not ended within %s", timeout))
			return
		}
		d.again(at)
	}
	taken := map[int32]bool{} // slots that need no new instance now
	attempts := map[int32]int32{}
	active := int32(0)
	r.Succeeded, r.Failures = 0, 0
	for _, v := range d.views(r) {
		i := v.Instance
		attempts[i.Slot] = max(attempts[i.Slot], i.Attempt)
		switch d.look(r, v) {
		case isDone:
			taken[i.Slot] = true
			r.Succeeded++
		case isActive:
			taken[i.Slot] = true
			active++
		case isLeaving:
			taken[i.Slot] = true
		case isFailed:
			r.Failures++
		}
		if r.State != Running {
			return
		}
	}
	for _, n := range attempts {
		r.Failures += max(0, n-1)
	}
	d.skipLost(r, taken)
	if r.Succeeded >= r.Completions {
		d.end(r, Succeeded, "")
		return
	}
	d.fill(r, taken, attempts, active)
}

// what an instance is to its run.
type what int

const (
	isGone    what = iota // its slot is free
	isActive              // on its way
	isLeaving             // its slot is not free yet
	isDone
	isFailed
)

// look judges one instance of a running run and decides what becomes of it.
func (d *decision) look(r *gantryv1.JobRun, v *gantryv1.InstanceView) what {
	i := v.Instance
	if i.Outcome == Succeeded {
		return isDone
	}
	switch at := d.node(i); {
	case at == progress.NodeRemoved:
		d.add(Change{Action: Forget, Instance: i.Meta.Key})
		return isGone
	case i.Desired == wantRemoved && at == progress.NodeLost:
		return isGone
	case i.Desired == wantRemoved:
		return isLeaving
	case at == progress.NodeLost && d.waits(r, i):
		return isActive
	case at == progress.NodeLost:
		d.set(i, wantRemoved)
		return isGone
	}
	st := v.Status
	switch {
	case !progress.Stale(v) && progress.Completed(st):
		d.add(Change{Action: SetOutcome, Instance: i.Meta.Key, Outcome: Succeeded})
		return isDone
	case !progress.Stale(v) && (st.GetPhase() == gantryv1.InstanceStatus_PHASE_EXITED || st.GetPhase() == gantryv1.InstanceStatus_PHASE_FAILED):
		return d.failed(r, v)
	case d.node(i) == progress.NodeDrained:
		d.set(i, wantRemoved)
		return isLeaving
	}
	return isActive
}

// waits reports that nothing can stand in for an instance whose node is down.
func (d *decision) waits(r *gantryv1.JobRun, i *gantryv1.Instance) bool {
	return len(r.Nodes) > 0 || d.Pinned != nil && d.Pinned(i)
}

// failed starts an instance again, when its time has come, or gives the run up.
func (d *decision) failed(r *gantryv1.JobRun, v *gantryv1.InstanceView) what {
	i := v.Instance
	if retries := d.spec.GetRetries(); retries >= 0 && i.Attempt > retries {
		d.add(Change{Action: SetOutcome, Instance: i.Meta.Key, Outcome: Failed})
		d.end(r, Failed, reason(v))
		r.Failures++
		return isFailed
	}
	at := v.Status.GetFinishedAt().AsTime().Add(d.backoff(i.Attempt))
	if d.Now.Before(at) {
		d.again(at)
		return isActive
	}
	d.add(Change{Action: Retry, Instance: i.Meta.Key, Attempt: i.Attempt + 1})
	return isActive
}

func reason(v *gantryv1.InstanceView) string {
	why := progress.Failure(v)
	if n := v.Instance.Attempt; n > 1 {
		why += fmt.Sprintf(", after %d starts", n)
	}
	return why
}

const (
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// backoff is what restart_policy.delay says, or doubles with every start.
func (d *decision) backoff(attempt int32) time.Duration {
	if delay := d.Service.Spec.GetContainer().GetRestart().GetDelay().AsDuration(); delay > 0 {
		return delay
	}
	return min(firstBackoff<<min(max(attempt-1, 0), 10), lastBackoff)
}

// skipLost takes nodes out of a global run that have left the cluster or are drained.
func (d *decision) skipLost(r *gantryv1.JobRun, taken map[int32]bool) {
	if len(r.Nodes) == 0 || d.Node == nil {
		return
	}
	r.Completions = 0
	for n, id := range r.Nodes {
		slot := int32(n + 1)
		if at := d.Node(id); !taken[slot] && (at == progress.NodeRemoved || at == progress.NodeDrained) {
			taken[slot] = true
			continue
		}
		r.Completions++
	}
}

// fill makes instances in free slots, as many as may be active at a time.
func (d *decision) fill(r *gantryv1.JobRun, taken map[int32]bool, attempts map[int32]int32, active int32) {
	slots := r.Completions
	if len(r.Nodes) > 0 {
		slots = int32(len(r.Nodes))
	}
	most := d.spec.GetParallelism()
	for slot := int32(1); slot <= slots && (most == 0 || active < most); slot++ {
		if taken[slot] {
			continue
		}
		if len(d.plan.Changes) >= maxChanges {
			d.again(d.Now)
			return
		}
		c := Change{Action: Create, Run: r.Number, Release: r.Release, Slot: slot, Attempt: max(1, attempts[slot])}
		if len(r.Nodes) > 0 {
			c.Node = r.Nodes[slot-1]
		}
		d.add(c)
		active++
	}
}

// clear stops what belongs to no running run, and takes away what belongs to none that is still looked at.
func (d *decision) clear() {
	shown := d.shown()
	for _, v := range d.Instances {
		i := v.Instance
		r := d.run(i.Job)
		switch {
		case r.GetState() == Running:
		case d.node(i) == progress.NodeRemoved:
			d.add(Change{Action: Forget, Instance: i.Meta.Key})
		case r == nil || r.Number != shown || r.State == Replaced:
			d.set(i, wantRemoved)
		default:
			d.set(i, wantStopped)
			d.settle(v)
		}
	}
}

// settle notes that an instance of a run that is over has ended, and takes nothing from its node any more.
func (d *decision) settle(v *gantryv1.InstanceView) {
	if v.Instance.Outcome != "" || v.Instance.Desired != wantStopped {
		return
	}
	switch v.Status.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_FAILED, gantryv1.InstanceStatus_PHASE_CREATED:
		d.add(Change{Action: SetOutcome, Instance: v.Instance.Meta.Key, Outcome: Failed})
	}
}

func (d *decision) run(number int64) *gantryv1.JobRun {
	for _, r := range d.job.Runs {
		if r.Number == number {
			return r
		}
	}
	return nil
}

// shown is the last run that was made and is not running any more: its instances are kept, so that their logs can be read.
func (d *decision) shown() int64 {
	for _, r := range slices.Backward(d.job.Runs) {
		if r.State != Skipped && r.State != Running {
			return r.Number
		}
	}
	return 0
}

// trim forgets old runs.
func (d *decision) trim() {
	ended := 0
	for _, r := range d.job.Runs {
		if r.State != Running {
			ended++
		}
	}
	shown := d.shown()
	d.job.Runs = slices.DeleteFunc(d.job.Runs, func(r *gantryv1.JobRun) bool {
		if r.State == Running || ended <= keepRuns || r.Number == shown {
			return false
		}
		ended--
		return true
	})
}

// begin records a new run. The instances come with the drive that follows.
func (d *decision) begin(cause string, scheduled time.Time) *gantryv1.JobRun {
	r := d.record(cause, scheduled)
	r.State, r.StartedAt = Running, timestamppb.New(d.Now)
	if placement.IsGlobal(d.Service.Spec) {
		r.Nodes = d.Eligible()
		if r.Completions = int32(len(r.Nodes)); r.Completions == 0 {
			d.end(r, Failed, "no node is eligible")
		}
		return r
	}
	if r.Completions = d.spec.GetCompletions(); r.Completions == 0 {
		r.Completions = d.Service.Replicas
	}
	return r
}

func (d *decision) record(cause string, scheduled time.Time) *gantryv1.JobRun {
	r := &gantryv1.JobRun{Number: 1, Release: d.Service.Release, Cause: cause}
	for _, o := range d.job.Runs {
		r.Number = max(r.Number, o.Number+1)
	}
	if !scheduled.IsZero() {
		r.ScheduledAt = timestamppb.New(scheduled)
	}
	d.job.Runs = append(d.job.Runs, r)
	return r
}

func (d *decision) skip(scheduled time.Time, why string) {
	d.end(d.record("schedule", scheduled), Skipped, why)
}
