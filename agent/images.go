package agent

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/build"
	"github.com/gantryd/gantry/fault"
)

// imageService serves ImageService.
type imageService struct{ a *Agent }

func cloneInfo(i *gantryv1.InfoResponse) *gantryv1.InfoResponse {
	return proto.Clone(i).(*gantryv1.InfoResponse)
}

// List implements the API.
func (h *imageService) List(ctx context.Context, req *connect.Request[gantryv1.ListImagesRequest]) (*connect.Response[gantryv1.ListImagesResponse], error) {
	images, err := h.a.Images.List(ctx, req.Msg.Filter)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.ListImagesResponse{Images: images}), nil
}

// Inspect implements the API.
func (h *imageService) Inspect(ctx context.Context, req *connect.Request[gantryv1.InspectImageRequest]) (*connect.Response[gantryv1.InspectImageResponse], error) {
	out, err := h.a.Images.Inspect(ctx, req.Msg.Image, req.Msg.Platform)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Pull implements the API.
func (h *imageService) Pull(ctx context.Context, req *connect.Request[gantryv1.PullRequest], stream *connect.ServerStream[gantryv1.Progress]) error {
	_, err := h.a.Images.Pull(ctx, req.Msg, stream.Send) // the last message carries the image
	return err
}

// Push implements the API.
func (h *imageService) Push(ctx context.Context, req *connect.Request[gantryv1.PushRequest], stream *connect.ServerStream[gantryv1.Progress]) error {
	_, err := h.a.Images.Push(ctx, req.Msg, stream.Send) // the last message carries the image
	return err
}

// Import implements the API.
func (h *imageService) Import(ctx context.Context, stream *connect.ClientStream[gantryv1.ImportChunk]) (*connect.Response[gantryv1.ImportResponse], error) {
	reference := ""
	r := &chunkReader{next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetData(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}}
	if stream.Receive() {
		reference, r.rest = stream.Msg().GetReference(), stream.Msg().GetData()
	}
	images, err := h.a.Images.Import(ctx, r, reference)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.ImportResponse{Images: images}), nil
}

// Export implements the API.
func (h *imageService) Export(ctx context.Context, req *connect.Request[gantryv1.ExportRequest], stream *connect.ServerStream[gantryv1.ExportChunk]) error {
	return h.a.Images.Export(ctx, exportWriter{stream}, req.Msg.Images, req.Msg.Platform)
}

type exportWriter struct {
	stream *connect.ServerStream[gantryv1.ExportChunk]
}

// Write implements io.Writer.
func (w exportWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), chunkSize)
		if err := w.stream.Send(&gantryv1.ExportChunk{Data: rest[:n]}); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// Bootstrap implements the API.
func (h *imageService) Bootstrap(ctx context.Context, req *connect.Request[gantryv1.BootstrapRequest], stream *connect.ServerStream[gantryv1.Progress]) error {
	_, err := h.a.Images.Bootstrap(ctx, req.Msg, stream.Send) // the last message carries the image
	return err
}

// Tag implements the API.
func (h *imageService) Tag(ctx context.Context, req *connect.Request[gantryv1.TagRequest]) (*connect.Response[gantryv1.TagResponse], error) {
	if err := h.a.Images.Tag(ctx, req.Msg.Source, req.Msg.Target); err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.TagResponse{}), nil
}

// user names an instance of this machine that was made from an image; "" if there is none.
func (h *imageService) user(digest string) string {
	for _, w := range h.a.all() {
		as := w.assignment()
		if as.Spec.GetImageDigest() == digest || as.Spec.GetImage() == digest {
			return instanceName(as.Instance)
		}
	}
	return ""
}

