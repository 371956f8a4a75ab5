package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server/catalog"
	"github.com/gantryd/gantry/server/machines"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// handleImages serves what is more than the image API of the local node: what concerns all nodes, or needs the cluster's
// leave.
func (s *Server) handleImages(mux *http.ServeMux, opts []connect.HandlerOption) {
	mux.Handle(gantryv1connect.ImageServiceListProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServiceListProcedure, s.listImages, opts...))
	mux.Handle(gantryv1connect.ImageServiceInspectProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServiceInspectProcedure, s.inspectImage, opts...))
	mux.Handle(gantryv1connect.ImageServiceRemoveProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServiceRemoveProcedure, s.removeImage, opts...))
	mux.Handle(gantryv1connect.ImageServicePruneProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServicePruneProcedure, s.pruneImages, opts...))
	mux.Handle(gantryv1connect.ImageServicePruneBuildCacheProcedure,
		connect.NewUnaryHandler(gantryv1connect.ImageServicePruneBuildCacheProcedure, s.pruneBuildCache, opts...))
	mux.Handle(gantryv1connect.ImageServiceBuildProcedure,
		connect.NewBidiStreamHandler(gantryv1connect.ImageServiceBuildProcedure, s.build, opts...))
}

// listImages lists the images of all machines that are up, or of one, and says which have each.
func (s *Server) listImages(ctx context.Context, req *connect.Request[gantryv1.ListImagesRequest]) (*connect.Response[gantryv1.ListImagesResponse], error) {
	snap := s.store.Snapshot()
	ids := upNodes(snap, s.o.Node)
	if req.Msg.Node != "" {
		n, err := machines.Find(snap, req.Msg.Node)
		if err != nil {
			return nil, err
		}
		ids = []string{n.Meta.Key}
	}
	lists, errs := s.lists(ctx, ids, req.Msg.Filter)
	if len(lists) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	out := &gantryv1.ListImagesResponse{Images: catalog.Merge(lists), Failures: errs.failures(snap)}
	several := len(nodeIDs(snap)) > 1
	for _, image := range out.Images {
		have := image.Nodes
		if s.o.Holders != nil && req.Msg.Node == "" {
			have = append(have, s.o.Holders(image.Digest)...) // some may have it under no name that matches
		}
		if image.Nodes = nil; several {
			image.Nodes = nodeNames(snap, have)
		}
	}
	return connect.NewResponse(out), nil
}

// lists asks machines for their images.
func (s *Server) lists(ctx context.Context, ids []string, filter string) (catalog.Lists, nodeErrors) {
	answers, errs := ask(ctx, s, ids, nodePatience, func(ctx context.Context, n Node, _ string) (*connect.Response[gantryv1.ListImagesResponse], error) {
		return n.Images.List(ctx, connect.NewRequest(&gantryv1.ListImagesRequest{Filter: filter}))
	})
	lists := catalog.Lists{}
	for id, resp := range answers {
		lists[id] = resp.Msg.Images
	}
	return lists, errs
}

// upNodes lists the machines that are not down, and this one.
func upNodes(snap store.Reader, own string) []string {
	return slices.DeleteFunc(nodeIDs(snap), func(id string) bool {
		st, _ := store.Get[*gantryv1.NodeStatus](snap, id)
		return st.GetState() == "down" && id != own
	})
}

// nodeNames are the names of machines of the cluster, in order.
func nodeNames(snap store.Reader, ids []string) []string {
	names := map[string]bool{}
	for _, id := range ids {
		if _, ok := store.Get[*gantryv1.Node](snap, id); ok {
			names[nodeName(snap, id)] = true
		}
	}
	return sorted(names)
}

// inspectImage describes an image of the local node, or else of another that has it: a name means what servers know it as.
func (s *Server) inspectImage(ctx context.Context, req *connect.Request[gantryv1.InspectImageRequest]) (*connect.Response[gantryv1.InspectImageResponse], error) {
	resp, err := s.local.Images.Inspect(ctx, connect.NewRequest(req.Msg))
	err = s.answered(s.o.Node, err)
	if fault.Is(err, fault.NotFound) {
		if far := s.inspectElsewhere(ctx, req.Msg); far != nil {
			resp, err = far, nil
		}
	}
	if err != nil {
		return nil, err
	}
	snap := s.store.Snapshot()
	if s.o.Holders != nil && len(nodeIDs(snap)) > 1 && resp.Msg.Image != nil {
		resp.Msg.Image.Nodes = nodeNames(snap, s.o.Holders(resp.Msg.Image.Digest))
	}
	return connect.NewResponse(resp.Msg), nil
}

