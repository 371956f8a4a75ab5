package nodesession

import (
	"context"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// session is one stream of a node. What it has to send is not queued: it is marked, and looked up when it is sent.
type session struct {
	term   *term
	node   *node
	cancel context.CancelCauseFunc
	wake   chan struct{}

	strikes chan struct{} // has one when something is struck

	// Under term.mu: what has changed since the last update.
	full     bool
	urgent   bool                // something that is not only news of topics
	recheck  bool                // something that assignments are made from has changed
	dirty    map[string]struct{} // instances
	removed  map[string]struct{} // instances that the node itself said are gone
	struck   map[string]struct{} // those of them that are to be removed from the state
	dropped  map[string]struct{} // services that it need not know any more
	news     map[*topic]struct{}
	self     bool
	servers  bool
	cluster  bool
	uses     map[string]struct{} // paths of term.users
	networks map[string]struct{} // that the node has been told of

	assigned map[string]string // instance to what its assignment was made from; of the sender alone
}

// urge and hint wake the sender: at once, or when it is its turn. The term's mu is held.
func (s *session) urge() {
	s.urgent = true
	s.hint()
}

func (s *session) hint() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// attach makes the session of a node; one that the node had is ended.
func (t *term) attach(id string, cancel context.CancelCauseFunc) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.node(id)
	if n.session != nil {
		n.session.cancel(errReplaced())
		t.release(n.session)
	}
	s := &session{
		term: t, node: n, cancel: cancel, wake: make(chan struct{}, 1), strikes: make(chan struct{}, 1), full: true, self: true, servers: true, cluster: true,
		dirty: map[string]struct{}{}, removed: map[string]struct{}{}, struck: map[string]struct{}{}, dropped: map[string]struct{}{},
		news: map[*topic]struct{}{}, uses: map[string]struct{}{}, networks: map[string]struct{}{}, assigned: map[string]string{},
	}
	n.session, n.heard = s, time.Now()
	t.sessions++
	for inst := range n.instances {
		s.dirty[inst] = struct{}{}
	}
	for svc := range n.needs {
		t.subscribe(n, svc)
	}
	t.machines.subscribe(s)
	s.urge()
	if t.ended != nil {
		cancel(t.ended)
	}
	return s
}

// detach ends a session. The node counts as heard of until it has been silent for a while: it may be back at once.
func (t *term) detach(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.node.session == s {
		t.release(s)
	}
}

// release takes a session out of everything; mu is held.
func (t *term) release(s *session) {
	s.node.session = nil
	t.sessions--
	for svc := range s.node.needs {
		svc.topic.unsubscribe(s)
	}
	t.machines.unsubscribe(s)
	for path := range s.uses {
		t.leaveUsers(path, s)
	}
	t.tidyNode(s.node)
}

func (t *term) leaveUsers(path string, s *session) {
	delete(t.users[path], s)
	if len(t.users[path]) == 0 {
		delete(t.users, path)
	}
}

// use notes that the session makes assignments of objects, so that it hears of their changes.
func (s *session) use(paths []string) {
	s.term.mu.Lock()
	defer s.term.mu.Unlock()
	for _, path := range paths {
		s.uses[path] = struct{}{}
		if s.node.session != s {
			continue // it has been replaced
		}
		if s.term.users[path] == nil {
			s.term.users[path] = map[*session]struct{}{}
		}
		s.term.users[path][s] = struct{}{}
	}
}

// changes is what a session has to send.
type changes struct {
	full      bool
	dirty     []string
	forgotten []string // instances that the node itself said are gone
	dropped   []string // services, and networks that none of the others is in
	unlinked  []string
	fragments []fragment
	self      *gantryv1.Node
	servers   []string
	cluster   *gantryv1.Cluster
}

// take returns what has changed since the last call, or how long to wait for more.
func (s *session) take(now, sent time.Time) (c changes, wait time.Duration) {
	t := s.term
	t.mu.Lock()
	defer t.mu.Unlock()
	if wait = s.pace().wait(now, sent); wait > 0 && !s.urgent {
		return c, wait
	}
	c.full, s.full = s.full, false
	if s.recheck {
		for id := range s.node.instances {
			s.dirty[id] = struct{}{}
		}
	}
	c.forgotten = s.forgotten()
	c.dirty = drain(s.dirty)
	c.dropped = drain(s.dropped)
	if len(c.dropped) > 0 {
		c.unlinked = s.unlink()
	}
	for p := range s.news {
		c.fragments = append(c.fragments, p.read(s)...)
		if svc, ok := p.content.(*service); ok {
			for _, network := range svc.networks {
				s.networks[network] = struct{}{}
			}
		}
	}
	clear(s.news)
	if s.self {
		c.self = t.objects.nodes[s.node.id]
	}
	if s.servers {
		c.servers = t.servers
	}
	if s.cluster {
		c.cluster = t.cluster
	}
	s.urgent, s.recheck, s.self, s.servers, s.cluster = false, false, false, false, false
	return c, 0
}

