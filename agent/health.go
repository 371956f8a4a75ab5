package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
)

// Docker's defaults.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthOutput        = 4096 // bytes kept of a check's output
)

// check is a health check with its defaults resolved.
type check struct {
	command                                       []string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int32
}

// resolveHealthcheck merges the spec's check with the image's when the container is made; nil if there is none.
func (w *worker) resolveHealthcheck(ctx context.Context, spec *gantryv1.ContainerSpec) (*gantryv1.Healthcheck, error) {
	h := spec.GetHealthcheck()
	if h.GetDisable() || len(h.GetTest()) > 0 || spec.Rootfs != "" {
		return h, nil
	}
	image, err := w.a.imageHealthcheck(ctx, spec)
	if err != nil || image == nil || h == nil {
		return image, err
	}
	h = proto.Clone(h).(*gantryv1.Healthcheck)
	h.Test = image.Test
	return h, nil
}

// healthcheck is the check in force with its defaults resolved; nil if there is none.
func (w *worker) healthcheck() *check {
	w.mu.Lock()
	h := w.rec.Healthcheck
	w.mu.Unlock()
	if h.GetDisable() {
		return nil
	}
	test := h.GetTest()
	command := checkCommand(test)
	if command == nil {
		return nil
	}
	or := func(d, def time.Duration) time.Duration {
		if d > 0 {
			return d
		}
		return def
	}
	c := &check{
		command: command, interval: or(h.GetInterval().AsDuration(), healthInterval),
		timeout: or(h.GetTimeout().AsDuration(), healthTimeout), startPeriod: h.GetStartPeriod().AsDuration(),
		startInterval: or(h.GetStartInterval().AsDuration(), healthStartInterval), retries: h.GetRetries(),
	}
	if c.retries <= 0 {
		c.retries = healthRetries
	}
	return c
}

func pinnedRef(spec *gantryv1.ContainerSpec) string {
	if spec.ImageDigest == "" {
		return spec.Image
	}
	return pinned(spec.Image, spec.ImageDigest)
}

// imageHealthcheck is the check that the image brings, in Docker's form inside the image configuration; nil if none.
func (a *Agent) imageHealthcheck(ctx context.Context, spec *gantryv1.ContainerSpec) (*gantryv1.Healthcheck, error) {
	resp, err := a.Images.Inspect(ctx, pinnedRef(spec), spec.Platform)
	if err != nil {
		return nil, err
	}
	var config struct {
		Config struct {
			Healthcheck *struct {
				Test                                          []string
				Interval, Timeout, StartPeriod, StartInterval time.Duration
				Retries                                       int32
			}
		} `json:"config"`
	}
	if err := json.Unmarshal(resp.Config, &config); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the configuration of the image %q cannot be read", spec.Image)
	}
	if config.Config.Healthcheck == nil {
		return nil, nil
	}
	h := config.Config.Healthcheck
	return &gantryv1.Healthcheck{
		Test: h.Test, Interval: durationpb.New(h.Interval), Timeout: durationpb.New(h.Timeout),
		StartPeriod: durationpb.New(h.StartPeriod), StartInterval: durationpb.New(h.StartInterval), Retries: h.Retries,
	}, nil
}

func checkCommand(test []string) []string {
	if len(test) == 0 {
		return nil
	}
	switch test[0] {
	case "NONE":
		return nil
	case "CMD":
		return test[1:]
	case "CMD-SHELL":
		return []string{"/bin/sh", "-c", strings.Join(test[1:], " ")}
	}
	return []string{"/bin/sh", "-c", strings.Join(test, " ")}
}

// monitor is a running series of checks.
type monitor struct{ cancel context.CancelFunc }

func (w *worker) startHealth(c *check) {
	if c == nil || w.health != nil {
		return
	}
	ctx, cancel := context.WithCancel(w.a.ctx)
	w.health = &monitor{cancel: cancel}
	started := w.status().GetStartedAt().AsTime()
	w.a.group.Go(func() error {
		w.watchHealth(ctx, c, started)
		return nil
	})
}

func (w *worker) stopHealth() {
	if w.health == nil {
		return
	}
	// Not waited for: a check that hangs must not hold up a stop. Its result is not looked at.
	w.health.cancel()
	w.health = nil
}

func (w *worker) watchHealth(ctx context.Context, c *check, started time.Time) {
	for {
		select {
		case <-time.After(c.pause(started, w.status())):
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		code, output, err := w.probe(ctx, c)
		if ctx.Err() != nil {
			return
		}
		w.a.figures.Checks.Since(begun)
		if err != nil || code != 0 {
			w.a.figures.FailedChecks.Add(1)
		}
		w.setStatus(func(s *gantryv1.InstanceStatus) {
			if ctx.Err() == nil && s.StartedAt.AsTime().Equal(started) {
				c.judge(s, code, output, err, time.Since(started))
			}
		})
	}
}

// pause is the time until the next check: short until the first success within the start period.
func (c *check) pause(started time.Time, st *gantryv1.InstanceStatus) time.Duration {
	if st.Health == gantryv1.InstanceStatus_HEALTH_STARTING && time.Since(started) < c.startPeriod {
		return min(c.startInterval, c.interval)
	}
	return c.interval
}

// judge turns one result into a health. Failures within the start period do not count.
func (c *check) judge(s *gantryv1.InstanceStatus, code int32, output string, err error, age time.Duration) {
	if s.Phase != gantryv1.InstanceStatus_PHASE_RUNNING {
		return
	}
	if err == nil && code == 0 {
		s.Health, s.FailingStreak, s.HealthOutput = gantryv1.InstanceStatus_HEALTH_HEALTHY, 0, ""
		return
	}
	s.HealthOutput = explain(code, output, err)
	if s.Health == gantryv1.InstanceStatus_HEALTH_STARTING && age < c.startPeriod {
		return
	}
	s.FailingStreak++
	if s.FailingStreak >= c.retries {
		s.Health = gantryv1.InstanceStatus_HEALTH_UNHEALTHY
	}
}

func explain(code int32, output string, err error) string {
	output = strings.TrimSpace(output)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "the health check took longer than its timeout"
	case err != nil:
		return "the health check could not run: " + err.Error()
	case output == "":
		return fmt.Sprintf("the health check ended with code %d", code)
	}
	return fmt.Sprintf("the health check ended with code %d: %s", code, output)
}

func (w *worker) probe(ctx context.Context, c *check) (int32, string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	out := &head{limit: healthOutput}
	code, err := w.a.Engine.Exec(ctx, w.id, engine.ExecRequest{Command: c.command}, engine.IO{Stdout: out, Stderr: out})
	if ctx.Err() == context.DeadlineExceeded {
		err = ctx.Err()
	}
	return code, out.buf.String(), err
}

// head keeps the first bytes written to it and counts the rest as written.
type head struct {
	buf   bytes.Buffer
	limit int
}

// Write takes all and keeps what fits.
func (t *head) Write(p []byte) (int, error) {
	if room := t.limit - t.buf.Len(); room > 0 {
		t.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
