package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// uploads are the open files of unfinished uploads, so that a chunk does not hash everything before it again. What is in an
// upload is in containerd's store, and so survives this process.
type uploads struct {
	mu   sync.Mutex
	open map[string]*upload
}

// upload is one session. Its lock is held by the request that writes.
type upload struct {
	mu   sync.Mutex
	w    content.Writer // nil: not open in this process
	used time.Time
}

// idle is how long an upload's file stays open without a request.
const idle = 5 * time.Minute

func (u *uploads) get(key string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open == nil {
		u.open = map[string]*upload{}
	}
	if u.open[key] == nil {
		u.open[key] = &upload{used: time.Now()}
	}
	return u.open[key]
}

func (u *uploads) drop(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.open, key)
}

// closeIdle closes files that nobody has used for a while.
func (u *uploads) closeIdle(age time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, up := range u.open {
		if !up.mu.TryLock() {
			continue
		}
		if time.Since(up.used) >= age {
			up.close()
			delete(u.open, key)
		}
		up.mu.Unlock()
	}
}

func (u *upload) close() {
	if u.w != nil {
		_ = u.w.Close()
		u.w = nil
	}
}

var uploadPattern = regexp.MustCompile(`^[A-Z0-9]{26}$`)

// session is an upload taken for one request.
type session struct {
	*upload
	h   *Handler
	ctx context.Context
	id  string
	ref string
}

// leaseOfUpload holds an unfinished upload until it expires.
func leaseOfUpload(id string) leases.Lease { return leases.Lease{ID: "registry-upload-" + id} }

// session takes an upload that exists, or begins it.
func (h *Handler) session(c *call, id string, begin bool) (*session, error) {
	if !uploadPattern.MatchString(id) {
		return nil, notFound("BLOB_UPLOAD_UNKNOWN", "no such upload")
	}
	s := &session{h: h, id: id, ref: "registry/" + c.repo + "/" + id, ctx: leases.WithLease(c.ctx, leaseOfUpload(id).ID)}
	if !begin {
		if _, err := h.Content.Status(s.ctx, s.ref); errdefs.IsNotFound(err) {
			return nil, notFound("BLOB_UPLOAD_UNKNOWN", "no such upload")
		} else if err != nil {
			return nil, err
		}
	}
	s.upload = h.uploads.get(s.ref)
	if !s.mu.TryLock() {
		return nil, protocolError{http.StatusConflict, "BLOB_UPLOAD_INVALID", "another request writes to this upload"}
	}
	if err := s.reopen(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	return s, nil
}

func (s *session) reopen() (err error) {
	if s.w == nil {
		s.w, err = content.OpenWriter(s.ctx, s.h.Content, content.WithRef(s.ref))
	}
	return err
}

func (s *session) done() {
	s.used = time.Now()
	s.mu.Unlock()
}

// end forgets an upload that was finished or given up; its lease takes the rest of it along.
func (s *session) end() {
	s.close()
	ctx := context.WithoutCancel(s.ctx)
	_ = s.h.Content.Abort(ctx, s.ref) // not there after a commit
	if err := s.h.Leases.Delete(ctx, leaseOfUpload(s.id)); err != nil && !errdefs.IsNotFound(err) {
		s.h.Logger.Warn("registry: release an upload", "upload", s.id, "error", err)
	}
	s.h.uploads.drop(s.ref)
	s.mu.Unlock()
}

func (s *session) offset() (int64, error) {
	st, err := s.w.Status()
	return st.Offset, err
}

// startUpload begins an upload, takes a whole blob at once, or mounts one from another repository.
func (h *Handler) startUpload(c *call) error {
	if c.ref != "" {
		return protocolError{http.StatusMethodNotAllowed, "UNSUPPORTED", "not possible here"}
	}
	q := c.r.URL.Query()
	if q.Get("mount") != "" {
		if mounted, err := h.mount(c, q.Get("mount"), q.Get("from")); mounted || err != nil {
			return err
		}
	}
	if alg := q.Get("digest-algorithm"); alg != "" && !digest.Algorithm(alg).Available() {
		return protocolError{http.StatusBadRequest, "DIGEST_INVALID", "the digest algorithm is not known here"}
	}
	var want digest.Digest
	if q.Get("digest") != "" {
		d, err := parseDigest(q.Get("digest"))
		if err != nil {
			return err
		}
		want = d
	}
	h.uploads.closeIdle(idle)
	s, err := h.begin(c)
	if err != nil {
		return err
	}
	if want != "" {
		return h.commit(c, s, want)
	}
	defer s.done()
	return s.answer(c, http.StatusAccepted)
}

func (h *Handler) begin(c *call) (*session, error) {
	id := rand.Text()
	expire := time.Now().Add(h.UploadLife).UTC().Format(time.RFC3339Nano)
	l := leaseOfUpload(id)
	if _, err := h.Leases.Create(c.ctx, leases.WithID(l.ID), leases.WithLabel("containerd.io/gc.expire", expire)); err != nil {
		return nil, err
	}
	s, err := h.session(c, id, true)
	if err != nil {
		return nil, errors.Join(err, h.Leases.Delete(context.WithoutCancel(c.ctx), l))
	}
	return s, nil
}

// mount links a blob that the caller can pull from another repository. If it cannot, the caller uploads it: an error would tell
// what other repositories hold.
func (h *Handler) mount(c *call, ref, from string) (bool, error) {
	d, err := parseDigest(ref)
	if err != nil {
		return false, err
	}
	if from == "" || !repoPattern.MatchString(from) || h.authorize(&call{w: discard{}, r: c.r, ctx: c.ctx}, from, Pull) != nil {
		return false, nil
	}
	if ok, err := h.visible(c, from, d); !ok || err != nil {
		return false, err
	}
	if err := h.linkBlob(c.ctx, c.repo, d); errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	c.location("/blobs/", d.String())
	c.w.Header().Set("Docker-Content-Digest", d.String())
	c.w.WriteHeader(http.StatusCreated)
	return true, nil
}

// discard takes the headers of a question that is not answered to the client.
type discard struct{ http.ResponseWriter }

// Header returns headers that go nowhere.
func (discard) Header() http.Header { return http.Header{} }

// answer tells where the upload is and how far.
func (s *session) answer(c *call, status int) error {
	at, err := s.offset()
	if err != nil {
		return err
	}
	c.location("/blobs/uploads/", s.id)
	c.w.Header().Set("Range", "0-"+strconv.FormatInt(max(at-1, 0), 10))
	c.w.Header().Set("Docker-Upload-Uuid", s.id)
	c.w.WriteHeader(status)
	return nil
}

func (h *Handler) uploadStatus(c *call) error {
	s, err := h.session(c, c.ref, false)
	if err != nil {
		return err
	}
	defer s.done()
	return s.answer(c, http.StatusNoContent)
}

// patchUpload adds a chunk, or the whole as a stream.
func (h *Handler) patchUpload(c *call) error {
	s, err := h.session(c, c.ref, false)
	if err != nil {
		return err
	}
	defer s.done()
	if err := s.append(c); err != nil {
		return err
	}
	return s.answer(c, http.StatusAccepted)
}

// append writes the request's body at the end of the upload. A chunk that is not the next one is refused with where to go on.
func (s *session) append(c *call) error {
	at, err := s.offset()
	if err != nil {
		return err
	}
	if err := checkRange(c.r, at); err != nil {
		c.location("/blobs/uploads/", s.id)
		c.w.Header().Set("Range", "0-"+strconv.FormatInt(max(at-1, 0), 10))
		return err
	}
	body := c.r.Body
	if s.h.MaxBlob > 0 {
		body = http.MaxBytesReader(c.w, body, s.h.MaxBlob-at)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{s.w}, body, make([]byte, 256<<10))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return protocolError{http.StatusBadRequest, "SIZE_INVALID", "the body is shorter than it said"}
	}
	if err != nil {
		s.close() // the next request opens it again, at what is really there
	}
	return err
}

