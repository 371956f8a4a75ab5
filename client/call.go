package client

import (
	"context"

	"connectrpc.com/connect"
)

// Call makes one unary call and unwraps the answer: client.Call(ctx, c.Apps.Get, req).
func Call[Req, Resp any](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req) (*Resp, error) {
	resp, err := method(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// Each calls do for every message of a server's stream, until the stream ends or do fails.
func Each[Req, Resp any](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.ServerStreamForClient[Resp], error), req *Req, do func(*Resp) error) error {
	stream, err := method(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := do(stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}
