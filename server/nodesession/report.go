package nodesession

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

func errReplaced() error {
	return fault.New(fault.Conflict, "the node has begun another session").
		WithHint("does a copy of its directory run on another machine?")
}

// greet replaces all that was known of the node by what it says now.
func (s *session) greet(hello *gantryv1.NodeReport) error {
	said := map[string]bool{}
	for _, st := range hello.Statuses {
		said[st.GetMeta().GetKey()] = true
	}
	var stale []store.Object
	t := s.term
	t.mu.Lock()
	for id, i := range s.node.instances {
		if said[id] {
			continue
		}
		if i.status != nil {
			stale = append(stale, i.status)
		}
		if i.object.Desired == gantryv1.Instance_DESIRED_REMOVED {
			hello.Removed = append(hello.Removed, id)
		}
	}
	t.mu.Unlock()
	if len(stale) > 0 {
		t.hub.store.Observe(nil, stale)
	}
	return s.report(hello)
}

func (s *session) receive(stream *stream) error {
	for {
		r, err := stream.Receive()
		if err != nil {
			return err
		}
		if err := s.report(r); err != nil {
			return err
		}
	}
}

// report takes one report: what a node says of instances that are not its own is ignored.
func (s *session) report(r *gantryv1.NodeReport) error {
	t := s.term
	put := make([]store.Object, 0, len(r.Statuses)+1)
	live := t.hub.store.Live()
	for _, st := range r.Statuses {
		if i, ok := store.Get[*gantryv1.Instance](live, st.GetMeta().GetKey()); ok && i.Node == s.node.id {
			st.Node = s.node.id
			put = append(put, st)
		}
	}
	// Under the lock of the term, so that a session that has ended or been replaced changes nothing any more.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return t.ended
	}
	if s.node.session != s {
		return errReplaced()
	}
	if st := s.hear(r.Status); st != nil {
		put = append(put, st)
	}
	if len(put) > 0 {
		t.hub.store.Observe(put, nil)
	}
	s.strike(r.Removed)
	return nil
}

// hear notes that the node lives; it returns its status if that says something new.
func (s *session) hear(said *gantryv1.NodeStatus) store.Object {
	n := s.node
	n.heard = time.Now()
	if said.GetMeta().GetKey() != n.id {
		said = nil
	}
	if said == nil && (n.said == nil || n.state == stateReady) {
		return nil
	}
	if said != nil && n.state == stateReady && sameStatus(n.said, said) && !n.clockMoved(said) {
		return nil
	}
	if said != nil {
		n.said, n.ahead = said, ahead(said, n.heard)
	}
	n.state = stateReady
	if n.late {
		n.late = false
		s.term.doubt(n)
	}
	return n.observation(n.heard)
}

// ahead is how far a node's clock is before this server's.
func ahead(said *gantryv1.NodeStatus, now time.Time) time.Duration {
	if said.Clock == nil {
		return 0
	}
	return said.Clock.AsTime().Sub(now)
}

// clockStep is the change of a node's clock, against this server's, from which on it is news.
const clockStep = time.Second

func (n *node) clockMoved(said *gantryv1.NodeStatus) bool {
	return (ahead(said, n.heard) - n.ahead).Abs() >= clockStep
}

// observation is what the node said of itself, with what is thought of it.
func (n *node) observation(seen time.Time) *gantryv1.NodeStatus {
	c := &gantryv1.NodeStatus{Meta: store.NewMeta(n.id)}
	if n.said != nil {
		c = proto.Clone(n.said).(*gantryv1.NodeStatus)
	}
	c.State, c.LastSeen = n.state, timestamppb.New(seen)
	if c.Clock != nil {
		c.Clock = timestamppb.New(seen.Add(n.ahead)) // what it would have said then: silence is no wrong clock
	}
	return c
}

// sameStatus leaves out what every heartbeat changes.
func sameStatus(a, b *gantryv1.NodeStatus) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := proto.Clone(a).(*gantryv1.NodeStatus), proto.Clone(b).(*gantryv1.NodeStatus)
	x.LastSeen, y.LastSeen, x.Clock, y.Clock, x.State, y.State = nil, nil, nil, nil, "", ""
	return proto.Equal(x, y)
}

// strike notes instances whose node has nothing left of them; mu is held.
func (s *session) strike(ids []string) {
	for _, id := range ids {
		if s.node.instances[id] != nil {
			s.removed[id] = struct{}{}
			s.struck[id] = struct{}{}
		}
	}
	if len(s.struck) == 0 {
		return
	}
	select {
	case s.strikes <- struct{}{}:
	default:
	}
}

// forget removes what is struck until ctx ends. The state may take seconds to store it, in which the node is heard.
func (s *session) forget(ctx context.Context) error {
	for {
		select {
		case <-s.strikes:
		case <-ctx.Done():
			return nil
		}
		s.term.mu.Lock()
		ids := drain(s.struck)
		s.term.mu.Unlock()
		err := s.term.hub.store.Update(ctx, func(tx *store.Tx) error {
			for _, id := range ids {
				i, ok := store.Get[*gantryv1.Instance](tx, id)
				if ok && i.Node == s.node.id && i.Desired == gantryv1.Instance_DESIRED_REMOVED {
					store.Delete[*gantryv1.Instance](tx, id)
				}
			}
			return nil
		})
		if err != nil {
			return err // the node says it again in its next session
		}
	}
}

// States of a node.
const (
	stateReady   = "ready"
	stateSuspect = "suspect"
	stateDown    = "down"
)

// stall is the time without a look at the nodes from which on this server was held up itself.
const stall = 500 * time.Millisecond

// watch finds the nodes that have been silent for too long. since is the time from the look before: while this server was
// held up itself, nobody could be heard.
func (t *term) watch(now time.Time, since time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var put []store.Object
	for id, o := range t.objects.nodes {
		n := t.node(id)
		if since > stall {
			n.heard = n.heard.Add(since)
		}
		state, silence, down := n.state, now.Sub(n.heard), t.times.Down
		if state == "" { // it may be about to leave the server that led before
			down = t.times.Unheard
			if silence >= t.times.Suspect && !n.late {
				n.late = true
				t.doubt(n)
			}
		}
		switch {
		case silence >= down:
			state = stateDown
		case silence >= t.times.Suspect && n.state == stateReady:
			state = stateSuspect
		}
		if state != n.state {
			t.hub.log.Warn("a node is silent", "node", o.Name, "state", state, "for", silence.Round(time.Millisecond))
			n.state = state
			put = append(put, n.observation(now.Add(-silence)))
		}
	}
	if len(put) > 0 {
		t.hub.store.Observe(put, nil)
	}
}
