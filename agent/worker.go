package agent

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
)

// worker moves one instance towards what is wanted, one step at a time.
type worker struct {
	a    *Agent
	id   string
	wake chan struct{}

	mu       sync.Mutex
	rec      *gantryv1.InstanceRecord
	unsaved  bool // the record on disk lacks progress that rec has
	unkept   bool // the record could not be written, so that anything of it may be missing on disk
	attached bool // a client is connected to a process that waits for it
	gone     bool // nothing of the instance is left
	told     bool // the assignment is a server's, with the contents of its secrets; the record's has none
	retired  bool // no server knows of the instance any more, nor sends anybody here

	idle chan struct{} // closed when run has returned

	failures  int       // failed attempts in a row
	notBefore time.Time // of the next attempt
	heldSince time.Time // that the container waits for its client; used by the worker's own goroutine only

	interrupt context.CancelFunc // of the step under way

	reporting sync.Mutex // one status at a time is set, kept and reported, so that none overtakes another
	health    *monitor   // used by the worker's own goroutine only
}

func newWorker(a *Agent, rec *gantryv1.InstanceRecord) *worker {
	return &worker{a: a, id: rec.Assignment.Instance.Meta.Key, rec: rec, wake: make(chan struct{}, 1), idle: make(chan struct{})}
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// update replaces the assignment by what a server has sent.
func (w *worker) update(as *gantryv1.Assignment) {
	w.mu.Lock()
	if as.Instance.Desired == gantryv1.Instance_DESIRED_REMOVED && proto.Size(as.Spec) == 0 {
		as = withSpec(as, w.rec.Assignment) // its release is gone; how it ends does not change by that
	}
	w.assign(as)
	w.told = true
	w.mu.Unlock()
	w.poke()
}

// withSpec is an assignment with what another one says of how to run it.
func withSpec(as, from *gantryv1.Assignment) *gantryv1.Assignment {
	out := proto.Clone(from).(*gantryv1.Assignment)
	out.Instance = as.Instance
	return out
}

// assign takes an assignment; mu is held. A step that works towards something else is cut short: a pull, a long stop.
func (w *worker) assign(as *gantryv1.Assignment) {
	old := w.rec.Assignment.Instance
	if w.interrupt != nil && (old.Desired != as.Instance.Desired || !proto.Equal(old.StopGrace, as.Instance.StopGrace)) {
		w.interrupt()
	}
	w.rec.Assignment = as
	w.failures, w.notBefore = 0, time.Time{}
}

// retire makes the instance wanted gone.
func (w *worker) retire() {
	w.mu.Lock()
	as := proto.Clone(w.rec.Assignment).(*gantryv1.Assignment)
	as.Instance.Desired = gantryv1.Instance_DESIRED_REMOVED
	w.assign(as)
	w.retired = true
	w.mu.Unlock()
	w.poke()
}

// attach lets a process that waits for its client start.
func (w *worker) attach() {
	w.mu.Lock()
	w.attached = true
	w.mu.Unlock()
	w.poke()
}

func (w *worker) assignment() *gantryv1.Assignment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rec.Assignment
}

func (w *worker) status() *gantryv1.InstanceStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rec.Status
}

// run steps until the instance is gone or ctx ends.
func (w *worker) run(ctx context.Context) {
	defer w.stopHealth()
	w.a.reports.Status(w.status())
	for {
		again := w.step(ctx)
		if w.gone || !w.sleep(ctx, again) {
			return
		}
	}
}

// settling is how long progress may wait for the next save: what changes again at once is written once.
const settling = 50 * time.Millisecond

// sleep waits for news, for at most the given time if it is not 0, and says whether to go on. Progress is put on disk
// meanwhile.
func (w *worker) sleep(ctx context.Context, atMost time.Duration) bool {
	var timer, settled <-chan time.Time
	if atMost > 0 {
		timer = time.After(atMost)
	}
	if w.isUnsaved() {
		settled = time.After(settling)
	}
	for {
		select {
		case <-w.wake:
			return true
		case <-timer:
			return true
		case <-settled:
			if settled = nil; !w.settle() {
				settled = time.After(firstRetry)
			}
		case <-ctx.Done():
			w.settle()
			return false
		}
	}
}

