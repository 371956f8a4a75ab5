package registry

import (
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// visible tells whether a repository has a blob: by a push, a mount, or an image of the node.
func (h *Handler) visible(c *call, repo string, d digest.Digest) (bool, error) {
	linked, err := h.links.has(repo, bucketBlobs, d.String())
	if linked || err != nil {
		return linked, err
	}
	return h.nodeHas(c.ctx, repo, d)
}

// getBlob answers GET and HEAD, whole or in ranges.
func (h *Handler) getBlob(c *call) error {
	d, err := c.digest()
	if err != nil {
		return err
	}
	ok, err := h.visible(c, c.repo, d)
	if err != nil {
		return err
	}
	if !ok {
		return notFound("BLOB_UNKNOWN", "the repository has no such blob")
	}
	return h.serve(c, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d})
}

// serve sends stored content. Ranges and conditions are net/http's.
func (h *Handler) serve(c *call, d ocispec.Descriptor) error {
	ra, err := h.Content.ReaderAt(c.ctx, d)
	if errdefs.IsNotFound(err) {
		return notFound("BLOB_UNKNOWN", "the repository has no such blob")
	}
	if err != nil {
		return err
	}
	defer ra.Close()
	c.w.Header().Set("Content-Type", d.MediaType)
	c.w.Header().Set("Docker-Content-Digest", d.Digest.String())
	c.w.Header().Set("Etag", `"`+d.Digest.String()+`"`)
	http.ServeContent(c.w, c.r, "", time.Time{}, io.NewSectionReader(ra, 0, ra.Size()))
	return nil
}

func (h *Handler) deleteBlob(c *call) error {
	d, err := c.digest()
	if err != nil {
		return err
	}
	ok, err := h.links.has(c.repo, bucketBlobs, d.String())
	if err != nil {
		return err
	}
	if !ok {
		return notFound("BLOB_UNKNOWN", "the repository has no such blob")
	}
	if err := h.unlinkBlob(c.ctx, c.repo, d); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}
