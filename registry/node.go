package registry

import (
	"context"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDepth is how deep an index may lie in an index.
const maxDepth = 4

// nodeNames are the names that images of the node have if they belong to a repository here.
func nodeNames(repo string) []string { return []string{"docker.io/" + repo, repo} }

// nodeImages lists the node's images of a repository.
func (h *Handler) nodeImages(ctx context.Context, repo string) ([]images.Image, error) {
	if h.Images == nil {
		return nil, nil
	}
	var filters []string
	for _, n := range nodeNames(repo) {
		filters = append(filters, "name~="+strconv.Quote("^"+regexp.QuoteMeta(n)+"[:@]"))
	}
	return h.Images.List(ctx, filters...)
}

// nodeManifest finds a manifest of the node's images by tag or digest.
func (h *Handler) nodeManifest(ctx context.Context, repo, ref string) (d ocispec.Descriptor, found bool, err error) {
	if h.Images == nil {
		return d, false, nil
	}
	if !strings.Contains(ref, ":") {
		for _, n := range nodeNames(repo) {
			img, err := h.Images.Get(ctx, n+":"+ref)
			if err == nil {
				return img.Target, true, nil
			}
			if !errdefs.IsNotFound(err) {
				return d, false, err
			}
		}
		return d, false, nil
	}
	d, found, err = h.reach(ctx, repo, digest.Digest(ref))
	return d, found && (images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType)), err
}

// nodeHas tells whether a blob belongs to one of the node's images of a repository.
func (h *Handler) nodeHas(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	_, found, err := h.reach(ctx, repo, d)
	return found, err
}

// reach looks for a digest below the node's images of a repository.
func (h *Handler) reach(ctx context.Context, repo string, want digest.Digest) (ocispec.Descriptor, bool, error) {
	imgs, err := h.nodeImages(ctx, repo)
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	seen := map[digest.Digest]bool{}
	for _, img := range imgs {
		if d, ok := h.below(ctx, img.Target, want, seen, 0); ok {
			return d, true, nil
		}
	}
	return ocispec.Descriptor{}, false, nil
}

// below searches one image, in what of it is stored.
func (h *Handler) below(ctx context.Context, d ocispec.Descriptor, want digest.Digest, seen map[digest.Digest]bool, depth int) (ocispec.Descriptor, bool) {
	if d.Digest == want {
		return d, true
	}
	if seen[d.Digest] || depth > maxDepth || d.Size > h.MaxManifest {
		return d, false
	}
	seen[d.Digest] = true
	children, err := images.Children(ctx, h.Content, d)
	if err != nil {
		return d, false // not stored: a platform that nobody pulled
	}
	for _, c := range children {
		if f, ok := h.below(ctx, c, want, seen, depth+1); ok {
			return f, true
		}
	}
	return d, false
}

func (h *Handler) nodeTags(ctx context.Context, repo string) (tags []string, err error) {
	imgs, err := h.nodeImages(ctx, repo)
	for _, img := range imgs {
		if _, tag, ok := splitName(img.Name); ok {
			tags = append(tags, tag)
		}
	}
	return tags, err
}

func (h *Handler) nodeRepositories(ctx context.Context) (repos []string, err error) {
	if h.Images == nil {
		return nil, nil
	}
	imgs, err := h.Images.List(ctx)
	for _, img := range imgs {
		if repo, _, ok := splitName(img.Name); ok {
			repos = append(repos, repo)
		}
	}
	return repos, err
}

// splitName takes an image's full name apart, if it can be served: a registry's port cannot be part of a repository's name.
func splitName(name string) (repo, tag string, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.ContainsAny(name, "@") || i < strings.LastIndexByte(name, '/') {
		return "", "", false
	}
	repo, tag = strings.TrimPrefix(name[:i], "docker.io/"), name[i+1:]
	return repo, tag, repoPattern.MatchString(repo) && tagPattern.MatchString(tag)
}
