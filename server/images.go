package server

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/store"
)

// handleImages serves what is more than the image API of the local node: what concerns all nodes, or needs the cluster's
// leave.
func (s *Server) handleImages(mux *http.ServeMux, opts []connect.HandlerOption) {
	mux.Handle(gantryv1connect.ImageServicePruneProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServicePruneProcedure, s.pruneImages, opts...))
	mux.Handle(gantryv1connect.ImageServicePruneBuildCacheProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServicePruneBuildCacheProcedure, s.pruneBuildCache, opts...))
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
