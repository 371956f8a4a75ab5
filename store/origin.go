package store

import (
	"context"
	"sync"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Origin is who makes a change, and why.
type Origin struct {
	By    string // a user of the API, or a part of Gantry
	Cause string // "AppService/Scale", "rollout 12", "node n3 down"
}

type originKey struct{}

// WithOrigin has every Update with the context note its origin in the objects it puts. A controller may state a cause in an
// object's Meta itself: it is kept unless the origin has one.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf is the origin that WithOrigin gave.
func OriginOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}

func (o Origin) stamp(m *gantryv1.Meta) {
	if o.By != "" {
		m.ChangedBy = o.By
	}
	if o.Cause != "" {
		m.Cause = o.Cause
	}
}

// removals remembers the origins of removals from their commit until they are seen: an object that is gone cannot carry
// its own.
type removals struct {
	mu sync.Mutex
	by map[string]Origin // by path
}

func (r *removals) expect(path string, o Origin) {
	if o == (Origin{}) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[string]Origin{}
	}
	r.by[path] = o
}

func (r *removals) take(path string) Origin {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.by[path]
	delete(r.by, path)
	return o
}

// forget drops what did not happen.
func (r *removals) forget(tx *Tx) {
	for path, o := range tx.writes {
		if o == nil {
			r.take(path)
		}
	}
}