// inspectElsewhere is nil if no other machine can say anything.
func (s *Server) inspectElsewhere(ctx context.Context, req *gantryv1.InspectImageRequest) *connect.Response[gantryv1.InspectImageResponse] {
	digest := req.Image
	if s.o.ImageDigest != nil {
		digest = cmp.Or(s.o.ImageDigest(req.Image), digest)
	}
	if s.o.Holders == nil {
		return nil
	}
	for _, id := range s.o.Holders(digest) {
		resp, err := askOne(ctx, s, id, nodePatience, func(ctx context.Context, n Node, _ string) (*connect.Response[gantryv1.InspectImageResponse], error) {
			return n.Images.Inspect(ctx, connect.NewRequest(&gantryv1.InspectImageRequest{Image: digest, Platform: req.Platform}))
		})
		if err == nil {
			return resp
		}
	}
	return nil
}

// removeImage removes an image, or a name of it, from all machines. What a release or an instance needs stays.
func (s *Server) removeImage(ctx context.Context, req *connect.Request[gantryv1.RemoveImageRequest]) (*connect.Response[gantryv1.RemoveImageResponse], error) {
	snap := s.store.Snapshot()
	lists, errs := s.lists(ctx, nodeIDs(snap), "")
	if len(lists) == 0 && len(errs) > 0 {
		return nil, errs.first()
	}
	r, err := catalog.Remove(req.Msg.Image, lists)
	if err != nil {
		return nil, err
	}
	for _, digest := range r.Gone {
		if user := imageUser(snap, digest); user != "" && !req.Msg.Force {
			return nil, fault.New(fault.Conflict, "image %s is needed by %s", req.Msg.Image, user).WithHint("remove that first, or use --force")
		}
	}
	answers, failed := ask(ctx, s, sorted(r.Orders), diskPatience, func(ctx context.Context, n Node, id string) (*gantryv1.RemoveImageResponse, error) {
		return removeFrom(ctx, n, r.Orders[id], req.Msg.Force)
	})
	if len(answers) == 0 && len(failed) > 0 {
		return nil, failed.first()
	}
	out := &gantryv1.RemoveImageResponse{Failures: append(errs, failed...).failures(snap)}
	for _, a := range answers {
		out.Untagged, out.Deleted = append(out.Untagged, a.Untagged...), append(out.Deleted, a.Deleted...)
	}
	slices.Sort(out.Untagged)
	slices.Sort(out.Deleted)
	out.Untagged, out.Deleted = slices.Compact(out.Untagged), slices.Compact(out.Deleted)
	return connect.NewResponse(out), nil
}

// removeFrom has one machine remove images. What it has no longer is removed.
func removeFrom(ctx context.Context, n Node, images []string, force bool) (*gantryv1.RemoveImageResponse, error) {
	out := &gantryv1.RemoveImageResponse{}
	for _, image := range images {
		resp, err := n.Images.Remove(ctx, connect.NewRequest(&gantryv1.RemoveImageRequest{Image: image, Force: force}))
		if fault.Is(wire.Decode(err), fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out.Untagged, out.Deleted = append(out.Untagged, resp.Msg.Untagged...), append(out.Deleted, resp.Msg.Deleted...)
	}
	return out, nil
}

// imageUser names a release or an instance of `gantry run` that needs an image; "" if there is none. A release that a service
// runs by comes before one that is kept to go back to.
func imageUser(snap store.Reader, digest string) string {
	kept := ""
	for _, r := range store.List[*gantryv1.Release](snap, "") {
		if r.GetSpec().GetContainer().GetImageDigest() != digest {
			continue
		}
		if s, ok := store.Get[*gantryv1.Service](snap, r.Service); ok && s.Release == r.Number {
			return "service " + r.Service
		}
		kept = fmt.Sprintf("release %d of service %s, which is kept for a rollback", r.Number, r.Service)
	}
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if i.Spec.GetImageDigest() == digest {
			return "instance " + progress.Name(i)
		}
	}
	return kept
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
		if errors.Is(err, io.EOF) {
			_ = to.CloseRequest() // nothing more comes, and the answer tells the rest
		}
		if err != nil {
			return // a caller that is gone has ended the context, and with it the other stream
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
