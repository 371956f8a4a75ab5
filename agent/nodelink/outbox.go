package nodelink

import (
	"sync"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Outbox collects observations until the stream takes them; a newer one of the same instance replaces an older. Use
// NewOutbox.
type Outbox struct {
	mu       sync.Mutex
	statuses map[string]*gantryv1.InstanceStatus
	removed  map[string]bool
	wake     chan struct{}
	changed  chan struct{} // closed and replaced with every observation
}

// NewOutbox makes an empty one.
func NewOutbox() *Outbox {
	return &Outbox{
		statuses: map[string]*gantryv1.InstanceStatus{}, removed: map[string]bool{},
		wake: make(chan struct{}, 1), changed: make(chan struct{}),
	}
}

// Next is closed at the next observation.
func (o *Outbox) Next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// Status puts in how an instance is.
func (o *Outbox) Status(st *gantryv1.InstanceStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.statuses[st.Meta.Key] = st
	o.signal()
}

// Gone puts in that nothing is left of an instance.
func (o *Outbox) Gone(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.statuses, id)
	o.removed[id] = true
	o.signal()
}

// Len is how many observations nobody has taken.
func (o *Outbox) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.statuses) + len(o.removed)
}

func (o *Outbox) signal() {
	close(o.changed)
	o.changed = make(chan struct{})
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take empties the box into a report.
func (o *Outbox) take() *gantryv1.NodeReport {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &gantryv1.NodeReport{}
	for _, st := range o.statuses {
		r.Statuses = append(r.Statuses, st)
	}
	for id := range o.removed {
		r.Removed = append(r.Removed, id)
	}
	clear(o.statuses)
	clear(o.removed)
	return r
}

// putBack returns what could not be sent, unless something newer is there.
func (o *Outbox) putBack(r *gantryv1.NodeReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range r.Removed {
		o.removed[id] = true
	}
	for _, st := range r.Statuses {
		if _, newer := o.statuses[st.Meta.Key]; !newer && !o.removed[st.Meta.Key] {
			o.statuses[st.Meta.Key] = st
		}
	}
}
