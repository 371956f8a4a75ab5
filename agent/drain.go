package agent

import (
	"context"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const (
	// hearsay is how long another machine may take to act on what this one has been told at the same time, and connections to
	// arrive that it has sent before.
	hearsay = 500 * time.Millisecond
	// untold is how long a server may take to say that an instance serves no more.
	untold = time.Second
)

// drain returns when nobody sends an instance that stops new connections any more, so that its process may be told to end. This
// machine sends none from the moment it is stopping; others hear of it from the server, which tells all of them at once. Where
// no other instance could take the connections, no server knows of this one, or there is to be no grace at all, nothing is
// waited for.
func (w *worker) drain(ctx context.Context, as *gantryv1.Assignment) {
	w.mu.Lock()
	retired := w.retired
	w.mu.Unlock()
	if retired || grace(as) == 0 || !w.a.state.awaitTold(ctx, as.Instance) {
		return
	}
	select {
	case <-time.After(hearsay):
	case <-ctx.Done():
	}
}

// awaitTold waits until the other machines are told that an instance serves no more, and reports whether they have to be.
func (e *endpointState) awaitTold(ctx context.Context, i *gantryv1.Instance) bool {
	silence := time.After(untold)
	for {
		l := e.leaving(i)
		if !l.missed || l.told {
			return l.missed
		}
		select {
		case <-l.news:
		case <-silence: // no server is there: the others go on with what they know
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// leaving is what others know of an instance of this machine that serves no more.
type leaving struct {
	missed bool            // other machines may send it connections that another instance would take
	told   bool            // they have been told, or are at this moment
	news   <-chan struct{} // closed when a server says something
}

func (e *endpointState) leaving(i *gantryv1.Instance) leaving {
	e.mu.Lock()
	defer e.mu.Unlock()
	l, out := e.local[i.Meta.Key], leaving{told: true, news: e.news}
	if l == nil || l.left.IsZero() || time.Since(l.left) > 2*untold || len(e.nodes) < 2 {
		return out
	}
	for _, ep := range e.services[serviceKey(i)].GetEndpoints() {
		if ep.Instance == i.Meta.Key {
			out.told = !ep.Ready
		} else if ep.Ready {
			out.missed = true
		}
	}
	return out
}