// Remove implements the API.
func (h *imageService) Remove(ctx context.Context, req *connect.Request[gantryv1.RemoveImageRequest]) (*connect.Response[gantryv1.RemoveImageResponse], error) {
	out, err := h.a.Images.Remove(ctx, req.Msg.Image, req.Msg.Force, h.user)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Prune implements the API.
func (h *imageService) Prune(ctx context.Context, req *connect.Request[gantryv1.PruneImagesRequest]) (*connect.Response[gantryv1.PruneImagesResponse], error) {
	kept := map[string]bool{}
	for _, d := range req.Msg.Keep {
		kept[d] = true
	}
	out, err := h.a.Images.Prune(ctx, req.Msg.All, func(_, digest string) bool { return kept[digest] || h.user(digest) != "" })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// PruneBuildCache implements the API.
func (h *imageService) PruneBuildCache(ctx context.Context, req *connect.Request[gantryv1.PruneBuildCacheRequest]) (*connect.Response[gantryv1.PruneBuildCacheResponse], error) {
	bytes, records, err := h.a.Builder.Prune(ctx, req.Msg.All, req.Msg.Keep)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.PruneBuildCacheResponse{Reclaimed: bytes, Records: int32(records)}), nil
}

// Build implements the API.
func (h *imageService) Build(ctx context.Context, stream *buildStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	if first.GetStart() == nil {
		return fault.New(fault.Invalid, "the first message of the stream is not start")
	}
	contexts := &buildContexts{builder: h.a.Builder, client: first.GetStart().GetSpec().GetContext(), dirs: map[string]string{}}
	defer contexts.release()
	if err := contexts.receive(ctx, stream); err != nil {
		return err
	}
	forward := newSSHForward(stream)
	go forward.receive()
	defer h.a.Images.Announce(ctx)
	img, err := h.a.Builder.Build(ctx, build.Request{
		Start: first.GetStart(), Contexts: contexts.dirs, SSH: forward.dialers(first.GetStart().GetSpec().GetSsh()),
	}, forward.send)
	if err != nil {
		return err
	}
	return forward.send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Image{Image: img}})
}

// buildContexts are the directories that a build reads. They are kept for the next build of the same place.
type buildContexts struct {
	builder  *build.Builder
	client   string // the client's own directory
	dirs     map[string]string
	releases []func()
}

func (c *buildContexts) release() {
	for _, r := range c.releases {
		r()
	}
}

// receive unpacks the contexts, which come one after another.
func (c *buildContexts) receive(ctx context.Context, stream *buildStream) error {
	for {
		in, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		chunk := in.GetChunk()
		switch {
		case chunk == nil:
			return fault.New(fault.Invalid, "a build context was expected")
		case chunk.Name == "": // all contexts are sent
			return nil
		case c.dirs[chunk.Name] != "":
			return fault.New(fault.Invalid, "the build context %q is sent twice", chunk.Name)
		case chunk.End && len(chunk.Data) == 0: // the builder fetches it itself
			continue
		}
		if err := c.unpack(ctx, stream, chunk); err != nil {
			return err
		}
	}
}

func (c *buildContexts) unpack(ctx context.Context, stream *buildStream, first *gantryv1.BuildInput_Chunk) error {
	dir, release, err := c.builder.ContextDir(c.client + "\x00" + first.Name)
	if err != nil {
		return err
	}
	c.releases = append(c.releases, release)
	c.dirs[first.Name] = dir
	return receiveContext(ctx, stream, first, dir)
}

func receiveContext(ctx context.Context, stream *buildStream, first *gantryv1.BuildInput_Chunk, place string) error {
	end := first.End
	r := &chunkReader{rest: first.Data, next: func() ([]byte, error) {
		if end {
			return nil, io.EOF
		}
		in, err := stream.Receive()
		if err != nil {
			return nil, err
		}
		c := in.GetChunk()
		if c.GetName() != first.Name {
			return nil, fault.New(fault.Invalid, "the build context %q ends early", first.Name)
		}
		end = c.End
		return c.Data, nil
	}}
	if err := build.UnpackContext(ctx, r, place); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r)
	return err
}
