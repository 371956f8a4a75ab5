package nodesession

// A node has to know a service for any of these reasons, which needs counts: the service publishes ports on all nodes; an
// instance of it is on the node; it shares a network with a service that has an instance on the node.

func (t *term) need(n *node, s *service) {
	if n.needs[s]++; n.needs[s] == 1 {
		t.subscribe(n, s)
	}
}

func (t *term) unneed(n *node, s *service) {
	if n.needs[s]--; n.needs[s] > 0 {
		return
	}
	delete(n.needs, s)
	t.unsubscribe(n, s)
}

func (t *term) subscribe(n *node, s *service) {
	if n.session == nil || s.header == nil {
		return
	}
	delete(n.session.dropped, s.key)
	s.topic.subscribe(n.session)
}

func (t *term) unsubscribe(n *node, s *service) {
	if n.session != nil && s.topic.unsubscribe(n.session) {
		n.session.dropped[s.key] = struct{}{}
		n.session.hint()
	}
}

func (t *term) scope(network string) *scope {
	s := t.scopes[network]
	if s == nil {
		s = &scope{services: map[*service]struct{}{}, nodes: map[*node]struct{}{}}
		t.scopes[network] = s
	}
	return s
}

func (t *term) tidyScope(network string) {
	if s := t.scopes[network]; len(s.services)+len(s.nodes) == 0 {
		delete(t.scopes, network)
	}
}

// enter notes that a service in the network has come to the node.
func (t *term) enter(n *node, network string) {
	if n.scopes[network]++; n.scopes[network] > 1 {
		return
	}
	sc := t.scope(network)
	sc.nodes[n] = struct{}{}
	for s := range sc.services {
		t.need(n, s)
	}
}

func (t *term) leave(n *node, network string) {
	if n.scopes[network]--; n.scopes[network] > 0 {
		return
	}
	delete(n.scopes, network)
	sc := t.scope(network)
	delete(sc.nodes, n)
	for s := range sc.services {
		t.unneed(n, s)
	}
	t.tidyScope(network)
}

// attachService puts a service into a network, with all nodes that have an instance of it.
func (t *term) attachService(s *service, network string) {
	sc := t.scope(network)
	sc.services[s] = struct{}{}
	for n := range sc.nodes {
		t.need(n, s)
	}
	for _, n := range t.hosting(s) {
		t.enter(n, network)
	}
}

func (t *term) detachService(s *service, network string) {
	for _, n := range t.hosting(s) {
		t.leave(n, network)
	}
	sc := t.scope(network)
	delete(sc.services, s)
	for n := range sc.nodes {
		t.unneed(n, s)
	}
	t.tidyScope(network)
}

// hosting lists the nodes that have an instance of the service.
func (t *term) hosting(s *service) []*node {
	seen := map[*node]struct{}{}
	var out []*node
	for _, i := range s.instances {
		n := t.nodes[i.object.Node]
		if n == nil || n.hosts[s] == 0 {
			continue
		}
		if _, dup := seen[n]; !dup {
			seen[n] = struct{}{}
			out = append(out, n)
		}
	}
	return out
}

// open has all nodes know a service that publishes ports on them.
func (t *term) open(s *service) {
	t.ingress[s] = struct{}{}
	for _, n := range t.nodes {
		t.need(n, s)
	}
}

func (t *term) shut(s *service) {
	delete(t.ingress, s)
	for _, n := range t.nodes {
		t.unneed(n, s)
	}
}
