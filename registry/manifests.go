package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// document is what the registry reads of a manifest or index of any kind.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Subject       *ocispec.Descriptor  `json:"subject"`
	Annotations   map[string]string    `json:"annotations"`
}

func invalidManifest(message string) error {
	return protocolError{http.StatusBadRequest, "MANIFEST_INVALID", message}
}

// getManifest answers GET and HEAD by tag or digest.
func (h *Handler) getManifest(c *call) error {
	d, mediaType, err := h.findManifest(c, c.ref)
	if err != nil {
		return err
	}
	return h.serve(c, ocispec.Descriptor{MediaType: mediaType, Digest: d})
}

func (h *Handler) findManifest(c *call, ref string) (digest.Digest, string, error) {
	if err := checkReference(ref); err != nil {
		return "", "", err
	}
	d, rec, ok, err := h.links.manifest(c.repo, ref)
	if err != nil {
		return "", "", err
	}
	if ok {
		return d, rec.MediaType, nil
	}
	desc, ok, err := h.nodeManifest(c.ctx, c.repo, ref)
	if err != nil {
		return "", "", err
	}
	if !ok {
		return "", "", notFound("MANIFEST_UNKNOWN", "the repository has no such manifest")
	}
	return desc.Digest, desc.MediaType, nil
}

func checkReference(ref string) error {
	if strings.Contains(ref, ":") {
		_, err := parseDigest(ref)
		return err
	}
	if !tagPattern.MatchString(ref) {
		return notFound("MANIFEST_UNKNOWN", "not a tag or a digest")
	}
	return nil
}

// putManifest stores a manifest whose parts are all there, under a tag, a digest, or a digest with tags.
func (h *Handler) putManifest(c *call) error {
	if err := checkReference(c.ref); err != nil {
		return invalidManifest(err.Error())
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, h.MaxManifest))
	if err != nil {
		return err
	}
	doc, err := readDocument(c.r, body)
	if err != nil {
		return err
	}
	d, tags, err := manifestNames(c, body)
	if err != nil {
		return err
	}
	rec := manifestRecord{MediaType: doc.MediaType, ArtifactType: doc.kind(), Size: int64(len(body)), Annotations: doc.Annotations, Linked: time.Now().UTC()}
	if rec.Refs, err = h.checkParts(c, doc); err != nil {
		return err
	}
	if doc.Subject != nil {
		rec.Subject = doc.Subject.Digest
	}
	if err := h.storeManifest(c, d, body, rec, tags); err != nil {
		return err
	}
	c.location("/manifests/", d.String())
	c.w.Header().Set("Docker-Content-Digest", d.String())
	if rec.Subject != "" {
		c.w.Header().Set("OCI-Subject", rec.Subject.String())
	}
	for _, t := range c.r.URL.Query()["tag"] {
		c.w.Header().Add("OCI-Tag", t)
	}
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// readDocument checks that a body is a manifest of a known kind, and of the kind that the request says.
func readDocument(r *http.Request, body []byte) (*document, error) {
	var doc document
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, invalidManifest("the manifest is not valid JSON")
	}
	said := r.Header.Get("Content-Type")
	if said != "" {
		t, _, err := mime.ParseMediaType(said)
		if err != nil {
			return nil, invalidManifest("the Content-Type cannot be read")
		}
		said = t
	}
	if doc.MediaType == "" {
		doc.MediaType = said
	}
	if said != "" && said != doc.MediaType {
		return nil, invalidManifest("the Content-Type is not the manifest's media type")
	}
	if !images.IsManifestType(doc.MediaType) && !images.IsIndexType(doc.MediaType) {
		return nil, invalidManifest("the media type is not one of a manifest or an index")
	}
	if images.IsIndexType(doc.MediaType) && (doc.Config != nil || len(doc.Layers) > 0) || images.IsManifestType(doc.MediaType) && len(doc.Manifests) > 0 {
		return nil, invalidManifest("the manifest has parts of another kind than its media type says")
	}
	if images.IsManifestType(doc.MediaType) && doc.Config == nil {
		return nil, invalidManifest("the manifest has no config")
	}
	return &doc, nil
}

// kind is the artifact type as the referrers API reports it.
func (d *document) kind() string {
	if d.ArtifactType == "" && d.Config != nil {
		return d.Config.MediaType
	}
	return d.ArtifactType
}

