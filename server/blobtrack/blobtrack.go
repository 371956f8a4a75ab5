// Package blobtrack knows, on the leader, which nodes have which parts of images, and sends each node that wants one to another.
//
// New, then Tracker.Handler on the listener that nodes reach. Locate chains: the second node that asks while the first still
// downloads is sent to the first, the third to the second, so that a source sends a blob about once. Everything is memory: a
// server that comes to lead calls Reset, and nodes, who see that the tracker is another, tell everything again. All methods are
// safe in parallel. No byte of a blob passes here; what nodes send each other is package peer of the engine.
package blobtrack

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/ids"
)

// Node is what the tracker has to know of a machine.
type Node struct {
	Address string // "host:port" of its API
	Server  bool   // it holds the cluster's state: the names it gives images are believed
	Down    bool
}

// Options say whom the tracker serves. Node is required.
type Options struct {
	// Node looks a machine up; false for one that is not of the cluster.
	Node func(id string) (Node, bool)
	// Released is the digest by which the last release uses an image's full name, empty if none does; nil if nobody can tell.
	Released func(name string) string
	Logger   *slog.Logger
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

const (
	// maxDepth bounds how many nodes that are still fetching a blob it passes on its way to another.
	maxDepth = 16
	// maxPeers is how many nodes one answer names.
	maxPeers = 3
	// accusers is how many nodes must complain of a holder until nobody is sent to it.
	accusers = 2
	// silence is how long a node that said nothing is taken to go on with what it was fetching. Nodes speak every 15 s.
	silence = 45 * time.Second
	// sweepEvery is how often machines that left the cluster are forgotten.
	sweepEvery = time.Minute
	// maxDigests and maxNames bound what one node can make the leader remember.
	maxDigests, maxNames = 200_000, 20_000
)

// Tracker knows who has what. Use New.
type Tracker struct {
	o Options

	mu    sync.Mutex
	id    string
	swept time.Time
	blobs map[string]blob                 // by digest
	nodes map[string]*machine             // by node
	names map[string]map[string]imageName // by name and node
	whole map[string]map[string]bool      // nodes by the digest of an image of which they have all
	moved chan struct{}                   // closed and replaced when whole changes, or a node has told what it has
}

// blob is who has one, or is about to.
type blob map[string]*holder

type holder struct {
	whole    bool
	from     string          // whom it fetches from, while not whole; empty for a registry
	active   int             // nodes that fetch from it now
	sent     int             // how often somebody was sent to it
	accusers map[string]bool // nodes that say it does not keep what it promises; until it removes the blob or starts again
}

type machine struct {
	boot   string
	seen   time.Time
	active int // nodes that fetch anything from it now
	blobs  map[string]bool
	names  map[string]bool
	whole  map[string]bool
	told   bool // everything it has, once
}

type imageName struct {
	digest  string
	updated time.Time
}

// New makes an empty tracker.
func New(o Options) *Tracker {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Tracker{o: o, moved: make(chan struct{})}
	t.Reset()
	return t
}

// Reset forgets everything: what is known is as old as the last time this server led.
func (t *Tracker) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.id, t.swept = ids.New(), t.o.Now()
	t.blobs, t.nodes, t.names = map[string]blob{}, map[string]*machine{}, map[string]map[string]imageName{}
	t.whole = map[string]map[string]bool{}
	t.move()
}

// Locate names nodes to fetch a blob from, best first, and notes that the caller fetches it from the first.
func (t *Tracker) Locate(node string, req *gantryv1.LocateRequest) *gantryv1.LocateResponse {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.machine(node)
	m.seen = t.o.Now()
	if f := req.Fault; f != nil {
		t.accuse(node, f)
	}
	peers := t.candidates(node, req)
	if !req.Complete {
		t.fetching(node, req.Digest, peers)
	} else if len(peers) > 0 {
		peers[0].sent++
	}
	resp := &gantryv1.LocateResponse{Tracker: t.id}
	for _, c := range peers {
		resp.Peers = append(resp.Peers, &gantryv1.BlobPeer{Node: c.node, Address: c.address, Depth: int32(c.depth)})
	}
	return resp
}

// fetching notes whom a node fetches from.
func (t *Tracker) fetching(node, digest string, peers []candidate) {
	h := t.holder(node, digest)
	if h == nil {
		return // it fetches too much for us to remember
	}
	t.leave(digest, h)
	h.whole, h.from = false, ""
	if len(peers) == 0 {
		return
	}
	h.from = peers[0].node
	from := t.blobs[digest][h.from]
	from.active++
	from.sent++
	t.nodes[h.from].active++
}

