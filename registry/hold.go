package registry

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"time"

	"crypto/sha256"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/fault"
)

// The order that makes a push safe against the garbage collector and a crash at any point: the repository's lease takes a digest
// first, then its link is written; a link goes first, then the lease lets go. So a link always has its content, and what a crash
// leaves is content without a link, which reconcile lets go of at the next start.

const labelRepo = "gantry.dev/registry"

func leaseOf(repo string) leases.Lease {
	sum := sha256.Sum256([]byte(repo))
	return leases.Lease{ID: "registry-" + hex.EncodeToString(sum[:20])}
}

func resource(d digest.Digest) leases.Resource {
	return leases.Resource{ID: d.String(), Type: "content"}
}

// keep has the repository's lease hold a digest. The repository's lock must be held.
func (h *Handler) keep(ctx context.Context, repo string, d digest.Digest) error {
	l := leaseOf(repo)
	err := h.Leases.AddResource(ctx, l, resource(d))
	if !errdefs.IsNotFound(err) {
		return err
	}
	_, err = h.Leases.Create(ctx, leases.WithID(l.ID), leases.WithLabels(map[string]string{labelRepo: repo}))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return h.Leases.AddResource(ctx, l, resource(d))
}

// letGo has the lease release a digest, unless it is still linked in another way. The repository's lock must be held.
func (h *Handler) letGo(ctx context.Context, repo string, d digest.Digest) error {
	for _, bucket := range []string{bucketBlobs, bucketManifests} {
		if linked, err := h.links.has(repo, bucket, d.String()); linked || err != nil {
			return err
		}
	}
	err := h.Leases.DeleteResource(ctx, leaseOf(repo), resource(d))
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// linkBlob makes stored content part of a repository. It fails with errdefs.ErrNotFound if the content is gone.
func (h *Handler) linkBlob(ctx context.Context, repo string, d digest.Digest) error {
	defer h.lock(repo)()
	if err := h.keep(ctx, repo, d); err != nil {
		return err
	}
	if _, err := h.Content.Info(ctx, d); err != nil {
		_ = h.letGo(ctx, repo, d)
		return err
	}
	return h.links.linkBlob(repo, d)
}

func (h *Handler) unlinkBlob(ctx context.Context, repo string, d digest.Digest) error {
	defer h.lock(repo)()
	if err := h.links.remove(repo, bucketBlobs, d.String()); err != nil {
		return err
	}
	return h.letGo(ctx, repo, d)
}

// reconcile brings the leases in line with the links after a crash.
func (h *Handler) reconcile(ctx context.Context) error {
	ls, err := h.Leases.List(ctx, `labels."`+labelRepo+`"`)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "registry: list leases")
	}
	for _, l := range ls {
		repo := l.Labels[labelRepo]
		if l.ID != leaseOf(repo).ID {
			continue
		}
		rs, err := h.Leases.ListResources(ctx, l)
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "registry: list what %s holds", repo)
		}
		for _, r := range rs {
			if err := h.letGo(ctx, repo, digest.Digest(r.ID)); err != nil {
				return fault.Wrap(fault.Unavailable, err, "registry: release %s of %s", r.ID, repo)
			}
		}
	}
	return nil
}

// Prune removes blobs that no manifest of their repository needs and that were linked before a time: what pushes that were given
// up, and deleted manifests, left. It returns how many it removed. The content goes with containerd's next collection.
func (h *Handler) Prune(ctx context.Context, before time.Time) (removed int, err error) {
	ctx = h.in(ctx)
	repos, err := h.links.repositories()
	if err != nil {
		return 0, fault.Wrap(fault.Corrupt, err, "registry: read the list of repositories")
	}
	for _, repo := range repos {
		n, err := h.pruneRepo(ctx, repo, before)
		removed += n
		if err != nil {
			return removed, fault.Wrap(fault.Unavailable, err, "registry: prune %s", repo)
		}
	}
	return removed, nil
}

func (h *Handler) pruneRepo(ctx context.Context, repo string, before time.Time) (removed int, err error) {
	defer h.lock(repo)()
	var loose []digest.Digest
	err = h.links.update(repo, func(t repoTx) error {
		needed, err := t.needed()
		if err != nil {
			return err
		}
		err = t.each(bucketBlobs, func(k, v string) error {
			if !needed[digest.Digest(k)] && time.Unix(int64(binary.BigEndian.Uint64([]byte(v))), 0).Before(before) {
				loose = append(loose, digest.Digest(k))
			}
			return nil
		})
		for _, d := range loose {
			if err == nil {
				err = t.delete(bucketBlobs, d.String())
			}
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, d := range loose {
		if err := h.letGo(ctx, repo, d); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// needed is every digest that a manifest of the repository refers to.
func (t repoTx) needed() (map[digest.Digest]bool, error) {
	needed := map[digest.Digest]bool{}
	err := t.each(bucketManifests, func(_, v string) error {
		var rec manifestRecord
		if err := json.Unmarshal([]byte(v), &rec); err != nil {
			return err
		}
		for _, d := range rec.Refs {
			needed[d] = true
		}
		return nil
	})
	return needed, err
}