// settle puts progress on disk and says whether it is there.
func (w *worker) settle() bool {
	w.reporting.Lock()
	defer w.reporting.Unlock()
	return w.saveProgress()
}

// saveProgress keeps what was reported; reporting is held.
func (w *worker) saveProgress() bool {
	if !w.isUnsaved() {
		return true
	}
	err := w.save()
	if err != nil {
		w.a.log.Error("the instance would not be known after a restart", "instance", w.id, "err", err)
	}
	return err == nil
}

// step looks at what is wanted and what is there and does the next thing. It returns when to look again; 0 waits for news.
func (w *worker) step(ctx context.Context) time.Duration {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	wait := time.Until(w.notBefore)
	w.interrupt = cancel
	w.mu.Unlock()
	if wait > 0 {
		return wait
	}
	again, err := w.move(ctx)
	if err == nil {
		w.retryAfter(0, 0)
		return again
	}
	if ctx.Err() != nil {
		return 0
	}
	return w.failed(err)
}

func (w *worker) move(ctx context.Context) (time.Duration, error) {
	as := w.assignment()
	st, err := w.a.Engine.State(ctx, w.id)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return 0, err
	}
	exists := err == nil
	switch as.Instance.Desired {
	case gantryv1.Instance_DESIRED_REMOVED:
		return 0, w.remove(ctx, exists)
	case gantryv1.Instance_DESIRED_STOPPED:
		return 0, w.halt(ctx, exists, st)
	default:
		return w.bringUp(ctx, as, exists, st)
	}
}

const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// failed reports why the instance could not be moved on and waits longer each time. What `gantry run` started is not tried
// again: somebody looks at it.
func (w *worker) failed(err error) time.Duration {
	w.mu.Lock()
	failures, as := w.failures, w.rec.Assignment
	w.mu.Unlock()
	delay := min(firstRetry<<min(failures, 10), lastRetry)
	if as.Instance.Slot == 0 && as.Instance.Desired == gantryv1.Instance_DESIRED_RUNNING {
		delay = 0
	}
	w.retryAfter(delay, failures+1)
	w.a.figures.FailedSteps.Add(1)
	w.a.log.Warn("instance cannot be moved on", "instance", w.id, "err", err, "again", delay)
	w.setStatus(func(s *gantryv1.InstanceStatus) {
		s.Phase, s.RestartGeneration = gantryv1.InstanceStatus_PHASE_FAILED, as.Instance.RestartGeneration
		s.Error, s.Hint, s.FinishedAt = err.Error(), fault.HintOf(err), timestamppb.Now()
	})
	return delay
}

// retryAfter remembers how often the instance could not be moved on, and when to try again.
func (w *worker) retryAfter(delay time.Duration, failures int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures, w.notBefore = failures, time.Now().Add(delay)
}

// setStatus changes, reports and records the status, if it differs. It is reported first: a status tells what is, and after
// a crash the engine tells it again.
func (w *worker) setStatus(change func(*gantryv1.InstanceStatus)) {
	w.reporting.Lock()
	defer w.reporting.Unlock()
	w.tell(change)
	w.saveProgress()
}

// progress changes and reports the status on the way to a start. It is on disk with the next save, or when nothing has
// happened for a moment: after a restart, the same steps find out the same again, and waiting for the disk four times would
// make up a good part of a start.
func (w *worker) progress(change func(*gantryv1.InstanceStatus)) {
	w.reporting.Lock()
	defer w.reporting.Unlock()
	w.tell(change)
}

// lived changes, reports and records that the process began or ended. What `gantry run` started often does both within
// milliseconds and serves nobody: it is recorded as progress is.
func (w *worker) lived(change func(*gantryv1.InstanceStatus)) {
	if w.assignment().Instance.Slot == 0 {
		w.progress(change)
	} else {
		w.setStatus(change)
	}
}

// tell changes and reports the status, if it differs; reporting is held.
func (w *worker) tell(change func(*gantryv1.InstanceStatus)) {
	inst, st, changed := w.changeStatus(change)
	if !changed {
		return
	}
	w.mu.Lock()
	w.unsaved = true
	w.mu.Unlock()
	w.a.report(inst, st)
}