// leave notes that a holder no longer fetches from another.
func (t *Tracker) leave(digest string, h *holder) {
	if h.from == "" {
		return
	}
	if from := t.blobs[digest][h.from]; from != nil {
		from.active--
	}
	if m := t.nodes[h.from]; m != nil {
		m.active--
	}
	h.from = ""
}

type candidate struct {
	node, address string
	depth, load   int
	*holder
}

// before orders candidates: those who send to the fewest, have sent the least, have all of it, and have the least to do.
func (c candidate) before(d candidate) bool {
	whole := func(h *holder) int {
		if h.whole {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(c.active, d.active), cmp.Compare(c.sent, d.sent), cmp.Compare(whole(c.holder), whole(d.holder)),
		cmp.Compare(c.load, d.load)) < 0
}

// candidates lists whom a node can be sent to, best first. Equals come by chance, or all nodes would flock to one.
func (t *Tracker) candidates(node string, req *gantryv1.LocateRequest) []candidate {
	var rest, out []candidate
	for id, h := range t.blobs[req.Digest] { // the order of a map is by chance
		if id == node || !h.whole && req.Complete || slices.Contains(req.Exclude, id) || h.accusers[node] || len(h.accusers) >= accusers {
			continue
		}
		rest = append(rest, candidate{node: id, load: t.nodes[id].active, holder: h})
	}
	for len(rest) > 0 && len(out) < maxPeers {
		best := 0
		for i := range rest {
			if rest[i].before(rest[best]) {
				best = i
			}
		}
		if c, ok := t.usable(rest[best], node, req.Digest); ok {
			out = append(out, c)
		}
		rest[best] = rest[len(rest)-1]
		rest = rest[:len(rest)-1]
	}
	return out
}

// usable completes a candidate that can be reached and does not itself wait for the node that asks.
func (t *Tracker) usable(c candidate, asks, digest string) (candidate, bool) {
	n, ok := t.o.Node(c.node)
	if !ok || n.Down || n.Address == "" {
		return c, false
	}
	c.address = n.Address
	c.depth, ok = t.depth(digest, c.node, asks)
	return c, ok
}

// depth counts the nodes that are still fetching on the way to a holder. A way that is too long, that leads through the node
// that asks, or on which somebody has fallen silent is none.
func (t *Tracker) depth(digest, id, asks string) (int, bool) {
	for depth := 0; ; depth++ {
		h := t.blobs[digest][id]
		switch {
		case h == nil || id == asks || depth > maxDepth:
			return 0, false
		case h.whole:
			return depth, true
		case t.o.Now().Sub(t.nodes[id].seen) > silence:
			return 0, false
		case h.from == "":
			return depth + 1, depth < maxDepth
		}
		id = h.from
	}
}

// accuse notes what a node says of another. One that is still fetching promised nothing; of one that sent something wrong, it
// says so itself once it has checked.
func (t *Tracker) accuse(node string, f *gantryv1.BlobFault) {
	h := t.blobs[f.Digest][f.Node]
	if h == nil || !h.whole || f.Kind != gantryv1.BlobFault_KIND_MISSING && f.Kind != gantryv1.BlobFault_KIND_CORRUPT {
		return
	}
	if h.accusers == nil {
		h.accusers = map[string]bool{}
	}
	if len(h.accusers) < accusers {
		h.accusers[node] = true
	}
	t.o.Logger.Warn("a node does not send what it says it has", "node", f.Node, "digest", f.Digest, "kind", f.Kind.String(), "says", node)
}

// Announce takes what a node has and no longer has.
func (t *Tracker) Announce(node string, req *gantryv1.AnnounceRequest) *gantryv1.AnnounceResponse {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	m := t.machine(node)
	m.seen = t.o.Now()
	if m.boot != req.Boot && m.boot != "" {
		t.interrupted(node, m)
	}
	m.boot = req.Boot
	if req.Full {
		t.forgetAllBut(node, m, req)
	}
	for _, d := range req.Gone {
		t.drop(node, d)
	}
	for _, d := range req.Have {
		if h := t.holder(node, d); h != nil {
			t.leave(d, h)
			h.whole = true
		}
	}
	for _, f := range req.Faults {
		t.accuse(node, f)
	}
	t.rename(node, m, req)
	t.keep(node, m, req)
	return &gantryv1.AnnounceResponse{Tracker: t.id}
}

// interrupted forgets what the node's earlier daemon was fetching, and what was said of it.
func (t *Tracker) interrupted(node string, m *machine) {
	for d := range m.blobs {
		h := t.blobs[d][node]
		if h.accusers = nil; !h.whole {
			t.drop(node, d)
		}
	}
}

// forgetAllBut drops what a full announcement no longer names. What the node is fetching it tells of elsewhere.
func (t *Tracker) forgetAllBut(node string, m *machine, req *gantryv1.AnnounceRequest) {
	has, named := map[string]bool{}, map[string]bool{}
	for _, d := range req.Have {
		has[d] = true
	}
	for _, n := range req.Names {
		named[n.Name] = true
	}
	for d := range m.blobs {
		if t.blobs[d][node].whole && !has[d] {
			t.drop(node, d)
		}
	}
	for n := range m.names {
		if !named[n] {
			t.unname(node, n)
		}
	}
}

func (t *Tracker) rename(node string, m *machine, req *gantryv1.AnnounceRequest) {
	for _, n := range req.NamesGone {
		t.unname(node, n)
	}
	for _, n := range req.Names {
		if !m.names[n.Name] && len(m.names) >= maxNames {
			continue
		}
		m.names[n.Name] = true
		if t.names[n.Name] == nil {
			t.names[n.Name] = map[string]imageName{}
		}
		t.names[n.Name][node] = imageName{digest: n.Digest, updated: n.UpdatedAt.AsTime()}
	}
}

// machine finds or makes what is known of a node.
func (t *Tracker) machine(node string) *machine {
	m := t.nodes[node]
	if m == nil {
		m = &machine{blobs: map[string]bool{}, names: map[string]bool{}, whole: map[string]bool{}}
		t.nodes[node] = m
	}
	return m
}

// holder finds or makes a node's part in a blob; nil if the node has too many.
func (t *Tracker) holder(node, digest string) *holder {
	m := t.machine(node)
	if !m.blobs[digest] {
		if len(m.blobs) >= maxDigests {
			return nil
		}
		m.blobs[digest] = true
		if t.blobs[digest] == nil {
			t.blobs[digest] = blob{}
		}
		t.blobs[digest][node] = &holder{}
	}
	return t.blobs[digest][node]
}

// drop forgets that a node has or fetches a blob. Who fetches it from there will ask again.
func (t *Tracker) drop(node, digest string) {
	h := t.blobs[digest][node]
	if h == nil {
		return
	}
	t.leave(digest, h)
	for _, other := range t.blobs[digest] {
		if other.from == node {
			t.leave(digest, other)
		}
	}
	delete(t.nodes[node].blobs, digest)
	if delete(t.blobs[digest], node); len(t.blobs[digest]) == 0 {
		delete(t.blobs, digest)
	}
}

func (t *Tracker) unname(node, name string) {
	delete(t.nodes[node].names, name)
	if delete(t.names[name], node); len(t.names[name]) == 0 {
		delete(t.names, name)
	}
}

// sweep forgets machines that are no longer of the cluster.
func (t *Tracker) sweep() {
	now := t.o.Now()
	if now.Sub(t.swept) < sweepEvery {
		return
	}
	t.swept = now
	for id, m := range t.nodes {
		if _, ok := t.o.Node(id); ok {
			continue
		}
		for d := range m.blobs {
			t.drop(id, d)
		}
		for n := range m.names {
			t.unname(id, n)
		}
		for d := range m.whole {
			t.lose(id, m, d)
		}
		delete(t.nodes, id)
		t.move()
	}
}

// FindName returns the digest that an image's full name stands for: on the servers, the newest if they differ; else for the last
// release that uses the name, if a node has that image; else, if any is set, on any node. It is empty if nobody that is up
// knows the name.
func (t *Tracker) FindName(name string, any bool) string {
	servers, nodes := t.named(name)
	if servers != "" {
		return servers
	}
	released := ""
	if t.o.Released != nil {
		released = t.o.Released(name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case released != "" && len(t.holders(released)) > 0:
		return released
	case any:
		return nodes
	}
	return ""
}

// named says what the name means to the servers that are up, and to the other machines.
func (t *Tracker) named(name string) (onServers, onNodes string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var servers, nodes imageName
	for id, n := range t.names[name] {
		best := &nodes
		node, ok := t.o.Node(id)
		if !ok || node.Down {
			continue
		}
		if node.Server {
			best = &servers
		}
		if best.digest == "" || n.updated.After(best.updated) {
			*best = n
		}
	}
	return servers.digest, nodes.digest
}

// Digest is FindName for a name as people write it, among those of the servers.
func (t *Tracker) Digest(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	if d, ok := n.(reference.Digested); ok {
		return d.Digest().String()
	}
	return t.FindName(reference.TagNameOnly(n).String(), false)
}
