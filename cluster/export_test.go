package cluster

// Kill ends a member as a death of its process does: it hands nothing over, and its machine refuses connections.
func (m *Member) Kill() {
	for _, p := range m.etcd.Peers {
		_ = p.Listener.Close()
	}
	m.etcd.Server.HardStop()
}
