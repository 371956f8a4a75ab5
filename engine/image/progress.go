package image

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// emitEvery is how often a running transfer is told of.
const emitEvery = 100 * time.Millisecond

// reporter makes one ordered stream of progress out of parallel work. The first error of the receiver stops the work.
type reporter struct {
	mu     sync.Mutex
	emit   Emit
	err    error
	cancel context.CancelCauseFunc
}

// report starts a reporter; work under the returned context is cancelled when the receiver fails.
func report(ctx context.Context, emit Emit) (context.Context, *reporter) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &reporter{emit: emit, cancel: cancel}
}

func (r *reporter) send(p *gantryv1.Progress) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.emit == nil || r.err != nil {
		return r.err
	}
	if r.err = r.emit(p); r.err != nil {
		r.cancel(r.err)
	}
	return r.err
}

func (r *reporter) step(d ocispec.Descriptor, status string, current int64) {
	_ = r.send(&gantryv1.Progress{Id: d.Digest.String(), Status: status, Current: current, Total: d.Size})
}

// finish sends the last message.
func (r *reporter) finish(img *gantryv1.Image) error {
	return r.send(&gantryv1.Progress{Id: img.Digest, Status: "done", Image: img})
}

// meter tells of the bytes that pass.
type meter struct {
	desc   ocispec.Descriptor
	status string
	report *reporter
	at     int64
	next   time.Time
}

func (m *meter) add(n int) {
	m.at += int64(n)
	if now := time.Now(); now.After(m.next) {
		m.next = now.Add(emitEvery)
		m.report.step(m.desc, m.status, m.at)
	}
}

// meteredFetcher tells of layers that are downloaded.
type meteredFetcher struct {
	remotes.Fetcher
	report *reporter
}

// Fetch opens a blob.
func (f meteredFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := f.Fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	m := &meteredReader{ReadCloser: rc, meter: meter{desc: desc, status: "downloading", report: f.report}}
	if _, ok := rc.(io.Seeker); ok {
		return meteredSeeker{m}, nil
	}
	return m, nil
}

type meteredReader struct {
	io.ReadCloser
	meter meter
}

// Read reads and counts.
func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.meter.add(n)
	return n, err
}

// meteredSeeker keeps a download resumable: the store seeks to where it stopped.
type meteredSeeker struct{ *meteredReader }

// Seek moves the reader and the count.
func (r meteredSeeker) Seek(offset int64, whence int) (int64, error) {
	at, err := r.ReadCloser.(io.Seeker).Seek(offset, whence)
	if err == nil {
		r.meter.at = at
	}
	return at, err
}

// meteredApplier tells of layers that are unpacked.
type meteredApplier struct {
	diff.Applier
	report *reporter
}

// Apply unpacks a layer.
func (a meteredApplier) Apply(ctx context.Context, d ocispec.Descriptor, m []mount.Mount, o ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	a.report.step(d, "extracting", 0)
	out, err := a.Applier.Apply(ctx, d, m, o...)
	if err == nil {
		a.report.step(d, "done", d.Size)
	}
	return out, err
}