// checkRange holds a chunk's Content-Range, if it has one, against what is there.
func checkRange(r *http.Request, at int64) error {
	v := r.Header.Get("Content-Range")
	if v == "" {
		return nil
	}
	var from, to int64
	v = strings.TrimPrefix(v, "bytes ")
	v, _, _ = strings.Cut(v, "/")
	if n, err := fmt.Sscanf(v, "%d-%d", &from, &to); n != 2 || err != nil || to < from {
		return protocolError{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the Content-Range is not START-END"}
	}
	if from != at || r.ContentLength >= 0 && to-from+1 != r.ContentLength {
		return protocolError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the next byte is %d", at)}
	}
	return nil
}

// finishUpload takes the last bytes, if any, and makes the upload a blob of the repository.
func (h *Handler) finishUpload(c *call) error {
	d, err := parseDigest(c.r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	s, err := h.session(c, c.ref, false)
	if err != nil {
		return err
	}
	return h.commit(c, s, d)
}

// commit ends a session either way, except that an upload whose address the client knows can be gone on with if its last chunk
// did not arrive.
func (h *Handler) commit(c *call, s *session, d digest.Digest) error {
	if err := s.append(c); err != nil {
		if c.r.Method == http.MethodPost {
			s.end()
		} else {
			s.done()
		}
		return err
	}
	defer s.end()
	err := s.w.Commit(s.ctx, 0, d)
	s.w = nil
	if errdefs.IsFailedPrecondition(err) {
		return protocolError{http.StatusBadRequest, "DIGEST_INVALID", "the content does not have this digest"}
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := h.linkBlob(s.ctx, c.repo, d); err != nil {
		return err
	}
	c.location("/blobs/", d.String())
	c.w.Header().Set("Docker-Content-Digest", d.String())
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

func (h *Handler) cancelUpload(c *call) error {
	s, err := h.session(c, c.ref, false)
	if err != nil {
		return err
	}
	s.end()
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
