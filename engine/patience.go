package engine

import (
	"context"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/gantryd/gantry/fault"
)

// How long a shim has to answer: what it passes on at once, and what it starts a program for.
const (
	shimLimit     = 8 * time.Second
	shimExecLimit = 30 * time.Second
)

// askShim calls a shim that may be stopped, or starved on a machine that is overloaded: the caller hears of it in time.
func askShim(ctx context.Context, id, what string, limit time.Duration, call func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := errgrpc.ToNative(call(limited))
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return errShimSilent(id, what, limit)
	}
	return err
}

func errShimSilent(id, what string, limit time.Duration) error {
	return fault.New(fault.Timeout, "container %s: its shim did not %s within %s", id, what, limit).
		WithHint("is the shim stopped, or the machine overloaded? on the machine: ps -o pid,stat,args -C containerd-shim-runc-v2")
}
