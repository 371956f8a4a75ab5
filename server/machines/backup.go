package machines

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

const chunkSize = 256 << 10 // bytes of one message of a backup

// Backup implements the API.
func (h *clusterService) Backup(ctx context.Context, _ *connect.Request[gantryv1.BackupRequest], stream *connect.ServerStream[gantryv1.BackupChunk]) error {
	c, err := h.cluster(h.store.Snapshot())
	if err != nil {
		return err
	}
	r, err := h.members.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	first := &gantryv1.BackupChunk{SecretsKey: h.o.Sealer.Key(), Cluster: c.Id, Version: h.o.Version, Time: timestamppb.Now()}
	if err := stream.Send(first); err != nil {
		return err
	}
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := stream.Send(&gantryv1.BackupChunk{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "the state could not be read to its end")
		}
	}
}
