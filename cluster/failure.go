package cluster

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"go.uber.org/zap/zapcore"
)

// failure is how a member ends that cannot go on: etcd logs what it calls fatal, and would end the process or panic. Here that
// ends only the goroutine in which it happened; the member is of no use after it and has to be stopped.
type failure struct {
	once sync.Once
	err  error // to be read after done
	done chan struct{}
}

func newFailure() *failure { return &failure{done: make(chan struct{})} }

// OnWrite is part of zapcore.CheckWriteHook. It does not return.
func (f *failure) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	f.once.Do(func() {
		f.err = fmt.Errorf("%w: %w", ErrFailed, message(e.Message, fields))
		close(f.done)
	})
	runtime.Goexit()
}

// message is what was logged, around the error if there is one.
func message(text string, fields []zapcore.Field) error {
	for _, x := range fields {
		if err, ok := x.Interface.(error); ok {
			return fmt.Errorf("%s: %w", text, err)
		}
	}
	return errors.New(text)
}
