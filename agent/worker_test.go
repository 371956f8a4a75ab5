package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

func TestRestartPolicies(t *testing.T) {
	type c = gantryv1.RestartPolicy_Condition
	for name, test := range map[string]struct {
		condition c
		attempts  int32
		service   bool
		code      int32
		streak    int32
		want      bool
	}{
		"run, default":                   {code: 1},
		"service, default, failed":       {service: true, code: 1, want: true},
		"service, default, done":         {service: true},
		"no":                             {condition: gantryv1.RestartPolicy_CONDITION_NO, service: true, code: 1},
		"always, done":                   {condition: gantryv1.RestartPolicy_CONDITION_ALWAYS, want: true},
		"unless-stopped, done":           {condition: gantryv1.RestartPolicy_CONDITION_UNLESS_STOPPED, want: true},
		"on-failure, done":               {condition: gantryv1.RestartPolicy_CONDITION_ON_FAILURE},
		"on-failure, attempts left":      {condition: gantryv1.RestartPolicy_CONDITION_ON_FAILURE, attempts: 3, code: 1, streak: 2, want: true},
		"on-failure, attempts used up":   {condition: gantryv1.RestartPolicy_CONDITION_ON_FAILURE, attempts: 3, code: 1, streak: 3},
		"always, attempts used up, done": {condition: gantryv1.RestartPolicy_CONDITION_ALWAYS, attempts: 1, streak: 1},
	} {
		t.Run(name, func(t *testing.T) {
			as := &gantryv1.Assignment{
				Instance: &gantryv1.Instance{}, Spec: &gantryv1.ContainerSpec{Restart: &gantryv1.RestartPolicy{
					Condition: test.condition, MaxAttempts: test.attempts,
				}},
			}
			if test.service {
				as.Instance.App, as.Instance.Slot = "a", 1
			}
			if got := policyOf(as).restarts(test.code, test.streak); got != test.want {
				t.Fatalf("restarts = %v", got)
			}
		})
	}
	as := &gantryv1.Assignment{Instance: &gantryv1.Instance{}, Spec: &gantryv1.ContainerSpec{Restart: &gantryv1.RestartPolicy{Window: durationpb.New(time.Minute)}}}
	if got := policyOf(as).stable; got != time.Minute {
		t.Errorf("a run is a success after %v", got)
	}
	as.Spec.Restart = nil
	if got := policyOf(as).stable; got != 10*time.Second {
		t.Errorf("without a window, a run is a success after %v", got)
	}
	p := policy{}
	if p.backoff(0) != 100*time.Millisecond || p.backoff(3) != 800*time.Millisecond || p.backoff(60) != time.Minute {
		t.Fatalf("back-off %v %v %v", p.backoff(0), p.backoff(3), p.backoff(60))
	}
}

func TestHealthIsJudgedAsDockerDoes(t *testing.T) {
	c := &check{interval: time.Minute, startInterval: time.Second, startPeriod: 10 * time.Second, retries: 2}
	s := &gantryv1.InstanceStatus{
		Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Health: gantryv1.InstanceStatus_HEALTH_STARTING,
	}
	c.judge(s, 1, "not yet", nil, time.Second)
	if s.Health != gantryv1.InstanceStatus_HEALTH_STARTING || s.FailingStreak != 0 {
		t.Fatalf("a failure within the start period counted: %v", s)
	}
	c.judge(s, 1, "still not", nil, time.Minute)
	c.judge(s, 1, "still not", nil, time.Minute)
	if s.Health != gantryv1.InstanceStatus_HEALTH_UNHEALTHY || s.HealthOutput == "" {
		t.Fatalf("two failures of two: %v", s)
	}
	c.judge(s, 0, "", nil, time.Minute)
	if s.Health != gantryv1.InstanceStatus_HEALTH_HEALTHY || s.FailingStreak != 0 || s.HealthOutput != "" {
		t.Fatalf("after a success: %v", s)
	}
	s.Phase = gantryv1.InstanceStatus_PHASE_EXITED
	c.judge(s, 1, "", nil, time.Minute)
	if s.FailingStreak != 0 {
		t.Fatal("a check of a dead process counted")
	}
	started := time.Now()
	starting := &gantryv1.InstanceStatus{Health: gantryv1.InstanceStatus_HEALTH_STARTING}
	if c.pause(started, starting) != time.Second || c.pause(started.Add(-time.Hour), starting) != time.Minute {
		t.Fatal("the start interval is not kept to the start period")
	}
}

