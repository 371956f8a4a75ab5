package image

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Push sends an image to the registry its name says. Of an index it sends the whole if all of it is here, else the manifest for
// this machine's platform; with AllPlatforms it sends the whole or fails.
func (s *Service) Push(ctx context.Context, req *gantryv1.PushRequest, emit Emit) (*gantryv1.Image, error) {
	named, err := parse(req.Image)
	if err != nil {
		return nil, err
	}
	if digestOf(named.String()) != "" {
		return nil, fault.New(fault.Invalid, "image %s: a push needs a tag, not a digest", req.Image).WithHint("gantry image tag %s NAME:TAG", req.Image)
	}
	ctx, rep := report(s.in(ctx), emit)
	defer rep.cancel(nil)
	rec, err := s.findOrBring(ctx, named.String())
	if err != nil {
		return nil, err
	}
	target, err := s.pushTarget(ctx, rec, req.AllPlatforms)
	if err != nil {
		return nil, err
	}
	resolver, err := s.resolver(ctx, named, req.Auth)
	if err != nil {
		return nil, err
	}
	pusher, err := resolver.Pusher(ctx, named.String()+"@"+target.Digest.String())
	if err != nil {
		return nil, explain(err, "push %s", req.Image)
	}
	err = remotes.PushContent(ctx, meteredPusher{pusher, rep}, target, s.Content, nil, platforms.All, skipForeign)
	if err != nil {
		return nil, explain(err, "push %s", req.Image)
	}
	img, err := s.describe(ctx, rec.Target)
	if err != nil {
		return nil, err
	}
	return img, rep.finish(img)
}

// pushTarget chooses what of a record is sent.
func (s *Service) pushTarget(ctx context.Context, rec images.Image, all bool) (ocispec.Descriptor, error) {
	lacking, err := s.firstMissing(ctx, rec.Target, 0)
	if err != nil {
		return ocispec.Descriptor{}, explain(err, "image %s", rec.Name)
	}
	if lacking == "" {
		return rec.Target, nil
	}
	if all {
		return ocispec.Descriptor{}, fault.New(fault.Conflict, "image %s: %s of another platform is not on this machine", Familiar(rec.Name), lacking).
			WithHint("push without --all-platforms, or pull every platform first")
	}
	f, err := s.open(ctx, rec, platforms.Default())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return f.Manifest, s.complete(ctx, f)
}

// firstMissing returns the first digest below d that is not stored, "" if all is here.
func (s *Service) firstMissing(ctx context.Context, d ocispec.Descriptor, depth int) (string, error) {
	if depth > maxDepth {
		return "", fault.New(fault.Invalid, "%s: an index lies more than %d deep", d.Digest, maxDepth)
	}
	if images.IsNonDistributable(d.MediaType) {
		return "", nil
	}
	if _, err := s.Content.Info(ctx, d.Digest); errdefs.IsNotFound(err) {
		return d.Digest.String(), nil
	} else if err != nil {
		return "", err
	}
	children, err := images.Children(ctx, s.Content, d)
	if err != nil {
		return "", err
	}
	for _, c := range children {
		if m, err := s.firstMissing(ctx, c, depth+1); m != "" || err != nil {
			return m, err
		}
	}
	return "", nil
}

// meteredPusher tells of blobs that are sent.
type meteredPusher struct {
	remotes.Pusher
	report *reporter
}

// Push begins to send a blob.
func (p meteredPusher) Push(ctx context.Context, d ocispec.Descriptor) (content.Writer, error) {
	w, err := p.Pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		p.report.step(d, "exists", d.Size)
	}
	if err != nil {
		return nil, err
	}
	return &meteredWriter{Writer: w, meter: meter{desc: d, status: "uploading", report: p.report}}, nil
}

type meteredWriter struct {
	content.Writer
	meter meter
}

// Write writes and counts.
func (w *meteredWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.meter.add(n)
	return n, err
}

// Commit ends the blob.
func (w *meteredWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil {
		w.meter.report.step(w.meter.desc, "done", w.meter.desc.Size)
	}
	return err
}

// skipForeign leaves out layers that only their maker may distribute.
func skipForeign(h images.Handler) images.Handler {
	return remotes.SkipNonDistributableBlobs(h.Handle)
}
