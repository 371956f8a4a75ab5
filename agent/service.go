package agent

import (
	"context"
	"errors"
	"io"
	"net/http"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
)

// Handler serves NodeService and ImageService of this machine; opts are the server's own, such as how errors travel.
func (a *Agent) Handler(opts ...connect.HandlerOption) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewNodeServiceHandler(&nodeService{a}, opts...))
	mux.Handle(gantryv1connect.NewImageServiceHandler(&imageService{a}, opts...))
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-a.started:
			mux.ServeHTTP(rw, r)
		case <-r.Context().Done():
		}
	})
}

// nodeService serves NodeService. Targets are IDs: the server has resolved and authorised them.
type nodeService struct{ a *Agent }

func done(id string, err error) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.InstanceActionResponse{Id: id}), nil
}

// Logs implements the API.
func (h *nodeService) Logs(ctx context.Context, req *connect.Request[gantryv1.LogsRequest], stream *connect.ServerStream[gantryv1.LogEntry]) error {
	m := req.Msg
	o := engine.LogOptions{Follow: m.Follow, Tail: m.Tail}
	if m.Since != nil {
		o.Since = m.Since.AsTime()
	}
	if m.Until != nil {
		o.Until = m.Until.AsTime()
	}
	for _, id := range m.Targets {
		if err := h.a.Engine.Logs(ctx, id, o, stream.Send); err != nil {
			return err
		}
	}
	return nil
}

// Stats implements the API. Instances that have just ended are left out.
func (h *nodeService) Stats(ctx context.Context, req *connect.Request[gantryv1.StatsRequest]) (*connect.Response[gantryv1.StatsResponse], error) {
	out := &gantryv1.StatsResponse{}
	for _, id := range req.Msg.Targets {
		s, err := h.a.Engine.Stats(ctx, id)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out.Stats = append(out.Stats, s)
	}
	return connect.NewResponse(out), nil
}

// Kill implements the API.
func (h *nodeService) Kill(ctx context.Context, req *connect.Request[gantryv1.KillRequest]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	signal := req.Msg.Signal
	if signal == "" {
		signal = "SIGKILL"
	}
	id := req.Msg.GetTarget().GetTarget()
	return done(id, h.a.Engine.Signal(ctx, id, signal))
}

// Pause implements the API.
func (h *nodeService) Pause(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	err := h.a.Engine.Pause(ctx, req.Msg.Target)
	h.poke(req.Msg.Target)
	return done(req.Msg.Target, err)
}

// Unpause implements the API.
func (h *nodeService) Unpause(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	err := h.a.Engine.Resume(ctx, req.Msg.Target)
	h.poke(req.Msg.Target)
	return done(req.Msg.Target, err)
}

func (h *nodeService) poke(id string) {
	if w := h.a.worker(id); w != nil {
		w.poke()
	}
}

