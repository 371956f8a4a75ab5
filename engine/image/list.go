package image

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// List returns the images of the node, one for each digest, sorted by first reference. The filter is a pattern as path.Match
// takes it, held against the full and the short reference with and without tag; empty means all.
func (s *Service) List(ctx context.Context, filter string) ([]*gantryv1.Image, error) {
	ctx = s.in(ctx)
	recs, err := s.Images.List(ctx)
	if err != nil {
		return nil, explain(err, "list images")
	}
	byDigest := map[digest.Digest]*gantryv1.Image{}
	for _, rec := range recs {
		if filter != "" && !matches(filter, rec.Name) {
			continue
		}
		img := byDigest[rec.Target.Digest]
		if img == nil {
			img = s.summary(ctx, rec.Target)
			byDigest[rec.Target.Digest] = img
		}
		if !bare(rec.Name) {
			img.References = append(img.References, rec.Name)
		}
	}
	return sorted(byDigest), nil
}

func sorted(byDigest map[digest.Digest]*gantryv1.Image) []*gantryv1.Image {
	out := make([]*gantryv1.Image, 0, len(byDigest))
	for _, img := range byDigest {
		slices.Sort(img.References)
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b *gantryv1.Image) int {
		return strings.Compare(strings.Join(append(a.References, a.Digest), " "), strings.Join(append(b.References, b.Digest), " "))
	})
	return out
}

func matches(filter, name string) bool {
	short := Familiar(name)
	for _, n := range []string{name, short, untagged(name), untagged(short)} {
		if ok, _ := path.Match(filter, n); ok || n == filter {
			return true
		}
	}
	return strings.HasPrefix(name, "sha256:"+strings.TrimPrefix(filter, "sha256:")) && idPattern.MatchString(filter)
}

func untagged(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// describe is summary with every reference of the target.
func (s *Service) describe(ctx context.Context, target ocispec.Descriptor) (*gantryv1.Image, error) {
	recs, err := s.Images.List(ctx, "target.digest=="+target.Digest.String())
	if err != nil {
		return nil, explain(err, "list images")
	}
	img := s.summary(ctx, target)
	for _, rec := range recs {
		if !bare(rec.Name) {
			img.References = append(img.References, rec.Name)
		}
	}
	slices.Sort(img.References)
	return img, nil
}

// summary describes a target from what is stored below it. The configuration is this machine's platform's, else the first.
func (s *Service) summary(ctx context.Context, target ocispec.Descriptor) *gantryv1.Image {
	img := &gantryv1.Image{Digest: target.Digest.String()}
	sizes := sizer{s: s, seen: map[digest.Digest]bool{}}
	sizes.blob(ctx, target.Digest)
	for i, f := range s.variants(ctx, target) {
		img.Platforms = append(img.Platforms, platforms.Format(f.platform()))
		sizes.add(ctx, f)
		if i == 0 || platforms.Default().Match(f.platform()) {
			img.ConfigDigest, img.Labels = f.ConfigDigest.String(), f.Config.Config.Labels
			if f.Config.Created != nil {
				img.CreatedAt = timestamppb.New(*f.Config.Created)
			}
		}
	}
	img.Size = sizes.total
	return img
}

// sizer adds up blobs and unpacked layers, each once.
type sizer struct {
	s     *Service
	seen  map[digest.Digest]bool
	total int64
}

func (z *sizer) add(ctx context.Context, f *Found) {
	z.blob(ctx, f.Manifest.Digest)
	z.blob(ctx, f.ConfigDigest)
	for _, l := range f.ManifestBody.Layers {
		z.blob(ctx, l.Digest)
	}
	if z.s.Snapshotter == nil {
		return
	}
	for _, chain := range identity.ChainIDs(slices.Clone(f.Config.RootFS.DiffIDs)) {
		z.total += z.s.unpackedSize(ctx, chain)
	}
}

func (z *sizer) blob(ctx context.Context, d digest.Digest) {
	if z.seen[d] {
		return
	}
	z.seen[d] = true
	if info, err := z.s.Content.Info(ctx, d); err == nil {
		z.total += info.Size
	}
}

func (s *Service) unpackedSize(ctx context.Context, chain digest.Digest) int64 {
	u, err := s.Snapshotter.Usage(ctx, chain.String())
	if err != nil {
		return 0 // not unpacked here
	}
	return u.Size
}

// Inspect describes one platform of an image in full.
func (s *Service) Inspect(ctx context.Context, ref, platform string) (*gantryv1.InspectImageResponse, error) {
	f, err := s.Lookup(ctx, ref, platform)
	if err != nil {
		return nil, err
	}
	ctx = s.in(ctx)
	r := &gantryv1.InspectImageResponse{History: s.history(ctx, f)}
	if r.Image, err = s.describe(ctx, f.Target); err != nil {
		return nil, err
	}
	if r.Manifest, err = s.read(ctx, f.Manifest, maxManifest); err != nil {
		return nil, err
	}
	r.Config, err = s.read(ctx, f.ManifestBody.Config, maxConfig)
	return r, err
}

func (s *Service) read(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	var raw rawJSON
	if err := s.readJSON(ctx, d, limit, &raw); err != nil {
		return nil, explain(err, "read %s", d.Digest)
	}
	return raw, nil
}

// rawJSON keeps a document as it is.
type rawJSON []byte

// UnmarshalJSON keeps the bytes.
func (r *rawJSON) UnmarshalJSON(b []byte) error { *r = slices.Clone(b); return nil }

// history pairs the configuration's steps with the layers they made. Sizes are unpacked where unpacked, else as stored.
func (s *Service) history(ctx context.Context, f *Found) (out []*gantryv1.ImageHistory) {
	layers, chains := f.ManifestBody.Layers, identity.ChainIDs(slices.Clone(f.Config.RootFS.DiffIDs))
	n := 0
	for _, h := range f.Config.History {
		step := &gantryv1.ImageHistory{CreatedBy: h.CreatedBy, Comment: h.Comment, Empty: h.EmptyLayer}
		if h.Created != nil {
			step.CreatedAt = timestamppb.New(*h.Created)
		}
		if !h.EmptyLayer && n < len(layers) {
			step.Layer, step.Size = layers[n].Digest.String(), layers[n].Size
			if s.Snapshotter != nil && n < len(chains) {
				step.Size = max(s.unpackedSize(ctx, chains[n]), step.Size)
			}
			n++
		}
		out = append(out, step)
	}
	return out
}
