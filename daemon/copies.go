package daemon

import (
	"context"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/control/replicate"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/observe"
	"github.com/gantryd/gantry/store"
)

// copySilence is how long a machine that fetches an image may say nothing of its progress.
const copySilence = 2 * time.Minute

// copyImage has a machine fetch an image from others, and returns once it has all of it.
func (r *serverRole) copyImage(st *store.Store) func(ctx context.Context, node string, image replicate.Image) error {
	return func(ctx context.Context, node string, image replicate.Image) error {
		n, ok := store.Get[*gantryv1.Node](st.Snapshot(), node)
		if !ok {
			return fault.New(fault.NotFound, "the machine is no part of the cluster any more")
		}
		way := r.local
		if node != r.machine.Node().Meta.Key {
			way = r.reach(n)
		}
		return fetchAhead(ctx, way.Images, image, copySilence)
	}
}

// fetchAhead has a machine fetch an image, as long as it says how far it is.
func fetchAhead(ctx context.Context, images gantryv1connect.ImageServiceClient, image replicate.Image, patience time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(patience, func() {
		cancel(fault.New(fault.Timeout, "the machine said nothing of its progress for %s", patience))
	})
	defer silence.Stop()
	stream, err := images.Pull(ctx, connect.NewRequest(&gantryv1.PullRequest{
		Image: image.Reference, Platform: image.Platform, Policy: gantryv1.PullPolicy_PULL_POLICY_NEVER, Ahead: true,
	}))
	if err != nil {
		return copyError(ctx, err)
	}
	defer stream.Close()
	for stream.Receive() {
		silence.Reset(patience)
	}
	return copyError(ctx, stream.Err())
}

// copyError is why a copy ended, which may be its silence.
func copyError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && fault.Is(cause, fault.Timeout) {
		return cause
	}
	return wire.Decode(err)
}

// copyMetrics publishes the copies of images that the leader has made.
func copyMetrics(m *observe.Metrics, f *replicate.Figures) {
	m.Count("image_copies_total", "Images copied to machines ahead of need.", &f.Made)
	m.Count("image_copies_failed_total", "Copies that did not succeed.", &f.Failed)
	m.Level("image_copies_running", "Copies under way.", &f.Running)
	m.Level("images_lacking_copies", "Images that releases need and that fewer machines have than is wanted.", &f.Lacking)
	m.Level("images_single_copy", "Images that services run by and that at most one machine has, where there could be more.", &f.Single)
}