// changeStatus changes the status and says whether it differs now; reporting is held.
func (w *worker) changeStatus(change func(*gantryv1.InstanceStatus)) (*gantryv1.Instance, *gantryv1.InstanceStatus, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := proto.Clone(w.rec.Status).(*gantryv1.InstanceStatus)
	change(st)
	st.Streak = w.rec.Streak
	same := proto.Equal(st, w.rec.Status)
	w.rec.Status = st
	return w.rec.Assignment.Instance, st, !same
}

func (w *worker) isUnsaved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unsaved
}

// save keeps the record on disk, unless nothing is left of the instance.
func (w *worker) save() error {
	w.mu.Lock()
	rec := proto.Clone(w.rec).(*gantryv1.InstanceRecord)
	rec.Assignment.Secrets = nil
	gone := w.gone
	w.unsaved = false
	w.mu.Unlock()
	if gone {
		return nil
	}
	err := w.a.records.save(rec)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unkept = err != nil
	w.unsaved = w.unsaved || err != nil
	return err
}

// saveWhile keeps the record on disk while it does something else, and returns when both are done.
func (w *worker) saveWhile(do func() error) error {
	saved := make(chan error, 1)
	go func() {
		w.reporting.Lock()
		defer w.reporting.Unlock()
		saved <- w.save()
	}()
	err := do()
	if serr := <-saved; err == nil {
		err = serr
	}
	return err
}

func (w *worker) phase(p gantryv1.InstanceStatus_Phase) { w.setStatus(inPhase(p)) }

func inPhase(p gantryv1.InstanceStatus_Phase) func(*gantryv1.InstanceStatus) {
	return func(s *gantryv1.InstanceStatus) { s.Phase, s.Error, s.Hint = p, "", "" }
}

// bringUp moves an instance that shall run.
func (w *worker) bringUp(ctx context.Context, as *gantryv1.Assignment, exists bool, st engine.State) (time.Duration, error) {
	if exists {
		moved, err := w.moved(as)
		if err != nil && st.Status != engine.StatusRunning {
			return 0, err
		}
		if moved {
			return 0, w.makeAnew(ctx, as, st)
		}
	}
	if !exists {
		begun := time.Now()
		if err := w.create(ctx, as); err != nil {
			return 0, err
		}
		w.a.figures.Creates.Since(begun)
		return w.launch(ctx, as, st)
	}
	switch st.Status {
	case engine.StatusCreated:
		return w.relaunch(ctx, as, st)
	case engine.StatusRunning, engine.StatusPaused:
		return w.tend(ctx, as, st)
	default:
		return w.afterExit(ctx, as, st)
	}
}

// makeAnew takes the container away, so that the next step makes one that shares the namespaces of today's instances.
func (w *worker) makeAnew(ctx context.Context, as *gantryv1.Assignment, st engine.State) error {
	if st.Status == engine.StatusRunning || st.Status == engine.StatusPaused {
		if err := w.stop(ctx, as); err != nil {
			return err
		}
	}
	w.stopHealth()
	if err := w.a.Engine.Remove(ctx, w.id); err != nil {
		return err
	}
	w.poke()
	return nil
}

// stale reports that the run that is wanted has not been started yet.
func (w *worker) stale(as *gantryv1.Assignment, st engine.State) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rec.StartedGeneration < as.Instance.RestartGeneration || int(w.rec.StartedRuns) > st.Runs
}

// relaunch starts a container that was made before this step.
func (w *worker) relaunch(ctx context.Context, as *gantryv1.Assignment, st engine.State) (time.Duration, error) {
	if w.held(as) {
		return w.hold(as)
	}
	if err := w.refresh(ctx, as); err != nil {
		return 0, err
	}
	return w.launch(ctx, as, st)
}

// launch starts the process. What is about to be started is recorded first: after a crash the engine's count of runs tells
// whether it was.
func (w *worker) launch(ctx context.Context, as *gantryv1.Assignment, st engine.State) (time.Duration, error) {
	if err := w.noteRoot(ctx); err != nil {
		return 0, err
	}
	if w.held(as) {
		return w.hold(as)
	}
	if err := w.noteStart(as.Instance.RestartGeneration, int32(st.Runs+1)); err != nil {
		return 0, err
	}
	begun := time.Now()
	pid, err := w.a.Engine.Start(ctx, w.id)
	if err != nil {
		return 0, err
	}
	w.a.figures.Starts.Since(begun)
	w.running(as, engine.State{Pid: pid, StartedAt: time.Now()})
	w.a.pokeJoined(as.Instance)
	return 0, nil
}