// Top implements the API.
func (h *nodeService) Top(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.TopResponse], error) {
	out, err := h.a.Engine.Top(ctx, req.Msg.Target)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Diff implements the API.
func (h *nodeService) Diff(ctx context.Context, req *connect.Request[gantryv1.InstanceTarget]) (*connect.Response[gantryv1.DiffResponse], error) {
	out, err := h.a.Engine.Diff(ctx, req.Msg.Target)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// CopyTo implements the API.
func (h *nodeService) CopyTo(ctx context.Context, stream *connect.ClientStream[gantryv1.CopyChunk]) (*connect.Response[gantryv1.InstanceActionResponse], error) {
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		return nil, fault.New(fault.Invalid, "the first message of the stream is not start")
	}
	start := stream.Msg().GetStart()
	r := &chunkReader{next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetData(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}}
	return done(start.GetTarget().GetTarget(), h.a.Engine.CopyTo(ctx, start.GetTarget().GetTarget(), start.Path, r))
}

// chunkReader is a stream of chunks as a reader.
type chunkReader struct {
	next func() ([]byte, error)
	rest []byte
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		b, err := r.next()
		if err != nil {
			return 0, err
		}
		r.rest = b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

const chunkSize = 64 << 10

// CopyFrom implements the API.
func (h *nodeService) CopyFrom(ctx context.Context, req *connect.Request[gantryv1.CopyFromRequest], stream *connect.ServerStream[gantryv1.CopyChunk]) error {
	r, err := h.a.Engine.CopyFrom(ctx, req.Msg.GetTarget().GetTarget(), req.Msg.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	return chunks(r, func(b []byte) error {
		return stream.Send(&gantryv1.CopyChunk{Chunk: &gantryv1.CopyChunk_Data{Data: b}})
	})
}

// chunks sends a reader piece by piece.
func chunks(r io.Reader, send func([]byte) error) error {
	buf := make([]byte, chunkSize)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// InspectVolume implements the API.
func (h *nodeService) InspectVolume(ctx context.Context, req *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.VolumeView], error) {
	path, err := h.a.Volumes.Path(ctx, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	size, err := h.a.Volumes.Usage(ctx, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.VolumeView{Mountpoint: path, Size: size}), nil
}

// RemoveVolume implements the API.
func (h *nodeService) RemoveVolume(ctx context.Context, req *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	if err := h.a.Volumes.RemoveUnless(ctx, req.Msg.Name, h.a.volumeInUse(req.Msg.Name)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.RemoveVolumeResponse{}), nil
}

// Info implements the API.
func (h *nodeService) Info(ctx context.Context, _ *connect.Request[gantryv1.InfoRequest]) (*connect.Response[gantryv1.InfoResponse], error) {
	images, err := h.a.Images.List(ctx, "")
	if err != nil {
		return nil, err
	}
	info := cloneInfo(h.a.o.Info)
	info.Images = int32(len(images))
	return connect.NewResponse(info), nil
}

// DiskUsage implements the API.
func (h *nodeService) DiskUsage(ctx context.Context, _ *connect.Request[gantryv1.DiskUsageRequest]) (*connect.Response[gantryv1.DiskUsageResponse], error) {
	out := &gantryv1.DiskUsageResponse{}
	images, err := h.a.Images.List(ctx, "")
	if err != nil {
		return nil, err
	}
	row := &gantryv1.DiskUsageResponse_Row{Kind: "images", Count: int32(len(images))}
	used := h.imagesInUse()
	for _, i := range images {
		row.Size += i.Size
		if used[i.Digest] {
			row.Active++
		} else {
			row.Reclaimable += i.Size
		}
	}
	volumes, err := h.volumeUsage(ctx)
	if err != nil {
		return nil, err
	}
	bytes, records, err := h.a.Builder.Usage(ctx)
	if err != nil {
		return nil, err
	}
	cache := &gantryv1.DiskUsageResponse_Row{Kind: "build cache", Count: int32(records), Size: bytes, Reclaimable: bytes}
	out.Rows = append(out.Rows, row, volumes, cache)
	return connect.NewResponse(out), nil
}

func (h *nodeService) volumeUsage(ctx context.Context) (*gantryv1.DiskUsageResponse_Row, error) {
	row := &gantryv1.DiskUsageResponse_Row{Kind: "volumes"}
	all, err := h.a.Volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, w := range h.a.all() {
		for _, m := range w.assignment().Spec.GetMounts() {
			used[m.Source] = true
		}
	}
	for _, v := range all {
		size, err := h.a.Volumes.Usage(ctx, v.Key)
		if err != nil {
			return nil, err
		}
		row.Count++
		row.Size += size
		if used[v.Key] {
			row.Active++
		} else {
			row.Reclaimable += size
		}
	}
	return row, nil
}

// imagesInUse is the digests that instances of this machine were made from.
func (h *nodeService) imagesInUse() map[string]bool {
	out := map[string]bool{}
	for _, w := range h.a.all() {
		out[w.assignment().Spec.GetImageDigest()] = true
	}
	return out
}
