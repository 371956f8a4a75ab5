package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// Path is where Handler serves blobs, with a digest behind it.
	Path = "/blobs/"
	// smallBlob is the size in bytes up to which a blob does not count as an upload; maxDocuments of those are sent at a time.
	smallBlob    = 1 << 20
	maxDocuments = 128
	bufferSize   = 256 << 10
	// sendTimeout is how long one buffer may take to be received.
	sendTimeout = 30 * time.Second
)

// Handler serves blobs to other nodes at /blobs/DIGEST, complete ones and those that are arriving, whole or from a byte on. It
// lets everybody in: the listener has to know who is a node.
func (x *Exchange) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path+"{digest}", x.serve)
	return mux
}

// source is a blob that is read while it may still be growing.
type source interface {
	io.ReaderAt
	// await waits until there is more than off, and returns how much there is.
	await(ctx context.Context, off int64) (int64, error)
}

type stored struct{ content.ReaderAt }

func (s stored) await(context.Context, int64) (int64, error) { return s.Size(), nil }

func (x *Exchange) serve(w http.ResponseWriter, r *http.Request) {
	d, err := digest.Parse(r.PathValue("digest"))
	if err != nil {
		http.Error(w, "that is not a digest", http.StatusBadRequest)
		return
	}
	src, size, done, err := x.open(x.in(r.Context()), d)
	if err != nil {
		status := http.StatusInternalServerError
		if errdefs.IsNotFound(err) {
			status = http.StatusNotFound
		}
		http.Error(w, err.Error(), status)
		return
	}
	defer done()
	slots := x.uploads
	if size <= smallBlob {
		slots = x.documents
	}
	if !slots.try() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "this node sends to too many", http.StatusServiceUnavailable)
		return
	}
	defer slots.release()
	x.answer(w, r, src, size)
}

// open finds a blob in the store, or on its way there.
func (x *Exchange) open(ctx context.Context, d digest.Digest) (s source, size int64, done func(), err error) {
	for range 3 { // what lands in between is found in the store
		f := x.flights.get(d)
		ra, err := x.stores.Content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
		if err == nil {
			return stored{ra}, ra.Size(), func() { _ = ra.Close() }, nil
		}
		if !errdefs.IsNotFound(err) || f == nil {
			return nil, 0, nil, err
		}
		switch err = f.join(); {
		case err == nil:
			return f, f.size, f.leave, nil
		case errors.Is(err, os.ErrNotExist): // it has its place already, but is not recorded yet
			if err := f.landed(ctx); err != nil {
				return nil, 0, nil, err
			}
		case !errors.Is(err, errAborted):
			return nil, 0, nil, err
		}
	}
	return nil, 0, nil, fmt.Errorf("%s is not complete here: %w", d, errdefs.ErrNotFound)
}

// answer sends a blob from the byte that is asked for.
func (x *Exchange) answer(w http.ResponseWriter, r *http.Request, src source, size int64) {
	from, err := parseRange(r.Header.Get("Range"))
	if err != nil || from > size || from == size && size > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		http.Error(w, "there is no such range", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(size-from, 10))
	status := http.StatusOK
	if from > 0 {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if err := x.send(r.Context(), w, src, from, size); err != nil {
		x.Logger.Debug("a blob was not sent to its end", "path", r.URL.Path, "err", err)
		panic(http.ErrAbortHandler) // the receiver must not take it for complete
	}
}

// parseRange reads the one form that nodes ask with: "bytes=N-".
func parseRange(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	from, found := strings.CutPrefix(text, "bytes=")
	from, open := strings.CutSuffix(from, "-")
	n, err := strconv.ParseInt(from, 10, 64)
	if !found || !open || err != nil || n < 0 {
		return 0, fmt.Errorf("the range %q is not bytes=N-", text)
	}
	return n, nil
}

// send copies a blob to its receiver as far as it has come, and flushes before it waits for more.
func (x *Exchange) send(ctx context.Context, w http.ResponseWriter, src source, at, size int64) error {
	buf := make([]byte, min(bufferSize, size-at))
	for at < size {
		there, err := src.await(ctx, at)
		if err != nil {
			return err
		}
		n, err := src.ReadAt(buf[:min(int64(len(buf)), there-at, size-at)], at)
		if n == 0 {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		at += int64(n)
		x.figures.Sent.Add(n)
		if err := sendPart(w, buf[:n], at == there); err != nil {
			return err
		}
	}
	return nil
}

// sendPart writes to a receiver that has to take it in time. Waiting for more is not held against it.
func sendPart(w http.ResponseWriter, p []byte, flush bool) error {
	out := http.NewResponseController(w)
	if err := out.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := w.Write(p); err != nil {
		return err
	}
	if flush {
		if err := out.Flush(); err != nil {
			return err
		}
	}
	_ = out.SetWriteDeadline(time.Time{})
	return nil
}