// noteStart has it on disk that a run is about to begin, unless that is there since the container was made.
func (w *worker) noteStart(generation int64, runs int32) error {
	w.mu.Lock()
	noted := w.rec.StartedGeneration == generation && w.rec.StartedRuns == runs && !w.rec.StopRequested && !w.unkept
	w.rec.StartedGeneration, w.rec.StartedRuns, w.rec.StopRequested = generation, runs, false
	w.mu.Unlock()
	if noted {
		return nil
	}
	return w.save()
}

// refresh gives a container that ran before what a reboot takes away: its network and the contents of its secrets.
func (w *worker) refresh(ctx context.Context, as *gantryv1.Assignment) error {
	switch as.Spec.GetNetwork().GetKind() {
	case gantryv1.NetworkMode_KIND_UNSPECIFIED, gantryv1.NetworkMode_KIND_BRIDGE:
		if _, err := w.attachNetwork(ctx, as); err != nil {
			return err
		}
	}
	if len(as.Spec.GetSecrets())+len(as.Spec.GetConfigs()) == 0 {
		return nil
	}
	if w.lacksSecrets(as) {
		if have, err := w.a.Engine.HasFiles(w.id); err != nil || have { // those of its last run
			return err
		}
	}
	contents, err := w.files(as)
	if err != nil {
		return err
	}
	return w.a.Engine.SetFiles(w.id, contents)
}

func (w *worker) running(as *gantryv1.Assignment, st engine.State) {
	ports := w.a.state.published(serviceKey(as.Instance))
	check := w.healthcheck()
	w.lived(func(s *gantryv1.InstanceStatus) {
		fresh := s.Pid != st.Pid
		s.Phase, s.Error, s.Hint, s.Pid = gantryv1.InstanceStatus_PHASE_RUNNING, "", "", st.Pid
		s.PidsLimitReached = st.PidsReached
		s.RestartGeneration = as.Instance.RestartGeneration
		s.Ports = ports
		if fresh {
			s.StartedAt, s.FinishedAt = timestamppb.New(st.StartedAt), nil
			s.Health, s.HealthOutput, s.FailingStreak = gantryv1.InstanceStatus_HEALTH_UNSPECIFIED, "", 0
			s.OomKilled, s.ExitCode, s.KilledAfter = false, 0, nil
			if check != nil {
				s.Health = gantryv1.InstanceStatus_HEALTH_STARTING
			}
		}
	})
	w.startHealth(check)
}

// tend looks after a running container: it may have to be restarted, and its health watched.
func (w *worker) tend(ctx context.Context, as *gantryv1.Assignment, st engine.State) (time.Duration, error) {
	if w.stale(as, st) {
		if err := w.stop(ctx, as); err != nil {
			return 0, err
		}
		return w.relaunch(ctx, as, st)
	}
	if st.Status == engine.StatusPaused {
		w.stopHealth()
		w.phase(gantryv1.InstanceStatus_PHASE_PAUSED)
		return 0, nil
	}
	w.running(as, st)
	return 0, nil
}

// afterExit applies the restart policy to an exited container.
func (w *worker) afterExit(ctx context.Context, as *gantryv1.Assignment, st engine.State) (time.Duration, error) {
	w.stopHealth()
	w.mu.Lock()
	wanted := w.rec.StopRequested // stopped by us, wanted up again
	streak := w.rec.Streak
	w.mu.Unlock()
	if wanted || w.stale(as, st) {
		w.setStreak(0)
		return w.relaunch(ctx, as, st)
	}
	policy := policyOf(as)
	if st.FinishedAt.Sub(st.StartedAt) >= policy.stable {
		streak = 0
	}
	if !policy.restarts(st.ExitCode, streak) {
		w.exited(st, gantryv1.InstanceStatus_PHASE_EXITED)
		return 0, nil
	}
	w.exited(st, gantryv1.InstanceStatus_PHASE_RESTARTING)
	if wait := time.Until(st.FinishedAt.Add(policy.backoff(streak))); wait > 0 {
		return wait, nil
	}
	w.setStreak(streak + 1)
	w.setStatus(func(s *gantryv1.InstanceStatus) { s.Restarts++ })
	w.a.figures.Restarts.Add(1)
	return w.relaunch(ctx, as, st)
}

