// Package catalog makes one list of the images of several machines, and says what removing one of them means on each.
//
// Merge and Remove are pure: they look at what the machines have listed. A name may stand for different images on different
// machines; then each is an entry of its own.
package catalog

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Lists is what machines have, by their IDs.
type Lists map[string][]*gantryv1.Image

// Merge makes one list, sorted by name. Nodes of an image are the IDs of those that list it.
func Merge(lists Lists) []*gantryv1.Image {
	merged := map[string]*gantryv1.Image{}
	for _, id := range slices.Sorted(maps.Keys(lists)) {
		for _, i := range lists[id] {
			all := merged[i.Digest]
			if all == nil {
				all = proto.Clone(i).(*gantryv1.Image)
				all.Nodes, merged[i.Digest] = nil, all
			}
			all.References = append(all.References, i.References...)
			all.Platforms = append(all.Platforms, i.Platforms...)
			all.Size = max(all.Size, i.Size) // one that is not unpacked is smaller
			all.Nodes = append(all.Nodes, id)
		}
	}
	out := make([]*gantryv1.Image, 0, len(merged))
	for _, i := range merged {
		i.References = names(i.References)
		slices.Sort(i.Platforms)
		i.Platforms = slices.Compact(i.Platforms)
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b *gantryv1.Image) int { return strings.Compare(sortKey(a), sortKey(b)) })
	return out
}

func sortKey(i *gantryv1.Image) string {
	return strings.Join(append(slices.Clone(i.References), i.Digest), " ")
}

// names sorts references and leaves out those by digest if there are others.
func names(refs []string) []string {
	slices.Sort(refs)
	refs = slices.Compact(refs)
	if tags := slices.DeleteFunc(slices.Clone(refs), byDigest); len(tags) > 0 {
		return tags
	}
	return refs
}

func byDigest(ref string) bool { return strings.Contains(ref, "@") }

// Removal is what removing an image means.
type Removal struct {
	// Orders are what each machine is told to remove: a name, or a digest with all its names.
	Orders map[string][]string
	// Gone are the digests of which nothing stays anywhere.
	Gone []string
}

// Remove finds what a name, a digest or the beginning of one stands for. A name goes wherever it is; with the last name of an
// image in the cluster, the image itself goes from all machines.
func Remove(ref string, lists Lists) (Removal, error) {
	r := Removal{Orders: map[string][]string{}}
	if full, digests := named(ref, lists); len(digests) > 0 {
		for _, d := range digests {
			r.untag(full, d, lists)
		}
		return r, nil
	}
	d, err := find(ref, lists)
	if err == nil {
		r.gone(d, lists)
	}
	return r, err
}

// named finds the digests that a name stands for.
func named(ref string, lists Lists) (full string, digests []string) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", nil
	}
	if _, ok := n.(reference.Digested); ok {
		return "", nil
	}
	full = reference.TagNameOnly(n).String()
	for _, i := range Merge(lists) {
		if slices.Contains(i.References, full) {
			digests = append(digests, i.Digest)
		}
	}
	return full, digests
}

// untag removes a name of an image, and the image with its last name.
func (r *Removal) untag(name, digest string, lists Lists) {
	for _, i := range Merge(lists) {
		if i.Digest == digest && len(i.References) == 1 {
			r.gone(digest, lists)
			return
		}
	}
	for id, images := range lists {
		for _, i := range images {
			if i.Digest == digest && slices.Contains(i.References, name) {
				r.Orders[id] = append(r.Orders[id], name)
			}
		}
	}
}

func (r *Removal) gone(digest string, lists Lists) {
	r.Gone = append(r.Gone, digest)
	for id, images := range lists {
		if slices.ContainsFunc(images, func(i *gantryv1.Image) bool { return i.Digest == digest }) {
			r.Orders[id] = append(r.Orders[id], digest)
		}
	}
}

var idPattern = regexp.MustCompile(`^(sha256:)?[0-9a-f]{4,64}$`)

// find returns the digest of the one image whose digest, or that of whose configuration, begins so.
func find(ref string, lists Lists) (string, error) {
	if _, d, ok := strings.Cut(ref, "@"); ok {
		ref = d
	}
	if !idPattern.MatchString(ref) {
		return "", missing(ref)
	}
	prefix := "sha256:" + strings.TrimPrefix(ref, "sha256:")
	found := map[string]bool{}
	for _, images := range lists {
		for _, i := range images {
			if strings.HasPrefix(i.Digest, prefix) || strings.HasPrefix(i.ConfigDigest, prefix) {
				found[i.Digest] = true
			}
		}
	}
	switch len(found) {
	case 0:
		return "", missing(ref)
	case 1:
		return slices.Collect(maps.Keys(found))[0], nil
	}
	return "", fault.New(fault.Invalid, "image %q is ambiguous: %d images begin so", ref, len(found)).WithHint("write more digits")
}

func missing(ref string) error {
	return fault.New(fault.NotFound, "image %q is not here", ref).WithHint("gantry image ls")
}
