package image

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/fault"
)

// explain gives an error of containerd or of a registry a kind, a noun and, where there is one, a hint.
func explain(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	kind, hint := classify(err)
	e := fault.Wrap(kind, err, format, args...)
	if hint != "" && fault.HintOf(err) == "" {
		e = e.WithHint("%s", hint)
	}
	return e
}

func classify(err error) (fault.Kind, string) {
	if k := fault.KindOf(err); k != fault.Unknown {
		return k, ""
	}
	if kind, hint := classifyRemote(err); kind != fault.Unknown {
		return kind, hint
	}
	switch {
	case errors.Is(err, context.Canceled):
		return fault.Canceled, ""
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Timeout, "the registry or the disk was too slow; try again"
	case diskFull(err):
		return fault.Exhausted, "the disk is full: gantry system prune, or make room"
	case errors.Is(err, syscall.EROFS):
		return fault.Unavailable, "the file system is mounted read-only"
	case errdefs.IsNotFound(err):
		return fault.NotFound, ""
	case errdefs.IsInvalidArgument(err):
		return fault.Invalid, ""
	case errdefs.IsFailedPrecondition(err), errdefs.IsDataLoss(err):
		return fault.Corrupt, "the data does not match its digest: fetch it again"
	case errdefs.IsNotImplemented(err):
		return fault.Unsupported, ""
	}
	return fault.Internal, ""
}

// diskFull looks at the words too: containerd's services pass nothing else on.
func diskFull(err error) bool {
	for _, full := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, full) || strings.Contains(err.Error(), full.Error()) {
			return true
		}
	}
	return false
}

func classifyRemote(err error) (fault.Kind, string) {
	var status remoteserrors.ErrUnexpectedStatus
	var netErr net.Error
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fault.Denied, "the registry wants other credentials: docker login REGISTRY, then try again"
	case errors.As(err, &status):
		return classifyStatus(status.StatusCode)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fault.Unavailable, "the registry speaks plain HTTP: see doc/images.md, \"Registries\""
	case errors.As(err, &netErr) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return fault.Unavailable, "is the registry's name right and this machine online? mirrors: see doc/images.md, \"Registries\""
	}
	return fault.Unknown, ""
}

func classifyStatus(code int) (fault.Kind, string) {
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fault.Denied, "the registry wants other credentials: docker login REGISTRY, then try again"
	case code == http.StatusNotFound:
		return fault.NotFound, ""
	case code == http.StatusTooManyRequests:
		return fault.Unavailable, "the registry limits how often it may be asked: try again later or use a mirror"
	case code >= 500:
		return fault.Unavailable, "the registry is in trouble: try again later"
	}
	return fault.Invalid, ""
}
