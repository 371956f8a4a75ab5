package engine

import (
	"path/filepath"
	"strconv"
	"time"

	"github.com/docker/go-units"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/jsonlog"
	"github.com/gantryd/gantry/engine/syslog"
	"github.com/gantryd/gantry/fault"
)

// Defaults of the json-file driver. Unlike Docker's they bound the log: a full disk harms everybody.
const (
	defaultLogSize  = 20 << 20
	defaultLogFiles = 3
)

// logConfig is a container's checked logging section.
type logConfig struct {
	Driver   string
	MaxSize  int64
	MaxFiles int
	Syslog   syslog.Config
}

func parseLogging(l *gantryv1.Logging) (logConfig, error) {
	c := logConfig{Driver: l.GetDriver(), MaxSize: defaultLogSize, MaxFiles: defaultLogFiles}
	if c.Driver == "" {
		c.Driver = "json-file"
	}
	var err error
	switch c.Driver {
	case "json-file":
		err = c.jsonOptions(l.GetOptions())
	case "none":
	case "syslog":
		c.Syslog, err = syslog.Parse(l.GetOptions())
	default:
		err = fault.New(fault.Unsupported, "logging driver %q is not supported", c.Driver).
			WithHint("use json-file, syslog or none")
	}
	return c, err
}

func (c *logConfig) jsonOptions(options map[string]string) error {
	for key, value := range options {
		var err error
		switch key {
		case "max-size":
			if c.MaxSize, err = units.RAMInBytes(value); value == "-1" {
				c.MaxSize, err = 0, nil
			}
		case "max-file":
			if c.MaxFiles, err = strconv.Atoi(value); err == nil && c.MaxFiles < 1 {
				err = strconv.ErrRange
			}
		case "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
			// What they ask for does not change which lines are kept.
		default:
			return fault.New(fault.Invalid, "logging option %q of json-file is unknown", key).WithHint("max-size, max-file")
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "logging option %s: %q", key, value)
		}
	}
	return nil
}

// openLog opens the container's log if it is not open yet.
func (e *Engine) openLog(c *container) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil {
		return nil
	}
	o := jsonlog.Options{MaxSize: c.Log.MaxSize, MaxFiles: c.Log.MaxFiles, Logger: e.log, Discard: c.Log.Driver == "none"}
	if c.Log.Driver == "syslog" {
		o.Sink = syslog.New(c.Log.Syslog, c.Name, c.ID).Send
	}
	var err error
	c.log, err = jsonlog.Open(filepath.Join(e.dir(c.ID), "log"), o)
	return err
}

// followLog takes over a run's output as it comes, until the run is gone. The caller holds c.mu.
func (e *Engine) followLog(c *container, r *run) {
	streams := 2
	if c.Tty {
		streams = 1
	}
	log := c.log
	follower, err := log.Follow(e.spools)
	if err != nil {
		e.log.Error("a container's log is looked at once a second only", "container", c.ID, "error", err)
		e.group.Go(func() error { e.pollLog(c, r); return nil })
		return
	}
	ctx, cancel := contextUntil(e.ctx, r.gone)
	e.group.Go(func() error {
		defer cancel()
		return follower.Run(ctx, streams, r.setDrained)
	})
}

// pollLog is for machines that have no file watch left.
func (e *Engine) pollLog(c *container, r *run) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = c.log.Pump() // Pump itself reports faults
		case <-r.gone:
			return
		case <-e.ctx.Done():
			return
		}
	}
}
