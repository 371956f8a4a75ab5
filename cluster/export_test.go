package cluster

// Kill ends a member as a death of its process does: it hands nothing over, and its machine refuses connections.
func (m *Member) Kill() {
	m.door.close()
	m.etcd.Server.HardStop()
}
