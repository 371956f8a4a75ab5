package blobtrack

import (
	"maps"
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// maxImages bounds the images that one node can make the leader remember.
const maxImages = 20_000

// keep notes which images a node has all of.
func (t *Tracker) keep(node string, m *machine, req *gantryv1.AnnounceRequest) {
	moved := req.Full && !m.told
	m.told = m.told || req.Full
	gone := slices.Clone(req.ImagesGone)
	if req.Full {
		stays := map[string]bool{}
		for _, d := range req.Images {
			stays[d] = true
		}
		for d := range m.whole {
			if !stays[d] {
				gone = append(gone, d)
			}
		}
	}
	for _, d := range gone {
		moved = t.lose(node, m, d) || moved
	}
	for _, d := range req.Images {
		if m.whole[d] || len(m.whole) >= maxImages {
			continue
		}
		if m.whole[d] = true; t.whole[d] == nil {
			t.whole[d] = map[string]bool{}
		}
		t.whole[d][node], moved = true, true
	}
	if moved {
		t.move()
	}
}

// lose notes that a node has an image no longer, and reports whether it had.
func (t *Tracker) lose(node string, m *machine, digest string) bool {
	had := m.whole[digest]
	delete(m.whole, digest)
	if delete(t.whole[digest], node); len(t.whole[digest]) == 0 {
		delete(t.whole, digest)
	}
	return had
}

func (t *Tracker) move() {
	close(t.moved)
	t.moved = make(chan struct{})
}

// Moved is closed when a machine has told what it has for the first time, or has come to have an image or lost one.
func (t *Tracker) Moved() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.moved
}

// Told reports whether a machine has told all it has since this server leads.
func (t *Tracker) Told(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.nodes[node]
	return m != nil && m.told
}

// Keepers lists the machines that have all parts of an image for one platform, up or not, in order.
func (t *Tracker) Keepers(digest string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.whole[digest]))
}

// Holders is Keepers without those that are down.
func (t *Tracker) Holders(digest string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holders(digest)
}

func (t *Tracker) holders(digest string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(t.whole[digest])), func(id string) bool {
		n, ok := t.o.Node(id)
		return !ok || n.Down
	})
}
