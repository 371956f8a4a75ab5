package server

import (
	"context"
	"errors"
	"io"
	"net/http"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// handleImages serves what is more than the image API of the local node: what concerns all nodes, or needs the cluster's
// leave.
func (s *Server) handleImages(mux *http.ServeMux, opts []connect.HandlerOption) {
	mux.Handle(gantryv1connect.ImageServiceListProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServiceListProcedure, s.listImages, opts...))
	mux.Handle(gantryv1connect.ImageServicePruneProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServicePruneProcedure, s.pruneImages, opts...))
	mux.Handle(gantryv1connect.ImageServicePruneBuildCacheProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServicePruneBuildCacheProcedure, s.pruneBuildCache, opts...))
	mux.Handle(gantryv1connect.ImageServiceBuildProcedure,
		connect.NewBidiStreamHandler(gantryv1connect.ImageServiceBuildProcedure, s.build, opts...))
}

// listImages lists the images of the local node and says which others have them.
func (s *Server) listImages(ctx context.Context, req *connect.Request[gantryv1.ListImagesRequest]) (*connect.Response[gantryv1.ListImagesResponse], error) {
	resp, err := s.local.Images.List(ctx, connect.NewRequest(req.Msg))
	if err != nil {
		return nil, s.answered(s.o.Node, err)
	}
	snap := s.store.Snapshot()
	if s.o.Holders == nil || len(store.List[*gantryv1.Node](snap, "")) < 2 {
		return connect.NewResponse(resp.Msg), nil
	}
	for _, image := range resp.Msg.Images {
		names := map[string]bool{}
		for _, id := range append(s.o.Holders(image.Digest), s.o.Node) {
			if n, ok := store.Get[*gantryv1.Node](snap, id); ok {
				names[n.Name] = true
			}
		}
		image.Nodes = sorted(names)
	}
	return connect.NewResponse(resp.Msg), nil
}

// defaultEnvironment is whose permissions a build has that names none.
const defaultEnvironment = "production"

// build says what the environment permits the build and has the local node do it.
func (s *Server) build(ctx context.Context, stream *connect.BidiStream[gantryv1.BuildInput, gantryv1.BuildEvent]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return fault.New(fault.Invalid, "the first message of the stream is not start")
	}
	env := start.Environment
	if env == "" {
		env = defaultEnvironment
	}
	start.HostNetwork = allowed(s.store.Snapshot(), env, "a build on the machine's own network") == nil
	up := s.local.Images.Build(ctx)
	if err := up.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return s.answered(s.o.Node, err)
	}
	go forward(stream, up)
	return pump(s, s.o.Node, up.Receive, stream.Send)
}

// forward sends on what a caller sends, until one of the two ends.
func forward[In, Out any](from *connect.BidiStream[In, Out], to *connect.BidiStreamForClient[In, Out]) {
	for {
		m, err := from.Receive()
		if err != nil {
			_ = to.CloseRequest() // nothing more comes, and the answer tells the rest
			return
		}
		if to.Send(m) != nil {
			return
		}
	}
}

// pruneImages tells every node which images releases still need.
func (s *Server) pruneImages(ctx context.Context, req *connect.Request[gantryv1.PruneImagesRequest]) (*connect.Response[gantryv1.PruneImagesResponse], error) {
	snap := s.store.Snapshot()
	keep := map[string]bool{}
	for _, r := range store.List[*gantryv1.Release](snap, "") {
		keep[r.GetSpec().GetContainer().GetImageDigest()] = true
	}
	answers, errs := ask(ctx, s, nodeIDs(snap), diskPatience, func(ctx context.Context, n Node, _ string) (*connect.Response[gantryv1.PruneImagesResponse], error) {
		return n.Images.Prune(ctx, connect.NewRequest(&gantryv1.PruneImagesRequest{All: req.Msg.All, Keep: sorted(keep)}))
	})
	if len(answers) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	out := &gantryv1.PruneImagesResponse{Failures: errs.failures(snap)}
	removed := map[string]bool{}
	for _, resp := range answers {
		for _, name := range resp.Msg.Removed {
			removed[name] = true
		}
		out.Reclaimed += resp.Msg.Reclaimed
	}
	out.Removed = sorted(removed)
	return connect.NewResponse(out), nil
}

// pruneBuildCache has every node reduce its build cache.
func (s *Server) pruneBuildCache(ctx context.Context, req *connect.Request[gantryv1.PruneBuildCacheRequest]) (*connect.Response[gantryv1.PruneBuildCacheResponse], error) {
	snap := s.store.Snapshot()
	answers, errs := ask(ctx, s, nodeIDs(snap), diskPatience, func(ctx context.Context, n Node, _ string) (*connect.Response[gantryv1.PruneBuildCacheResponse], error) {
		return n.Images.PruneBuildCache(ctx, connect.NewRequest(req.Msg))
	})
	if len(answers) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	out := &gantryv1.PruneBuildCacheResponse{Failures: errs.failures(snap)}
	for _, resp := range answers {
		out.Reclaimed += resp.Msg.Reclaimed
		out.Records += resp.Msg.Records
	}
	return connect.NewResponse(out), nil
}
