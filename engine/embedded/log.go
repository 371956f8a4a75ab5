package embedded

import (
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// newForwardingLogger makes the logger that containerd's code writes to, which hands warnings and worse to l.
func newForwardingLogger(l *slog.Logger) *logrus.Logger {
	r := logrus.New()
	r.SetOutput(io.Discard)
	r.SetLevel(logrus.WarnLevel)
	r.AddHook(forward{l})
	// A few places write to the process's logger instead of the one they are given. What they say below the level of
	// an error is of no use to an operator.
	log.L.Logger.SetLevel(logrus.ErrorLevel)
	return r
}

type forward struct{ to *slog.Logger }

// Levels returns the levels that are handed on.
func (f forward) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire hands one entry on.
func (f forward) Fire(e *logrus.Entry) error {
	args := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		args = append(args, k, v)
	}
	f.to.Warn("containerd: "+e.Message, args...)
	return nil
}
