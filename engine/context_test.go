package engine_test

import (
	"context"
	"os/signal"
	"syscall"
)

type ctxType = context.Context

func signalContext() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM)
}
