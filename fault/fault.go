// Package fault is the closed list of error kinds that survive the wire, each with a message for people and a hint.
//
// Make one with New or Wrap where the noun is at hand, ask with KindOf and HintOf anywhere. All functions are safe in
// parallel. The package is not a logger and knows no transport: the server and the client map kinds to codes.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an error is, so that callers can act on it.
type Kind string

// The kinds. Unknown is what an error without a kind has.
const (
	Unknown     Kind = ""
	Invalid     Kind = "invalid"     // the input is wrong; the same call will fail again
	NotFound    Kind = "not found"   // the noun does not exist
	Exists      Kind = "exists"      // the noun exists already
	Conflict    Kind = "conflict"    // the state does not allow it: in use, stale, running
	Denied      Kind = "denied"      // the caller may not do this
	Unavailable Kind = "unavailable" // a part is down or not reachable; try again later
	Exhausted   Kind = "exhausted"   // no room, address, port or other resource is left
	Unsupported Kind = "unsupported" // Gantry or this machine cannot do it
	Timeout     Kind = "timeout"     // the time given was not enough
	Canceled    Kind = "canceled"    // the caller went away
	Corrupt     Kind = "corrupt"     // stored or received bytes are damaged
	Internal    Kind = "internal"    // a fault of Gantry's own
)

// Error is an error of a kind, with an optional hint that names what to do next.
type Error struct {
	Kind    Kind
	Message string
	Hint    string
	cause   error
}

// Error returns the message, followed by the cause's if there is one.
func (e *Error) Error() string {
	if e.cause != nil {
		return e.Message + ": " + e.cause.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// WithHint returns a copy of e with the hint set, normally the next command to type.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// New makes an error of a kind.
func New(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an error of a kind around a cause. A nil cause gives an error without one.
func Wrap(kind Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), cause: cause}
}

// KindOf returns the kind of the outermost Error in err's chain, Unknown if there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Unknown
}

// HintOf returns the first hint in err's chain, "" if there is none.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.cause
	}
	return ""
}

// Is reports whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