// forgotten lists what is gone now that the node itself has said is gone: it is not told of that, nor that it was to go.
func (s *session) forgotten() (out []string) {
	for id := range s.removed {
		if _, changed := s.dirty[id]; !changed {
			continue
		}
		i := s.term.instances[id]
		if i == nil {
			out = append(out, id)
			delete(s.removed, id)
		}
		if i == nil || i.object.Desired == gantryv1.Instance_DESIRED_REMOVED {
			delete(s.dirty, id)
		}
	}
	return out
}

// unlink lists the networks in which no service is left that the node has to know.
func (s *session) unlink() (out []string) {
	needed := map[string]struct{}{}
	for svc := range s.node.needs {
		for _, network := range svc.networks {
			needed[network] = struct{}{}
		}
	}
	for network := range s.networks {
		if _, ok := needed[network]; !ok {
			out = append(out, network)
			delete(s.networks, network)
		}
	}
	return out
}

func drain(set map[string]struct{}) []string {
	if len(set) == 0 {
		return nil
	}
	out := make([]string, 0, len(set))
	for key := range set {
		out = append(out, key)
	}
	clear(set)
	return out
}

// pace is the time between two updates that are not urgent: none with few nodes.
type pace time.Duration

func (s *session) pace() pace {
	return pace(min(time.Duration(s.term.sessions)*paceShare, longestPace))
}

func (p pace) wait(now, sent time.Time) time.Duration { return sent.Add(time.Duration(p)).Sub(now) }

// send keeps the node up to date until ctx ends.
func (s *session) send(ctx context.Context, stream *stream) error {
	var sent time.Time
	for {
		now := time.Now()
		c, wait := s.take(now, sent)
		if wait <= 0 {
			begun := time.Now()
			some, err := s.tell(c, stream.Send)
			if err != nil {
				return err
			}
			if some {
				sent = time.Now()
				s.term.hub.figures.Updates.Observe(sent.Sub(begun))
			}
			wait = sent.Add(s.beat()).Sub(now)
		}
		again, err := s.await(ctx, wait)
		if err != nil {
			return err
		}
		if again && time.Since(sent) >= s.beat() {
			if err := stream.Send(&gantryv1.NodeUpdate{}); err != nil {
				return err
			}
			sent = time.Now()
		}
	}
}

// beat is after what time a node that was sent nothing is told that the server lives.
func (s *session) beat() time.Duration {
	s.term.mu.Lock()
	defer s.term.mu.Unlock()
	return s.term.times.Beat
}

// await returns when something has changed, or with true when the time is over.
func (s *session) await(ctx context.Context, wait time.Duration) (over bool, err error) {
	timer := time.NewTimer(max(wait, time.Millisecond))
	defer timer.Stop()
	select {
	case <-s.wake:
		return false, nil
	case <-timer.C:
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// tell sends the update of changes, in as many messages as keep each of them small, and reports whether there was anything.
func (s *session) tell(c changes, send func(*gantryv1.NodeUpdate) error) (bool, error) {
	p := &parts{
		send: send, some: c.full || c.self != nil || c.servers != nil || c.cluster != nil || len(c.dropped) > 0,
		last: &gantryv1.NodeUpdate{Full: c.full, Node: c.self, Servers: c.servers, Cluster: c.cluster, RemovedEndpoints: c.dropped, RemovedNetworks: c.unlinked},
	}
	for _, f := range c.fragments {
		p.fragment(f)
	}
	for _, id := range c.forgotten {
		delete(s.assigned, id)
	}
	for _, id := range c.dirty {
		s.assign(p, id)
	}
	return p.done()
}

// assign adds what the node has to know of one instance.
func (s *session) assign(p *parts, id string) {
	live := s.term.hub.store.Live()
	i, ok := store.Get[*gantryv1.Instance](live, id)
	if !ok || i.Node != s.node.id {
		if _, sent := s.assigned[id]; sent {
			delete(s.assigned, id)
			p.unassign(id)
		}
		return
	}
	as, missing := assignment(live, i)
	for s.mind(sources(as, missing, i)) {
		as, missing = assignment(live, i) // what changed before the session heard of it
	}
	if as == nil {
		return // it is still there, so its node keeps it as it is
	}
	mark := madeFrom(live, as)
	if s.assigned[id] == mark {
		return
	}
	s.assigned[id] = mark
	s.contents(live, as)
	p.assign(as)
}

// mind has the session hear of changes of objects that assignments are made from, and reports whether one is new to it.
func (s *session) mind(paths []string) bool {
	var fresh []string
	for _, path := range paths {
		if _, known := s.uses[path]; !known {
			fresh = append(fresh, path)
		}
	}
	if len(fresh) > 0 {
		s.use(fresh)
	}
	return len(fresh) > 0
}