func (w *worker) setStreak(n int32) {
	w.mu.Lock()
	w.rec.Streak = n
	w.mu.Unlock()
}

func (w *worker) exited(st engine.State, phase gantryv1.InstanceStatus_Phase) {
	w.lived(func(s *gantryv1.InstanceStatus) {
		s.Phase = phase
		s.Error, s.Hint, s.Pid = "", "", 0
		s.ExitCode, s.OomKilled, s.PidsLimitReached = st.ExitCode, st.OOMKilled, st.PidsReached
		s.KilledAfter = killedAfter(st)
		s.FinishedAt = timestamppb.New(st.FinishedAt)
		s.Health, s.HealthOutput = gantryv1.InstanceStatus_HEALTH_UNSPECIFIED, ""
	})
}

// killedAfter is how long the process was given to end before it was killed; nil if it ended within that.
func killedAfter(st engine.State) *durationpb.Duration {
	if st.KilledAfter == 0 {
		return nil
	}
	return durationpb.New(st.KilledAfter)
}

// halt stops the process and keeps the container.
func (w *worker) halt(ctx context.Context, exists bool, st engine.State) error {
	if !exists {
		w.phase(gantryv1.InstanceStatus_PHASE_CREATED)
		return nil
	}
	switch st.Status {
	case engine.StatusRunning, engine.StatusPaused:
		if err := w.stop(ctx, w.assignment()); err != nil {
			return err
		}
		var err error
		if st, err = w.a.Engine.State(ctx, w.id); err != nil {
			return err
		}
	case engine.StatusCreated:
		w.phase(gantryv1.InstanceStatus_PHASE_CREATED)
		return nil
	}
	w.stopHealth()
	w.exited(st, gantryv1.InstanceStatus_PHASE_EXITED)
	w.settle() // that it is to stay stopped, too
	return nil
}

// stop asks the process to end and makes it.
func (w *worker) stop(ctx context.Context, as *gantryv1.Assignment) error {
	w.stopHealth()
	w.mu.Lock()
	w.rec.StopRequested = true
	w.mu.Unlock()
	w.phase(gantryv1.InstanceStatus_PHASE_STOPPING)
	return w.endProcess(ctx, as)
}

// endProcess returns when the process has ended, and says if it had to be killed, while the run and the instance are known.
func (w *worker) endProcess(ctx context.Context, as *gantryv1.Assignment) error {
	w.drain(ctx, as)
	if err := w.a.Engine.Stop(ctx, w.id, grace(as)); err != nil {
		return err
	}
	if st, err := w.a.Engine.State(ctx, w.id); err == nil && st.KilledAfter > 0 {
		w.setStatus(func(s *gantryv1.InstanceStatus) { s.KilledAfter = killedAfter(st) })
	}
	return nil
}

const defaultGrace = 10 * time.Second

func grace(as *gantryv1.Assignment) time.Duration {
	if g := as.Instance.GetStopGrace(); g != nil {
		return g.AsDuration()
	}
	if g := as.Spec.GetStopGracePeriod(); g != nil {
		return g.AsDuration()
	}
	return defaultGrace
}

// remove takes everything of the instance away, last its record.
func (w *worker) remove(ctx context.Context, exists bool) error {
	w.stopHealth()
	as := w.assignment()
	if exists {
		w.phase(gantryv1.InstanceStatus_PHASE_STOPPING)
		if st, err := w.a.Engine.State(ctx, w.id); err == nil && st.Status != engine.StatusExited && st.Status != engine.StatusCreated {
			if err := w.endProcess(ctx, as); err != nil {
				return err
			}
		}
		if err := w.a.Engine.Remove(ctx, w.id); err != nil {
			return err
		}
	}
	// Names and sets forget the address before another instance may be given it.
	w.a.state.dropLocal(w.id)
	w.a.state.apply(w.a.ctx, w.a.log)
	if err := w.a.Network.Detach(ctx, w.id); err != nil {
		return err
	}
	if err := w.removeAnonymous(ctx); err != nil {
		return err
	}
	if err := w.a.records.remove(w.id); err != nil {
		return err
	}
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.a.reports.Gone(w.id)
	return nil
}
