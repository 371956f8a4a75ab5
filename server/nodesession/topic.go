package nodesession

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// fragment is a part of a NodeUpdate in its form on the wire. It is encoded once for all nodes that are sent it.
type fragment []byte

func encode(u *gantryv1.NodeUpdate) fragment {
	b, err := proto.Marshal(u)
	if err != nil {
		panic("encoding an update: " + err.Error()) // only text that is not UTF-8 can cause it, and nothing stored has that
	}
	return b
}

// content is what a topic is about: entries with keys.
type content interface {
	// full is all of it, for a node that knows nothing of it or something outdated.
	full() []fragment
	// delta is the newest of some entries, or that they are gone.
	delta(keys []string) []fragment
	// size is the number of entries.
	size() int
	// settle works out what depends on several entries and returns those that changed by it.
	settle() []string
}

// topic is something that many nodes are told alike, as a log that each of them reads at its own pace.
type topic struct {
	content content
	pending map[string]struct{} // entries that have changed since the log was written
	restart bool                // more than entries have changed
	log     []fragment          // from nothing to the newest; nil while nobody reads
	entries int                 // in the log
	epoch   int                 // of the log: raised when it begins anew
	readers map[*session]*cursor
	sealed  time.Time // when the log was written last
}

// cursor is how far a session has read.
type cursor struct{ epoch, next int }

func newTopic(c content) *topic {
	return &topic{content: c, pending: map[string]struct{}{}, readers: map[*session]*cursor{}}
}

// touch notes that an entry has changed.
func (t *term) touch(topic *topic, key string) {
	topic.pending[key] = struct{}{}
	t.pending[topic] = struct{}{}
}

// renew notes that more than entries have changed.
func (t *term) renew(topic *topic) {
	topic.restart = true
	t.pending[topic] = struct{}{}
}

func (p *topic) subscribe(s *session) {
	if p.readers[s] != nil {
		return
	}
	if p.log == nil || p.restart || p.wasteful() {
		p.begin()
	}
	p.readers[s] = &cursor{epoch: p.epoch}
	s.news[p] = struct{}{}
	s.hint()
}

// unsubscribe reports whether the session had been told anything, or might have been.
func (p *topic) unsubscribe(s *session) bool {
	c := p.readers[s]
	delete(p.readers, s)
	delete(s.news, p)
	return c != nil
}

// wasteful reports that most of the log is outdated.
func (p *topic) wasteful() bool { return p.entries > 3*p.content.size()+64 }

// begin writes the log anew. Readers that had read all of the old one go on behind what they know.
func (p *topic) begin() {
	last, was := len(p.log), p.epoch
	if set, ok := p.content.(*machineSet); ok && p.allRead() {
		clear(set.gone)
	}
	p.log, p.entries = p.content.full(), p.content.size()
	p.epoch++
	for _, c := range p.readers {
		if c.epoch == was && c.next == last && last > 0 && !p.restart {
			*c = cursor{p.epoch, len(p.log)}
		} else {
			*c = cursor{epoch: p.epoch}
		}
	}
	p.restart = false
}

// allRead reports that no reader is behind.
func (p *topic) allRead() bool {
	for _, c := range p.readers {
		if c.epoch != p.epoch || c.next != len(p.log) {
			return false
		}
	}
	return true
}

// hold is how long changes wait for more of their kind: not at all when it was quiet.
func (p *topic) hold(now time.Time) time.Duration {
	pause := min(time.Duration(len(p.readers))*2*paceShare, longestHold)
	return p.sealed.Add(pause).Sub(now)
}

// seal writes what is pending into the log and wakes the readers.
func (p *topic) seal(now time.Time) {
	for _, key := range p.content.settle() {
		p.pending[key] = struct{}{}
	}
	switch {
	case len(p.readers) == 0:
		p.log = nil
	case p.restart:
		p.begin()
	case len(p.pending) > 0:
		if p.wasteful() {
			p.begin()
		}
		keys := make([]string, 0, len(p.pending))
		for key := range p.pending {
			keys = append(keys, key)
		}
		p.log = append(p.log, p.content.delta(keys)...)
		p.entries += len(keys)
	}
	clear(p.pending)
	p.restart, p.sealed = false, now
	for s := range p.readers {
		s.news[p] = struct{}{}
		s.hint()
	}
}

// read returns what a session has not been sent.
func (p *topic) read(s *session) []fragment {
	c := p.readers[s]
	if c == nil {
		return nil
	}
	if c.epoch != p.epoch {
		*c = cursor{epoch: p.epoch}
	}
	out := p.log[c.next:]
	c.next = len(p.log)
	return out
}

// flush seals the topics that have waited long enough; mu is held.
func (t *term) flush(now time.Time) {
	for p := range t.pending {
		if p.hold(now) <= 0 {
			delete(t.pending, p)
			p.seal(now)
		}
	}
}

// hold is the time until a topic has to be sealed.
func (t *term) hold(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := time.Hour
	for p := range t.pending {
		first = min(first, p.hold(now))
	}
	return max(first, 0)
}

// machineSet is a topic's content: all machines of the cluster.
type machineSet struct {
	nodes map[string]*gantryv1.Node
	gone  map[string]struct{} // removed in this term: a reader that starts over may know them
}

func newMachineSet() *machineSet {
	return &machineSet{nodes: map[string]*gantryv1.Node{}, gone: map[string]struct{}{}}
}

func (m *machineSet) set(o *gantryv1.Node, gone bool) {
	if gone {
		delete(m.nodes, o.Meta.Key)
		m.gone[o.Meta.Key] = struct{}{}
		return
	}
	m.nodes[o.Meta.Key] = o
	delete(m.gone, o.Meta.Key)
}

func (m *machineSet) full() []fragment {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(m.nodes)), maps.Keys(m.gone))
	return m.delta(keys)
}

func (m *machineSet) delta(keys []string) []fragment {
	var out []fragment
	for part := range slices.Chunk(keys, endpointsPerFragment) {
		u := &gantryv1.NodeUpdate{}
		for _, key := range part {
			if o := m.nodes[key]; o != nil {
				u.Nodes = append(u.Nodes, o)
			} else {
				u.RemovedNodes = append(u.RemovedNodes, key)
			}
		}
		out = append(out, encode(u))
	}
	return out
}

func (m *machineSet) size() int { return len(m.nodes) + len(m.gone) }

func (m *machineSet) settle() []string { return nil }
