package build

import (
	"context"
	"fmt"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/metadata"
)

// BuildKit's control API answers with gRPC streams. These stand in for them within the process.

type stream struct{ ctx context.Context }

// SetHeader does nothing: nobody reads headers here, nor trailers.
func (s stream) SetHeader(metadata.MD) error { return nil }

// SendHeader does nothing.
func (s stream) SendHeader(metadata.MD) error { return nil }

// SetTrailer does nothing.
func (s stream) SetTrailer(metadata.MD) {}

// Context ends the stream when it ends.
func (s stream) Context() context.Context { return s.ctx }

// RecvMsg is never called: the client has nothing to say.
func (s stream) RecvMsg(any) error { return fmt.Errorf("the stream has one direction") }

type statusStream struct {
	stream
	take func(*controlapi.StatusResponse)
}

// Send hands a response on.
func (s *statusStream) Send(r *controlapi.StatusResponse) error { s.take(r); return nil }

// SendMsg hands a response on.
func (s *statusStream) SendMsg(m any) error {
	r, ok := m.(*controlapi.StatusResponse)
	if !ok {
		return fmt.Errorf("unexpected %T in a status stream", m)
	}
	return s.Send(r)
}

type pruneStream struct {
	stream
	take func(*controlapi.UsageRecord)
}

// Send hands a record on.
func (s *pruneStream) Send(r *controlapi.UsageRecord) error { s.take(r); return nil }

// SendMsg hands a record on.
func (s *pruneStream) SendMsg(m any) error {
	r, ok := m.(*controlapi.UsageRecord)
	if !ok {
		return fmt.Errorf("unexpected %T in a prune stream", m)
	}
	return s.Send(r)
}
