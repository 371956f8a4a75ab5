package registry

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxPage is the longest list in one answer.
const maxPage = 10_000

// page cuts a sorted list as the request's n and last say, and tells where the rest is.
func (c *call) page(all []string) ([]string, error) {
	q := c.r.URL.Query()
	n := maxPage
	if v := q.Get("n"); v != "" {
		i, err := strconv.Atoi(v)
		if err != nil || i < 0 {
			return nil, protocolError{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n is not a number"}
		}
		n = min(i, maxPage)
	}
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	if len(all) > n {
		all = all[:n]
		if n > 0 {
			next := url.Values{"n": {strconv.Itoa(n)}, "last": {all[n-1]}}
			c.w.Header().Set("Link", "<"+c.r.URL.Path+"?"+next.Encode()+`>; rel="next"`)
		}
	}
	return all, nil
}

func (c *call) json(mediaType string, v any) error {
	c.w.Header().Set("Content-Type", mediaType)
	return json.NewEncoder(c.w).Encode(v)
}

func (h *Handler) listTags(c *call) error {
	if c.ref != "" {
		return notFound("NAME_UNKNOWN", "no such address")
	}
	own, err := h.links.keys(c.repo, bucketTags, "", -1)
	if err != nil {
		return err
	}
	node, err := h.nodeTags(c.ctx, c.repo)
	if err != nil {
		return err
	}
	all := slices.Compact(slices.Sorted(slices.Values(append(own, node...))))
	if len(all) == 0 {
		repos, err := h.links.repositories()
		if err != nil {
			return err
		}
		if !slices.Contains(repos, c.repo) {
			return notFound("NAME_UNKNOWN", "no such repository")
		}
	}
	tags, err := c.page(all)
	if err != nil {
		return err
	}
	if tags == nil {
		tags = []string{}
	}
	return c.json("application/json", map[string]any{"name": c.repo, "tags": tags})
}

// catalog lists the repositories.
func (h *Handler) catalog(c *call) error {
	if c.r.Method != http.MethodGet {
		return protocolError{http.StatusMethodNotAllowed, "UNSUPPORTED", "not possible here"}
	}
	if err := h.authorize(c, "", Catalog); err != nil {
		return err
	}
	own, err := h.links.repositories()
	if err != nil {
		return err
	}
	node, err := h.nodeRepositories(c.ctx)
	if err != nil {
		return err
	}
	repos, err := c.page(slices.Compact(slices.Sorted(slices.Values(append(own, node...)))))
	if err != nil {
		return err
	}
	if repos == nil {
		repos = []string{}
	}
	return c.json("application/json", map[string]any{"repositories": repos})
}

// listReferrers lists what was pushed with a manifest as its subject: signatures, attestations, SBOMs. The subject itself need
// not be there.
func (h *Handler) listReferrers(c *call) error {
	subject, err := c.digest()
	if err != nil {
		return err
	}
	found, err := h.links.referrers(c.repo, subject)
	if err != nil {
		return err
	}
	if want := c.r.URL.Query().Get("artifactType"); want != "" {
		found = slices.DeleteFunc(found, func(d ocispec.Descriptor) bool { return d.ArtifactType != want })
		c.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if found == nil {
		found = []ocispec.Descriptor{}
	}
	return c.json(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: found,
	})
}
