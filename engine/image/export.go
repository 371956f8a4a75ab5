package image

import (
	"context"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/platforms"

	"github.com/gantryd/gantry/fault"
)

// Export writes images as a tar of an OCI layout that `docker load` reads too. An empty platform is every platform that is on
// this node. The images are held while they are read, so that a removal in between does no harm.
func (s *Service) Export(ctx context.Context, w io.Writer, refs []string, platform string) error {
	if len(refs) == 0 {
		return fault.New(fault.Invalid, "no image to export was named")
	}
	match, err := matcher(platform)
	if err != nil {
		return err
	}
	ctx, done, err := s.hold(s.in(ctx), "")
	if err != nil {
		return err
	}
	defer done(nil)
	var opts []archive.ExportOpt
	for _, ref := range refs {
		o, err := s.exported(ctx, ref, platform, match)
		if err != nil {
			return err
		}
		opts = append(opts, o)
	}
	opts = append(opts, archive.WithPlatform(match), archive.WithSkipNonDistributableBlobs(), archive.WithSkipMissing(s.Content))
	if platform == "" {
		opts = append(opts, archive.WithAllPlatforms())
	}
	return explain(archive.Export(ctx, s.Content, w, opts...), "export")
}

// exported names what of an image goes into the archive, and has the lease hold it.
func (s *Service) exported(ctx context.Context, ref, platform string, match platforms.MatchComparer) (archive.ExportOpt, error) {
	rec, err := s.findOrBring(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := s.leaseTarget(ctx, rec.Target); err != nil {
		return nil, explain(err, "export %s", ref)
	}
	f, err := s.open(ctx, rec, match)
	if err != nil {
		return nil, err
	}
	if err := s.complete(ctx, f); err != nil {
		return nil, err
	}
	target := rec.Target
	if platform != "" && images.IsIndexType(target.MediaType) {
		target = f.Manifest
	}
	if bare(rec.Name) {
		return archive.WithManifest(target), nil
	}
	return archive.WithManifest(target, rec.Name), nil
}
