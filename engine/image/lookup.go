package image

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Limits on documents that are read into memory, and on how deep an index may lie in an index.
const (
	maxManifest = 4 << 20
	maxConfig   = 16 << 20
	maxDepth    = 4
)

// Found is one platform of an image on this node.
type Found struct {
	// Name is the full reference of the record that was found.
	Name string
	// Target is what the name stands for: an index or a manifest.
	Target ocispec.Descriptor
	// Manifest is the chosen platform's manifest.
	Manifest     ocispec.Descriptor
	ManifestBody ocispec.Manifest
	ConfigDigest digest.Digest
	Config       ocispec.Image
	// ChainID is the key of the unpacked image's snapshot: the parent of a container's own.
	ChainID digest.Digest
}

// Lookup finds an image by reference, digest or the beginning of one. An empty platform is this machine's.
func (s *Service) Lookup(ctx context.Context, ref, platform string) (*Found, error) {
	match, err := matcher(platform)
	if err != nil {
		return nil, err
	}
	ctx = s.in(ctx)
	rec, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.open(ctx, rec, match)
}

// Resolve finds an image and its configuration. An empty platform is this machine's.
func (s *Service) Resolve(ctx context.Context, ref, platform string) (*gantryv1.Image, *ocispec.Image, error) {
	f, err := s.Lookup(ctx, ref, platform)
	if err != nil {
		return nil, nil, err
	}
	img, err := s.describe(s.in(ctx), f.Target)
	if err != nil {
		return nil, nil, err
	}
	return img, &f.Config, nil
}

func matcher(platform string) (platforms.MatchComparer, error) {
	if platform == "" {
		return platforms.Default(), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "platform %q", platform).WithHint("write it as linux/amd64")
	}
	return platforms.Only(p), nil
}

// find returns the record of a reference, a digest or the beginning of one.
func (s *Service) find(ctx context.Context, ref string) (images.Image, error) {
	if n, err := parse(ref); err == nil {
		rec, err := s.Images.Get(ctx, n.String())
		if err == nil || !errdefs.IsNotFound(err) {
			return rec, explain(err, "image %q", ref)
		}
		if d := digestOf(n.String()); d != "" {
			return s.findDigest(ctx, ref, string(d))
		}
	} else if !idPattern.MatchString(ref) {
		return images.Image{}, err
	}
	if idPattern.MatchString(ref) {
		return s.findDigest(ctx, ref, ref)
	}
	return images.Image{}, missing(ref)
}

func missing(ref string) error {
	return fault.New(fault.NotFound, "image %q is not on this machine", Familiar(ref)).WithHint("gantry image pull %s", Familiar(ref))
}

// findDigest finds an image whose target or configuration has a digest that begins like this.
func (s *Service) findDigest(ctx context.Context, ref, prefix string) (images.Image, error) {
	if !strings.Contains(prefix, ":") {
		prefix = "sha256:" + prefix
	}
	all, err := s.Images.List(ctx)
	if err != nil {
		return images.Image{}, explain(err, "list images")
	}
	hits := map[digest.Digest]images.Image{}
	for _, img := range all {
		if strings.HasPrefix(img.Target.Digest.String(), prefix) || s.hasConfig(ctx, img.Target, prefix) {
			hits[img.Target.Digest] = img
		}
	}
	switch len(hits) {
	case 0:
		return images.Image{}, missing(ref)
	case 1:
		for _, img := range hits {
			return img, nil
		}
	}
	return images.Image{}, fault.New(fault.Invalid, "image %q is ambiguous: %d images begin so", ref, len(hits)).WithHint("write more digits")
}

func (s *Service) hasConfig(ctx context.Context, target ocispec.Descriptor, prefix string) bool {
	for _, m := range s.manifests(ctx, target) {
		if body, err := s.manifest(ctx, m); err == nil && strings.HasPrefix(body.Config.Digest.String(), prefix) {
			return true
		}
	}
	return false
}

// manifests lists the image manifests below a target that are on this node. What is not there or not readable is left out.
func (s *Service) manifests(ctx context.Context, target ocispec.Descriptor) []ocispec.Descriptor {
	return s.manifestsAt(ctx, target, 0)
}

func (s *Service) manifestsAt(ctx context.Context, d ocispec.Descriptor, depth int) (out []ocispec.Descriptor) {
	switch {
	case images.IsManifestType(d.MediaType):
		if _, err := s.Content.Info(ctx, d.Digest); err == nil {
			return []ocispec.Descriptor{d}
		}
	case images.IsIndexType(d.MediaType) && depth < maxDepth:
		var index ocispec.Index
		if s.readJSON(ctx, d, maxManifest, &index) != nil {
			return nil
		}
		for _, m := range index.Manifests {
			out = append(out, s.manifestsAt(ctx, m, depth+1)...)
		}
	}
	return out
}

func (s *Service) manifest(ctx context.Context, d ocispec.Descriptor) (m ocispec.Manifest, err error) {
	return m, s.readJSON(ctx, d, maxManifest, &m)
}

// readJSON reads a document of bounded size. Its digest was checked when it was stored.
func (s *Service) readJSON(ctx context.Context, d ocispec.Descriptor, limit int64, into any) error {
	ra, err := s.Content.ReaderAt(ctx, d)
	if err != nil {
		return err
	}
	defer ra.Close()
	if ra.Size() > limit {
		return fault.New(fault.Invalid, "%s is %d bytes; at most %d are read", d.Digest, ra.Size(), limit)
	}
	if err := json.NewDecoder(content.NewReader(ra)).Decode(into); err != nil {
		return fault.Wrap(fault.Corrupt, err, "%s is not the JSON it should be", d.Digest)
	}
	return nil
}

// open chooses the platform of a record and reads its documents.
func (s *Service) open(ctx context.Context, rec images.Image, match platforms.MatchComparer) (*Found, error) {
	choices := s.variants(ctx, rec.Target)
	choices = slices.DeleteFunc(choices, func(f *Found) bool { return !match.Match(f.platform()) })
	if len(choices) == 0 {
		return nil, fault.New(fault.NotFound, "image %q is on this machine, but not for this platform", Familiar(rec.Name)).
			WithHint("gantry image pull --platform OS/ARCH %s", Familiar(rec.Name))
	}
	slices.SortStableFunc(choices, func(a, b *Found) int {
		switch pa, pb := a.platform(), b.platform(); {
		case match.Less(pa, pb):
			return -1
		case match.Less(pb, pa):
			return 1
		}
		return 0
	})
	f := choices[0]
	f.Name, f.Target = rec.Name, rec.Target
	return f, nil
}

// variants reads every runnable manifest below a target; attestations and artifacts are not runnable.
func (s *Service) variants(ctx context.Context, target ocispec.Descriptor) (out []*Found) {
	for _, d := range s.manifests(ctx, target) {
		body, err := s.manifest(ctx, d)
		if err != nil || !images.IsConfigType(body.Config.MediaType) || attestation(d) {
			continue
		}
		f := &Found{Target: target, Manifest: d, ManifestBody: body, ConfigDigest: body.Config.Digest}
		if s.readJSON(ctx, body.Config, maxConfig, &f.Config) != nil {
			continue
		}
		f.ChainID = identity.ChainID(f.Config.RootFS.DiffIDs)
		out = append(out, f)
	}
	return out
}

func attestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" || (d.Platform != nil && d.Platform.OS == "unknown")
}

func (f *Found) platform() ocispec.Platform {
	p := f.Config.Platform
	if f.Manifest.Platform != nil {
		p = *f.Manifest.Platform
	}
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = platforms.DefaultSpec().Architecture
	}
	return platforms.Normalize(p)
}
