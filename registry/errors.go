package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/fault"
)

// protocolError is an answer that the distribution specification defines.
type protocolError struct {
	status  int
	code    string
	message string
}

// Error returns the message.
func (e protocolError) Error() string { return e.message }

func notFound(code, message string) error { return protocolError{http.StatusNotFound, code, message} }

// fail answers with an error. What is not the client's doing is logged here and not shown there.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var p protocolError
	if !errors.As(err, &p) {
		p = h.translate(r, err)
	}
	w.Header().Del("Etag")
	w.Header().Del("Docker-Content-Digest")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	if r.Method == http.MethodHead {
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": p.code, "message": p.message}}})
}

func (h *Handler) translate(r *http.Request, err error) protocolError {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return protocolError{http.StatusRequestEntityTooLarge, "SIZE_INVALID", "larger than this registry accepts"}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), fault.Is(err, fault.Exhausted):
		h.Logger.Error("registry: the disk is full", "path", r.URL.Path)
		return protocolError{http.StatusInsufficientStorage, "UNKNOWN", "the registry's disk is full"}
	case errors.Is(err, context.Canceled):
		return protocolError{499, "UNKNOWN", "the client went away"}
	case errdefs.IsNotFound(err):
		return protocolError{http.StatusNotFound, "BLOB_UNKNOWN", "not in this registry"}
	}
	h.Logger.Error("registry: request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	return protocolError{http.StatusInternalServerError, "UNKNOWN", "the registry failed; its log says why"}
}
