package cluster

import "context"

// Kill ends a member as a death of its process does: it hands nothing over, and its machine refuses connections.
func (m *Member) Kill() {
	m.door.close()
	m.etcd.Server.HardStop()
}

// AwaitConfirmed is AwaitReady of a member that etcd never calls ready.
func (m *Member) AwaitConfirmed(ctx context.Context) error { return m.awaitReady(ctx, nil) }
