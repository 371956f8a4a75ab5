// Package wire carries fault errors over Connect: the kind and the hint travel as metadata beside the code and message.
//
// A server calls Encode on what a handler returns, a client Decode on what a call returns. Both are safe in parallel.
// The package does not log and does not decide which errors a caller may see.
package wire

import (
	"context"
	"errors"
	"net/url"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/fault"
)

// Metadata keys of an encoded error. Values are percent-encoded, because headers carry ASCII only.
const (
	KindHeader = "Gantry-Kind"
	HintHeader = "Gantry-Hint"
)

// codeOf gives the code by which clients that do not know Gantry's kinds see an error.
func codeOf(kind fault.Kind) connect.Code {
	switch kind {
	case fault.Invalid:
		return connect.CodeInvalidArgument
	case fault.NotFound:
		return connect.CodeNotFound
	case fault.Exists:
		return connect.CodeAlreadyExists
	case fault.Conflict:
		return connect.CodeFailedPrecondition
	case fault.Denied:
		return connect.CodePermissionDenied
	case fault.Unavailable:
		return connect.CodeUnavailable
	case fault.Exhausted:
		return connect.CodeResourceExhausted
	case fault.Unsupported:
		return connect.CodeUnimplemented
	case fault.Timeout:
		return connect.CodeDeadlineExceeded
	case fault.Canceled:
		return connect.CodeCanceled
	case fault.Corrupt:
		return connect.CodeDataLoss
	case fault.Internal:
		return connect.CodeInternal
	}
	return connect.CodeUnknown
}

// kindOf is the inverse of codeOf, for errors that were not made by Encode.
func kindOf(code connect.Code) fault.Kind {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return fault.Invalid
	case connect.CodeNotFound:
		return fault.NotFound
	case connect.CodeAlreadyExists:
		return fault.Exists
	case connect.CodeFailedPrecondition, connect.CodeAborted:
		return fault.Conflict
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return fault.Denied
	case connect.CodeUnavailable:
		return fault.Unavailable
	case connect.CodeResourceExhausted:
		return fault.Exhausted
	case connect.CodeUnimplemented:
		return fault.Unsupported
	case connect.CodeDeadlineExceeded:
		return fault.Timeout
	case connect.CodeCanceled:
		return fault.Canceled
	case connect.CodeDataLoss:
		return fault.Corrupt
	case connect.CodeInternal:
		return fault.Internal
	}
	return fault.Unknown
}

// Kinds lists every kind that has a form on the wire.
func Kinds() []fault.Kind {
	return []fault.Kind{
		fault.Invalid, fault.NotFound, fault.Exists, fault.Conflict, fault.Denied, fault.Unavailable, fault.Exhausted,
		fault.Unsupported, fault.Timeout, fault.Canceled, fault.Corrupt, fault.Internal,
	}
}

// Encode makes err ready to be returned from a Connect handler. A nil err gives nil; a *connect.Error without a kind
// in its chain passes unchanged.
func Encode(err error) *connect.Error {
	if err == nil {
		return nil
	}
	kind := fault.KindOf(err)
	if kind == fault.Unknown {
		if ce, ok := errors.AsType[*connect.Error](err); ok {
			return ce
		}
		kind = kindOfContext(err)
	}
	out := connect.NewError(codeOf(kind), errors.New(err.Error()))
	if kind != fault.Unknown {
		out.Meta().Set(KindHeader, url.PathEscape(string(kind)))
	}
	if hint := fault.HintOf(err); hint != "" {
		out.Meta().Set(HintHeader, url.PathEscape(hint))
	}
	return out
}

func kindOfContext(err error) fault.Kind {
	switch {
	case errors.Is(err, context.Canceled):
		return fault.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Timeout
	}
	return fault.Unknown
}

// Decode turns an error of a Connect call back into a fault. A nil err gives nil, and what is neither a Connect error
// nor a context's passes unchanged (io.EOF of a stream, for one).
func Decode(err error) error {
	if err == nil {
		return nil
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		if kind := kindOfContext(err); kind != fault.Unknown {
			return fault.Wrap(kind, err, "the call was given up")
		}
		return err
	}
	out := fault.New(kindOfError(ce), "%s", ce.Message())
	if out.Message == "" {
		out.Message = ce.Code().String()
	}
	if hint, err := url.PathUnescape(ce.Meta().Get(HintHeader)); err == nil {
		out.Hint = hint
	}
	return out
}

// kindOfError prefers the kind that was sent; one from a newer server that is unknown here falls back to the code.
func kindOfError(ce *connect.Error) fault.Kind {
	sent, err := url.PathUnescape(ce.Meta().Get(KindHeader))
	if err == nil {
		for _, kind := range Kinds() {
			if string(kind) == sent {
				return kind
			}
		}
	}
	return kindOf(ce.Code())
}
