package build

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/build/lint"
	"github.com/gantryd/gantry/build/unpack"
	"github.com/gantryd/gantry/fault"
)

// Request is one build.
type Request struct {
	// Start is the client's first message. It carries the spec, secrets, credentials and result names.
	Start *gantryv1.BuildStart
	// Contexts are directories by name: "context" and the additional ones. Build reads them and honours their
	// .dockerignore; they must not change while it runs.
	Contexts map[string]string
	// SSH reaches the client's SSH agents by ID ("default").
	SSH map[string]Dial
}

// UnpackContext makes the existing directory dir hold what a client's tar stream, plain or compressed with gzip or zstd,
// holds. It never writes outside of dir, leaves files that are the same alone and removes what the stream lacks.
// If the disk is full, dir is empty afterwards: half a context is of no use, and somebody needs the room.
func UnpackContext(ctx context.Context, r io.Reader, dir string) error {
	err := unpack.Tar(ctx, r, dir)
	if fault.Is(err, fault.Exhausted) {
		empty(dir)
	}
	return err
}

func empty(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		os.RemoveAll(filepath.Join(dir, e.Name()))
	}
}

// statusGrace is how long a failed build waits for its last progress: a solve that fails before it starts has none.
const statusGrace = 2 * time.Second

// Build runs a Dockerfile and stores the result. It calls emit, never in parallel, for everything worth showing, and
// stops when emit fails. The result is returned, not emitted. Kinds of errors: Invalid (the Dockerfile or a step of it
// failed), NotFound, Denied, Unsupported, Unavailable (a base image or the network), Canceled.
func (b *Builder) Build(ctx context.Context, req Request, emit func(*gantryv1.BuildEvent) error) (*gantryv1.Image, error) {
	src, err := b.prepare(req)
	if err != nil {
		return nil, err
	}
	defer src.close()
	solve, err := b.solveRequest(req.Start, src)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &progress{emit: emit, stop: cancel}
	defer p.close()
	if src.text != nil {
		p.warn(lint.Check(src.dockerfile, src.text, req.Start.GetSpec().GetArgs()))
	}
	resp, err := b.solve(ctx, req, src, solve, p)
	if err != nil {
		err = p.failure(ctx, err)
		if fault.Is(err, fault.Exhausted) {
			b.makeRoom(ctx)
		}
		return nil, err
	}
	return b.result(ctx, solve, resp)
}

// makeRoom has containerd remove at once what a failed step has written; else that waits for the next collection.
func (b *Builder) makeRoom(ctx context.Context) {
	if _, err := b.collect(context.WithoutCancel(ctx)); err != nil {
		b.log.Warn("what a failed build has written is not removed yet", "err", err)
	}
}

// solve runs the session, the solver and the progress stream until the solver is done.
func (b *Builder) solve(ctx context.Context, req Request, src sources, solve *controlapi.SolveRequest, p *progress) (*controlapi.SolveResponse, error) {
	s, err := b.openSession(ctx, req, src)
	if err != nil {
		return nil, err
	}
	solve.Session = s.ID()
	sessionCtx, endSession := context.WithCancel(ctx)
	var group errgroup.Group
	group.Go(func() error { return b.runSession(sessionCtx, s) })
	defer func() {
		endSession()
		s.Close()
		group.Wait()
	}()
	// The stream outlives a canceled build by its last words.
	statusCtx, endStatus := context.WithCancel(context.WithoutCancel(ctx))
	defer endStatus()
	done := make(chan struct{})
	group.Go(func() error {
		defer close(done)
		return b.watch(statusCtx, solve.Ref, p)
	})
	resp, err := b.controller.Solve(ctx, solve)
	select {
	case <-done:
	case <-time.After(statusGrace):
	}
	endStatus()
	return resp, err
}

// watch feeds a build's progress to p until the build ends.
func (b *Builder) watch(ctx context.Context, ref string, p *progress) error {
	return b.controller.Status(&controlapi.StatusRequest{Ref: ref}, &statusStream{stream: stream{ctx: ctx}, take: func(r *controlapi.StatusResponse) {
		p.take(client.NewSolveStatus(r))
	}})
}

// Usage tells how much the cache holds.
func (b *Builder) Usage(ctx context.Context) (bytes int64, records int, err error) {
	resp, err := b.controller.DiskUsage(ctx, &controlapi.DiskUsageRequest{})
	if err != nil {
		return 0, 0, fault.Wrap(fault.Internal, err, "read the build cache's usage")
	}
	for _, r := range resp.Record {
		bytes += r.Size
	}
	return bytes, len(resp.Record), nil
}

// Prune removes cache that no build uses until at most keep bytes are left; all also removes what images still share.
func (b *Builder) Prune(ctx context.Context, all bool, keep int64) (reclaimed int64, records int, err error) {
	req := &controlapi.PruneRequest{All: all, MaxUsedSpace: keep}
	err = b.controller.Prune(req, &pruneStream{stream: stream{ctx: ctx}, take: func(r *controlapi.UsageRecord) {
		reclaimed += r.Size
		records++
	}})
	if err != nil {
		return reclaimed, records, fault.Wrap(fault.Internal, err, "prune the build cache")
	}
	return reclaimed, records, nil
}