func TestCheckCommands(t *testing.T) {
	for name, test := range map[string]struct {
		in   []string
		want int
	}{
		"none": {nil, 0}, "NONE": {[]string{"NONE"}, 0}, "CMD": {[]string{"CMD", "true"}, 1}, "shell": {[]string{"CMD-SHELL", "true"}, 3},
	} {
		if got := checkCommand(test.in); len(got) != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRecordsSurviveAndRefuseDamage(t *testing.T) {
	dir := t.TempDir()
	r, err := openRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec := &gantryv1.InstanceRecord{
		Assignment: &gantryv1.Assignment{Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "abc"}}}, StartedGeneration: 7,
	}
	if err := r.save(rec); err != nil {
		t.Fatal(err)
	}
	got, err := r.load()
	if err != nil || len(got) != 1 || !proto.Equal(got[0], rec) {
		t.Fatalf("%v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instances", ".new-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.load(); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, "instances")); err != nil || len(files) != 1 {
		t.Errorf("what was half written is there: %v, %v", files, err)
	}
	path := filepath.Join(dir, "instances", "abc.record")
	if err := os.WriteFile(path, []byte("\xff\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.load(); !fault.Is(err, fault.Corrupt) || fault.HintOf(err) == "" {
		t.Fatalf("a damaged record: %v", err)
	}
	if err := r.remove("abc"); err != nil {
		t.Fatal(err)
	}
	if err := r.remove("abc"); err != nil {
		t.Fatalf("removing twice: %v", err)
	}
}

func TestProgressIsOnDiskWithTheNextSave(t *testing.T) {
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{records: r, state: newEndpointState(nil, nil, "n1"), reports: nodelink.NewOutbox()}
	w := newWorker(a, &gantryv1.InstanceRecord{
		Assignment: &gantryv1.Assignment{Instance: &gantryv1.Instance{Meta: &gantryv1.Meta{Key: "abc"}}},
		Status:     &gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: "abc"}},
	})
	onDisk := func() *gantryv1.InstanceStatus {
		t.Helper()
		recs, err := r.load()
		if err != nil || len(recs) > 1 {
			t.Fatalf("%v, %v", recs, err)
		}
		if len(recs) == 0 {
			return nil
		}
		return recs[0].Status
	}
	reported := a.reports.Next()
	w.progress(inPhase(gantryv1.InstanceStatus_PHASE_CREATING))
	if got := onDisk(); got != nil || w.status().Phase != gantryv1.InstanceStatus_PHASE_CREATING {
		t.Fatalf("on disk %v, in memory %v", got, w.status())
	}
	select {
	case <-reported:
	default:
		t.Fatal("progress was not reported")
	}
	// A status that says nothing new still takes along what the disk lacks.
	w.phase(gantryv1.InstanceStatus_PHASE_CREATING)
	if got := onDisk(); got.GetPhase() != gantryv1.InstanceStatus_PHASE_CREATING {
		t.Fatalf("on disk %v", got)
	}
	w.progress(func(s *gantryv1.InstanceStatus) { s.Address = "10.0.0.1" })
	w.phase(gantryv1.InstanceStatus_PHASE_RUNNING)
	if got := onDisk(); got.GetAddress() != "10.0.0.1" || got.GetPhase() != gantryv1.InstanceStatus_PHASE_RUNNING {
		t.Fatalf("on disk %v", got)
	}
}