// manifestNames works out under which digest and tags a body is pushed.
func manifestNames(c *call, body []byte) (d digest.Digest, tags []string, err error) {
	if !strings.Contains(c.ref, ":") {
		return digest.FromBytes(body), []string{c.ref}, nil
	}
	if d, err = c.digest(); err != nil {
		return "", nil, err
	}
	if d.Algorithm().FromBytes(body) != d {
		return "", nil, protocolError{http.StatusBadRequest, "DIGEST_INVALID", "the manifest does not have this digest"}
	}
	for _, t := range c.r.URL.Query()["tag"] {
		if !tagPattern.MatchString(t) {
			return "", nil, protocolError{http.StatusBadRequest, "TAG_INVALID", "not a tag: " + t}
		}
		tags = append(tags, t)
	}
	return d, tags, nil
}

// checkParts checks that everything a manifest needs is in the repository, and lists it.
func (h *Handler) checkParts(c *call, doc *document) (refs []digest.Digest, err error) {
	blobs := doc.Layers
	if doc.Config != nil {
		blobs = append([]ocispec.Descriptor{*doc.Config}, blobs...)
	}
	for _, b := range blobs {
		if err := h.checkPart(c, b, bucketBlobs, "MANIFEST_BLOB_UNKNOWN"); err != nil {
			return nil, err
		}
		refs = append(refs, b.Digest)
	}
	for _, m := range doc.Manifests {
		if err := h.checkPart(c, m, bucketManifests, "MANIFEST_UNKNOWN"); err != nil {
			return nil, err
		}
		refs = append(refs, m.Digest)
	}
	if doc.Subject != nil && doc.Subject.Digest.Validate() != nil {
		return nil, invalidManifest("the subject's digest is not valid")
	}
	return refs, nil
}

func (h *Handler) checkPart(c *call, d ocispec.Descriptor, bucket, code string) error {
	if d.Digest.Validate() != nil || d.Size < 0 {
		return invalidManifest("the manifest has a descriptor that is not valid")
	}
	if images.IsNonDistributable(d.MediaType) {
		return nil
	}
	ok, err := h.links.has(c.repo, bucket, d.Digest.String())
	if err != nil {
		return err
	}
	info, err := h.Content.Info(c.ctx, d.Digest)
	switch {
	case !ok || errdefs.IsNotFound(err):
		return protocolError{http.StatusNotFound, code, "the repository lacks " + d.Digest.String()}
	case err != nil:
		return err
	case info.Size != d.Size:
		return invalidManifest("the manifest says another size of " + d.Digest.String())
	}
	return nil
}

// storeManifest writes the content and then the links, under a lease until the repository's own holds it.
func (h *Handler) storeManifest(c *call, d digest.Digest, body []byte, rec manifestRecord, tags []string) error {
	l, err := h.Leases.Create(c.ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return err
	}
	ctx := leases.WithLease(c.ctx, l.ID)
	desc := ocispec.Descriptor{MediaType: rec.MediaType, Digest: d, Size: int64(len(body))}
	err = content.WriteBlob(ctx, h.Content, "registry-manifest-"+l.ID, bytes.NewReader(body), desc)
	if err == nil {
		err = h.linkManifest(c, d, rec, tags)
	}
	return errors.Join(err, h.Leases.Delete(c.ctx, l))
}

func (h *Handler) linkManifest(c *call, d digest.Digest, rec manifestRecord, tags []string) error {
	defer h.lock(c.repo)()
	if err := h.keep(c.ctx, c.repo, d); err != nil {
		return err
	}
	return h.links.linkManifest(c.repo, d, rec, tags)
}

// deleteManifest removes a tag, or a manifest with all of its tags.
func (h *Handler) deleteManifest(c *call) error {
	if err := checkReference(c.ref); err != nil {
		return err
	}
	defer h.lock(c.repo)()
	d, rec, ok, err := h.links.manifest(c.repo, c.ref)
	if err != nil {
		return err
	}
	if !ok {
		return notFound("MANIFEST_UNKNOWN", "the repository has no such manifest")
	}
	if !strings.Contains(c.ref, ":") {
		err = h.links.remove(c.repo, bucketTags, c.ref)
	} else if err = h.links.unlinkManifest(c.repo, d, rec); err == nil {
		err = h.letGo(c.ctx, c.repo, d)
	}
	if err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}
