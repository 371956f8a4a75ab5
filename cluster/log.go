package cluster

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
)

// slogCore is a zap core that writes warnings and worse to slog: the same one at most once a minute, since etcd says what is
// wrong with a peer every few seconds for as long as it is.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
	said   *memory
}

const repeatAfter = time.Minute

// memory is when what was said last.
type memory struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// fresh reports whether a message was not said in the last minute, and notes it.
func (m *memory) fresh(message string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.last[message]) < repeatAfter {
		return false
	}
	m.last[message] = now
	return true
}

// expected lists what etcd warns of although it is meant so: settings that suit objects of some megabytes and a listener on a
// Unix socket that only this process uses, and listeners that end with it.
func expected(message string) bool {
	return slices.Contains([]string{
		"Running http and grpc server on single port. This is not recommended for production.",
		"exceeded recommended request limit",
		"simple token is not cryptographically signed",
		"setting up serving from embedded etcd failed.",
		"stopping insecure grpc server due to error", "stopped insecure grpc server due to error",
	}, message)
}

// Enabled keeps what is at least a warning.
func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

// With adds fields.
func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log, fields: append(append([]zapcore.Field{}, c.fields...), f...), said: c.said}
}

// Check adds the core to an entry it wants.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write passes one entry on.
func (c *slogCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	if expected(e.Message) || !c.said.fresh(e.Message, e.Time) {
		return nil
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, field := range append(append([]zapcore.Field{}, c.fields...), f...) {
		field.AddTo(enc)
	}
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.log.Log(context.Background(), level, "etcd: "+e.Message, "fields", enc.Fields)
	return nil
}

// Sync has nothing to do: slog writes at once.
func (c *slogCore) Sync() error { return nil }
