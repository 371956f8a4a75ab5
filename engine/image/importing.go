package image

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Import reads an OCI layout or a docker-archive as a tar stream, plain or compressed with gzip or zstd, and returns its images.
// The reference names an image that the archive does not name. The archive is checked in full, this machine's platform is
// unpacked, and only then does any image appear: an archive that is cut, damaged or hostile leaves nothing.
func (s *Service) Import(ctx context.Context, r io.Reader, reference string) ([]*gantryv1.Image, error) {
	if reference != "" {
		n, err := parse(reference)
		if err != nil {
			return nil, err
		}
		reference = n.String()
	}
	ctx, done, err := s.hold(s.in(ctx), "")
	if err != nil {
		return nil, err
	}
	recs, err := s.importAll(ctx, r, reference)
	done(err)
	if err != nil {
		return nil, explain(err, "import")
	}
	s.Announce(ctx)
	return s.imported(ctx, recs)
}

func (s *Service) imported(ctx context.Context, recs []images.Image) (out []*gantryv1.Image, err error) {
	seen := map[string]bool{}
	for _, rec := range recs {
		if seen[rec.Target.Digest.String()] {
			continue
		}
		seen[rec.Target.Digest.String()] = true
		img, err := s.describe(ctx, rec.Target)
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

func (s *Service) importAll(ctx context.Context, r io.Reader, reference string) ([]images.Image, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the archive cannot be read").WithHint("give a tar file, plain, gzip or zstd")
	}
	defer plain.Close()
	a := newBundle(s, plain)
	if err := a.read(ctx); err != nil {
		return nil, asCorrupt(err)
	}
	recs, err := a.images(ctx, reference)
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if err := s.admit(ctx, rec.Target); err != nil {
			return nil, err
		}
	}
	for _, rec := range recs {
		if err := s.put(ctx, rec.Name, rec.Target, nil); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

// asCorrupt gives errors of the tar and compression formats their kind.
func asCorrupt(err error) error {
	if k, _ := classify(err); k != fault.Internal {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fault.Wrap(fault.Corrupt, err, "the archive ends too early")
	}
	return fault.Wrap(fault.Corrupt, err, "the archive is damaged")
}

// admit checks an imported image in full, labels its parts for the garbage collector and unpacks it.
func (s *Service) admit(ctx context.Context, target ocispec.Descriptor) error {
	runnable, err := s.verify(ctx, target, 0)
	if err != nil {
		return err
	}
	if !runnable {
		return fault.New(fault.Corrupt, "image %s is not complete in the archive", target.Digest)
	}
	f, err := s.open(ctx, images.Image{Name: target.Digest.String(), Target: target}, platforms.Default())
	if fault.Is(err, fault.NotFound) {
		return nil // for another machine: stored, not unpacked
	}
	if err != nil {
		return err
	}
	_, rep := report(ctx, nil)
	defer rep.cancel(nil)
	if s.Snapshotter == nil || s.unpacked(ctx, f) {
		return nil
	}
	if err := s.dispatch(ctx, images.ChildrenHandler(s.Content), f.Manifest, rep); err != nil {
		if k, _ := classify(err); k != fault.Internal {
			return explain(err, "a layer cannot be unpacked")
		}
		return fault.Wrap(fault.Corrupt, err, "a layer cannot be unpacked")
	}
	return nil
}

// verify walks what is stored below d. An index may lack platforms, a manifest may lack nothing. It tells whether a whole
// manifest was found.
func (s *Service) verify(ctx context.Context, d ocispec.Descriptor, depth int) (whole bool, err error) {
	if depth > maxDepth {
		return false, fault.New(fault.Invalid, "%s: an index lies more than %d deep", d.Digest, maxDepth)
	}
	if _, err := checkDescriptor(ctx, d); err != nil {
		return false, fault.Wrap(fault.Invalid, err, "the archive has a wrong descriptor")
	}
	index := images.IsIndexType(d.MediaType)
	if !index && !images.IsManifestType(d.MediaType) {
		return false, fault.New(fault.Unsupported, "the archive holds a %q, not an image", d.MediaType)
	}
	info, err := s.Content.Info(ctx, d.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Size != d.Size {
		return false, fault.New(fault.Corrupt, "%s is %d bytes, not %d", d.Digest, info.Size, d.Size)
	}
	children, err := images.SetChildrenMappedLabels(s.Content, images.ChildrenHandler(s.Content), images.ChildGCLabels)(ctx, d)
	if err != nil {
		return false, fault.Wrap(fault.Corrupt, err, "manifest %s", d.Digest)
	}
	if index {
		return s.verifyIndex(ctx, children, depth)
	}
	return true, s.verifyManifest(ctx, d, children)
}

func (s *Service) verifyIndex(ctx context.Context, children []ocispec.Descriptor, depth int) (whole bool, err error) {
	for _, c := range children {
		w, err := s.verify(ctx, c, depth+1)
		if err != nil {
			return false, err
		}
		whole = whole || w && !attestation(c)
	}
	return whole, nil
}

func (s *Service) verifyManifest(ctx context.Context, d ocispec.Descriptor, children []ocispec.Descriptor) error {
	for _, c := range children {
		if images.IsNonDistributable(c.MediaType) {
			continue
		}
		if err := c.Digest.Validate(); err != nil {
			return fault.Wrap(fault.Corrupt, err, "manifest %s", d.Digest)
		}
		info, err := s.Content.Info(ctx, c.Digest)
		if errdefs.IsNotFound(err) {
			return fault.New(fault.Corrupt, "the archive lacks %s, which manifest %s needs", c.Digest, d.Digest)
		}
		if err != nil {
			return err
		}
		if info.Size != c.Size {
			return fault.New(fault.Corrupt, "%s is %d bytes, not %d", c.Digest, info.Size, c.Size)
		}
	}
	return nil
}

// layerType is the media type of a layer by its first bytes.
func (s *Service) layerType(ctx context.Context, d ocispec.Descriptor) (string, error) {
	ra, err := s.Content.ReaderAt(ctx, d)
	if err != nil {
		return "", err
	}
	defer ra.Close()
	head := make([]byte, 10)
	n, err := io.ReadFull(content.NewReader(ra), head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	switch compression.DetectCompression(head[:n]) {
	case compression.Gzip:
		return ocispec.MediaTypeImageLayerGzip, nil
	case compression.Zstd:
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}

// archiveName is the name of an image in an archive: its full name, else the reference with the archive's tag, else none.
func archiveName(annotations map[string]string, reference string) (string, error) {
	name := annotations[images.AnnotationImageName]
	tag := annotations[ocispec.AnnotationRefName]
	if name == "" && strings.ContainsAny(tag, "/:") {
		name = tag
	}
	if name == "" {
		return reference, nil
	}
	return Normalize(name)
}
