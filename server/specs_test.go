package server_test

import (
	"math"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// TestWhatNoControllerCanFollowIsRefused: once stored, every server that leads would have to live with it.
func TestWhatNoControllerCanFollowIsRefused(t *testing.T) {
	p := start(t)
	job := func(change func(*gantryv1.JobSpec)) func(*gantryv1.ServiceSpec) {
		return func(s *gantryv1.ServiceSpec) {
			s.Mode, s.Job = "replicated-job", &gantryv1.JobSpec{}
			change(s.Job)
		}
	}
	for what, change := range map[string]func(*gantryv1.ServiceSpec){
		"fewer than no instances": func(s *gantryv1.ServiceSpec) { s.Replicas = -1 },
		"billions of instances":   func(s *gantryv1.ServiceSpec) { s.Replicas = math.MaxInt32 },
		"an unknown mode":         func(s *gantryv1.ServiceSpec) { s.Mode = "everywhere" },
		"a share that is no number": func(s *gantryv1.ServiceSpec) {
			s.Update = &gantryv1.UpdateConfig{MaxFailureRatio: math.NaN()}
		},
		"a negative monitor": func(s *gantryv1.ServiceSpec) {
			s.Rollback = &gantryv1.UpdateConfig{Monitor: durationpb.New(-time.Second)}
		},
		"an endless delay": func(s *gantryv1.ServiceSpec) {
			s.Update = &gantryv1.UpdateConfig{Delay: &durationpb.Duration{Seconds: math.MaxInt64}}
		},
		"an unknown action":             func(s *gantryv1.ServiceSpec) { s.Update = &gantryv1.UpdateConfig{FailureAction: "panic"} },
		"an unknown order":              func(s *gantryv1.ServiceSpec) { s.Update = &gantryv1.UpdateConfig{Order: "last"} },
		"a constraint without operator": func(s *gantryv1.ServiceSpec) { s.Placement = &gantryv1.Placement{Constraints: []string{"rack"}} },
		"an odd preference":             func(s *gantryv1.ServiceSpec) { s.Placement = &gantryv1.Placement{Preferences: []string{"\x1b"}} },
		"fewer than none on a node":     func(s *gantryv1.ServiceSpec) { s.Placement = &gantryv1.Placement{MaxReplicasPerNode: -1} },
		"billions of completions":       job(func(j *gantryv1.JobSpec) { j.Completions = math.MaxInt32 }),
		"none at a time":                job(func(j *gantryv1.JobSpec) { j.Parallelism = -1 }),
		"fewer than no retries":         job(func(j *gantryv1.JobSpec) { j.Retries = -2 }),
		"an unknown rule":               job(func(j *gantryv1.JobSpec) { j.Overlap = "both" }),
		"a schedule that never comes":   job(func(j *gantryv1.JobSpec) { j.Schedule = "61 * * * *" }),
		"a time zone that is none":      job(func(j *gantryv1.JobSpec) { j.Schedule, j.TimeZone = "* * * * *", "../../etc/passwd" }),
	} {
		req := app(func(a *gantryv1.AppSpec) { change(a.Services["web"]) })
		if _, err := p.apps.Apply(t.Context(), connect.NewRequest(req)); kindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestEnvironmentsHaveNames: their names begin the keys of all that is in them, and are shown.
func TestEnvironmentsHaveNames(t *testing.T) {
	p := start(t)
	for _, env := range []string{"", "a/b", "\x1b[2J"} {
		_, secret := p.secrets.Create(t.Context(), connect.NewRequest(&gantryv1.CreateFileRequest{Environment: env, Name: "key"}))
		_, volume := p.volumes.Create(t.Context(), connect.NewRequest(&gantryv1.CreateVolumeRequest{Environment: env, Name: "data"}))
		if kindOf(secret) != fault.Invalid || kindOf(volume) != fault.Invalid {
			t.Errorf("%q: %v, %v", env, secret, volume)
		}
	}
}
