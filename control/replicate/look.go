package replicate

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// usualCopies is how many machines have each image, unless the cluster says otherwise.
const usualCopies = 2

// situation is what the store, the tracker and this time of leading know.
func (r *run) situation(snap store.Reader, now time.Time) situation {
	s := situation{
		now: now, copies: usualCopies, images: r.images, machines: r.machines(snap), failed: r.failed, lacking: r.lacking,
		settle: r.o.Settle, waitTill: r.waitTill, running: map[task]string{}, holders: map[string][]string{},
	}
	for _, c := range store.List[*gantryv1.Cluster](snap, "") {
		if c.ImageCopies > 0 {
			s.copies = int(c.ImageCopies)
		}
	}
	for t, c := range r.running {
		s.running[t] = c.from
	}
	for _, i := range r.images {
		s.holders[i.Digest] = r.o.Tracker.Keepers(i.Digest)
	}
	for t := range r.fresh {
		if !s.has(t.digest, t.node) {
			s.holders[t.digest] = append(s.holders[t.digest], t.node)
		}
	}
	return s
}

func (r *run) machines(snap store.Reader) []machine {
	var out []machine
	for _, n := range store.List[*gantryv1.Node](snap, "") {
		st, _ := store.Get[*gantryv1.NodeStatus](snap, n.Meta.Key)
		m := machine{
			id: n.Meta.Key, name: n.Name, arch: st.GetArchitecture(), server: n.Role == "server",
			up:    st.GetState() != "" && st.GetState() != "down",
			takes: placement.Active(n),
			told:  r.o.Tracker.Told(n.Meta.Key), full: st.GetDiskFull(),
		}
		if m.name == "" {
			m.name = m.id
		}
		if seen := st.GetLastSeen(); !m.up && seen != nil {
			m.given = seen.AsTime().Add(r.o.Grace)
		}
		out = append(out, m)
	}
	return out
}

// ranked is an image with how urgent its best release is.
type ranked struct {
	Image
	class  int // 0 services run by it, 1 they ran by it before, 2 it is older
	number int64
}

// needed lists the images of releases by their digests: those that services run by, then those they ran by before, then older
// ones, the newest first.
func needed(snap store.Reader) []Image {
	byDigest := map[string]*ranked{}
	for _, rel := range store.List[*gantryv1.Release](snap, "") {
		c := rel.GetSpec().GetContainer()
		s, ok := store.Get[*gantryv1.Service](snap, rel.Service)
		if c.GetImageDigest() == "" || c.GetImage() == "" || !ok || s.Removing {
			continue
		}
		is := rank(rel, s)
		if had := byDigest[c.ImageDigest]; had != nil {
			is.Services = append(is.Services, had.Services...)
			if compare(had, is) < 0 {
				had.Services = is.Services
				continue
			}
		}
		byDigest[c.ImageDigest] = is
	}
	var out []Image
	for _, i := range slices.SortedFunc(maps.Values(byDigest), compare) {
		slices.Sort(i.Services)
		i.Services = slices.Compact(i.Services)
		out = append(out, i.Image)
	}
	return out
}

// rank is the image of one release of a service.
func rank(rel *gantryv1.Release, s *gantryv1.Service) *ranked {
	c := rel.Spec.Container
	name, _, _ := strings.Cut(c.Image, "@")
	is := &ranked{
		Image: Image{Digest: c.ImageDigest, Reference: name + "@" + c.ImageDigest, Platform: c.Platform}, class: 2, number: rel.Number,
	}
	switch rel.Number {
	case s.Release:
		is.class = 0
		if !s.Stopped {
			is.Services = []string{rel.Service}
		}
	case s.PreviousRelease:
		is.class = 1
	}
	return is
}

// compare orders the most urgent first.
func compare(a, b *ranked) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(b.number, a.number), cmp.Compare(a.Digest, b.Digest))
}
