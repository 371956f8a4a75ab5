package image

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Tag gives an image a further name. A name that stood for another image moves.
func (s *Service) Tag(ctx context.Context, source, target string) error {
	to, err := parse(target)
	if err != nil {
		return err
	}
	if digestOf(to.String()) != "" {
		return fault.New(fault.Invalid, "image %s: a tag cannot be a digest", target).WithHint("write the new name as NAME:TAG")
	}
	ctx = s.in(ctx)
	rec, err := s.findOrBring(ctx, source)
	if err != nil {
		return err
	}
	if err := s.put(ctx, to.String(), rec.Target, nil); err != nil {
		return explain(err, "tag %s", target)
	}
	s.Announce(ctx)
	return nil
}

// InUse tells by what an image is used ("instance web.1"), "" if by nothing. It is asked with the digest that the image's name
// stands for.
type InUse func(digest string) string

// Remove takes a name from an image and, with the last name, the image itself and all that nothing else needs. A digest or the
// beginning of one removes every name. What is in use stays, unless force is set and another process only needs its snapshot.
func (s *Service) Remove(ctx context.Context, ref string, force bool, inUse InUse) (*gantryv1.RemoveImageResponse, error) {
	ctx = s.in(ctx)
	rec, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	all, err := s.Images.List(ctx, "target.digest=="+rec.Target.Digest.String())
	if err != nil {
		return nil, explain(err, "list images")
	}
	names := namesToRemove(ref, rec, all)
	last := len(names) == len(all)
	if last && inUse != nil && !force {
		if user := inUse(rec.Target.Digest.String()); user != "" {
			return nil, fault.New(fault.Conflict, "image %s is used by %s", Familiar(ref), user).WithHint("remove that first, or use --force")
		}
	}
	return s.removeNames(ctx, names, rec.Target.Digest, last)
}

// namesToRemove is the one name that was asked for, and the records without a name of their own once no other name is left;
// all names if the image was asked for by digest.
func namesToRemove(ref string, rec images.Image, all []images.Image) []string {
	var named, silent []string
	for _, r := range all {
		if bare(r.Name) || r.Labels[labelDangling] != "" {
			silent = append(silent, r.Name)
		} else {
			named = append(named, r.Name)
		}
	}
	n, err := parse(ref)
	if err != nil || n.String() != rec.Name {
		return append(named, silent...)
	}
	if len(named) > 1 {
		return []string{rec.Name}
	}
	return append(named, silent...)
}

func (s *Service) removeNames(ctx context.Context, names []string, d digest.Digest, last bool) (*gantryv1.RemoveImageResponse, error) {
	defer s.Changed()
	r := &gantryv1.RemoveImageResponse{}
	for i, n := range names {
		var opts []images.DeleteOpt
		if i == len(names)-1 && last {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := s.Images.Delete(ctx, n, opts...); err != nil && !errdefs.IsNotFound(err) {
			return r, explain(err, "remove image %s", Familiar(n))
		}
		if !bare(n) {
			r.Untagged = append(r.Untagged, n)
		}
	}
	if last {
		r.Deleted = []string{d.String()}
	}
	return r, nil
}

// Prune removes images whose name moved on or that never had one, and with all also named ones, except those that keep says
// yes to. Keep is asked with every full reference ("" for none) and the digest it stands for. Then it collects garbage.
func (s *Service) Prune(ctx context.Context, all bool, keep func(ref, digest string) bool) (*gantryv1.PruneImagesResponse, error) {
	ctx = s.in(ctx)
	recs, err := s.Images.List(ctx)
	if err != nil {
		return nil, explain(err, "list images")
	}
	before := s.stored(ctx)
	r := &gantryv1.PruneImagesResponse{}
	for _, d := range prunable(recs, all, keep) {
		for _, rec := range recs {
			if rec.Target.Digest != d || (!all && named(rec)) {
				continue
			}
			if err := s.Images.Delete(ctx, rec.Name); err != nil && !errdefs.IsNotFound(err) {
				return r, explain(err, "remove image %s", rec.Name)
			}
			r.Removed = append(r.Removed, rec.Name)
		}
	}
	if err := s.collect(ctx); err != nil {
		return r, explain(err, "collect garbage")
	}
	s.Changed()
	r.Reclaimed = max(before-s.stored(ctx), 0)
	return r, nil
}

func named(rec images.Image) bool { return !bare(rec.Name) && rec.Labels[labelDangling] == "" }

// prunable decides which digests lose their removable names: an image that is kept under one name is kept under all.
func prunable(recs []images.Image, all bool, keep func(ref, digest string) bool) []digest.Digest {
	candidates := map[digest.Digest]bool{}
	kept := map[digest.Digest]bool{}
	for _, rec := range recs {
		d, ref := rec.Target.Digest, rec.Name
		if bare(ref) {
			ref = ""
		}
		if all || !named(rec) {
			candidates[d] = true
		}
		if keep != nil && keep(ref, d.String()) {
			kept[d] = true
		}
	}
	maps.DeleteFunc(candidates, func(d digest.Digest, _ bool) bool { return kept[d] })
	return slices.SortedFunc(maps.Keys(candidates), func(a, b digest.Digest) int { return strings.Compare(string(a), string(b)) })
}

// stored adds up the bytes of all blobs and snapshots.
func (s *Service) stored(ctx context.Context) (total int64) {
	_ = s.Content.Walk(ctx, func(i content.Info) error { total += i.Size; return nil })
	if s.Snapshotter == nil {
		return total
	}
	_ = s.Snapshotter.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if u, err := s.Snapshotter.Usage(ctx, i.Name); err == nil {
			total += u.Size
		}
		return nil
	})
	return total
}
