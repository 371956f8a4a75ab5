package engine

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/jsonlog"
	"github.com/gantryd/gantry/fault"
)

// LogOptions says which lines of a log to read.
type LogOptions struct {
	// Follow goes on with new lines until the container's current run has ended; at once if it does not run.
	Follow bool
	// Tail is the number of last lines to begin with, negative for all.
	Tail         int64
	Since, Until time.Time
}

// Logs calls fn for the lines of a container's log, oldest first. Lines of earlier runs are included.
func (e *Engine) Logs(ctx context.Context, id string, o LogOptions, fn func(*gantryv1.LogEntry) error) error {
	c, err := e.container(id)
	if err != nil {
		return err
	}
	if c.Log.Driver != "json-file" {
		return fault.New(fault.Unsupported, "container %s logs to %q, which cannot be read back", id, c.Log.Driver).
			WithHint("set logging: driver: json-file")
	}
	if err := e.openLog(c); err != nil {
		return err
	}
	ro := jsonlog.ReadOptions{Tail: int(o.Tail), Since: o.Since, Until: o.Until}
	r := c.lastRun()
	if o.Follow {
		ro.Done = closedChannel()
		if r != nil {
			ro.Done = r.gone
		}
	} else if r != nil && isDone(r.ended) {
		r.awaitDrained(ctx)
	}
	if err := c.log.Pump(); err != nil { // what was written just now belongs to the answer
		return fault.Wrap(diskFault(err), err, "container %s: log", id)
	}
	return c.log.Read(ctx, ro, func(entry jsonlog.Entry) error {
		return fn(&gantryv1.LogEntry{
			Instance: id, Name: c.Name, Stream: entry.Stream, Time: timestamppb.New(entry.Time), Line: entry.Line,
		})
	})
}

// awaitDrained waits until the last words of a container that has just ended are in its log.
func (r *run) awaitDrained(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, outputWait)
	defer cancel()
	select {
	case <-r.drained:
	case <-ctx.Done():
	}
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
