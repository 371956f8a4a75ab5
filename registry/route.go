package registry

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/fault"
)

var (
	repoPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// call is one request with its path taken apart.
type call struct {
	w    http.ResponseWriter
	r    *http.Request
	ctx  context.Context
	repo string
	ref  string // tag, digest or upload
}

// endpoint is one kind of address and what can be done there.
type endpoint struct {
	marker  string
	methods map[string]func(*Handler, *call) error
}

// endpoints in an order in which a longer marker comes before its beginning.
func endpoints() []endpoint {
	type m = map[string]func(*Handler, *call) error
	return []endpoint{
		{"/blobs/uploads/", m{"POST": (*Handler).startUpload, "GET": (*Handler).uploadStatus, "PATCH": (*Handler).patchUpload,
			"PUT": (*Handler).finishUpload, "DELETE": (*Handler).cancelUpload}},
		{"/blobs/", m{"GET": (*Handler).getBlob, "HEAD": (*Handler).getBlob, "DELETE": (*Handler).deleteBlob}},
		{"/manifests/", m{"GET": (*Handler).getManifest, "HEAD": (*Handler).getManifest, "PUT": (*Handler).putManifest,
			"DELETE": (*Handler).deleteManifest}},
		{"/tags/list", m{"GET": (*Handler).listTags}},
		{"/referrers/", m{"GET": (*Handler).listReferrers}},
	}
}

// ServeHTTP answers a request to /v2/.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := h.route(w, r)
	if err != nil {
		h.fail(w, r, err)
	}
}

func (h *Handler) route(w http.ResponseWriter, r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	c := &call{w: w, r: r, ctx: h.in(r.Context())}
	switch {
	case r.URL.Path == "/v2" || ok && path == "":
		return h.ping(c)
	case !ok:
		return protocolError{http.StatusNotFound, "NAME_UNKNOWN", "this is a registry: addresses begin with /v2/"}
	case path == "_catalog":
		return h.catalog(c)
	}
	e, err := c.split(path)
	if err != nil {
		return err
	}
	serve := e.methods[r.Method]
	if serve == nil {
		return protocolError{http.StatusMethodNotAllowed, "UNSUPPORTED", "not possible here"}
	}
	if err := h.authorize(c, c.repo, actionOf(r.Method, e.marker)); err != nil {
		return err
	}
	return serve(h, c)
}

// split finds the repository, the kind of address and the rest. A repository's name may itself hold a marker, so the last counts.
func (c *call) split(path string) (endpoint, error) {
	best, at := endpoint{}, -1
	for _, e := range endpoints() {
		p := path
		if e.marker == "/blobs/uploads/" && strings.HasSuffix(p, "/blobs/uploads") {
			p += "/"
		}
		if i := strings.LastIndex(p, e.marker); i > at {
			best, at = e, i
			c.repo, c.ref = p[:i], p[i+len(e.marker):]
		}
	}
	if at < 0 {
		return best, protocolError{http.StatusNotFound, "NAME_UNKNOWN", "no such address"}
	}
	if len(c.repo) > 255 || !repoPattern.MatchString(c.repo) {
		return best, protocolError{http.StatusBadRequest, "NAME_INVALID", "the repository's name is not valid"}
	}
	return best, nil
}

func actionOf(method, marker string) Action {
	switch {
	case marker == "/blobs/uploads/":
		return Push
	case method == http.MethodDelete:
		return Delete
	case method == http.MethodGet || method == http.MethodHead:
		return Pull
	}
	return Push
}

func (h *Handler) authorize(c *call, repo string, a Action) error {
	if h.Authorize == nil {
		return nil
	}
	err := h.Authorize(c.r, repo, a)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrLogin):
		c.w.Header().Set("WWW-Authenticate", `Basic realm="gantry"`)
		return protocolError{http.StatusUnauthorized, "UNAUTHORIZED", "log in first"}
	case fault.Is(err, fault.Denied):
		return protocolError{http.StatusForbidden, "DENIED", err.Error()}
	}
	return err
}

// ping tells a client that this is a registry, and whether it has to log in.
func (h *Handler) ping(c *call) error {
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		return protocolError{http.StatusMethodNotAllowed, "UNSUPPORTED", "not possible here"}
	}
	if err := h.authorize(c, "", Pull); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	_, err := c.w.Write([]byte("{}"))
	return err
}

// digest reads the reference as a digest.
func (c *call) digest() (digest.Digest, error) { return parseDigest(c.ref) }

func parseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", protocolError{http.StatusBadRequest, "DIGEST_INVALID", "not a digest that is known here"}
	}
	return d, nil
}

func (c *call) location(kind, ref string) {
	c.w.Header().Set("Location", "/v2/"+c.repo+kind+ref)
}
