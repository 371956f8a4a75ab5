package image

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/gantryd/gantry/fault"
)

// aheadParts is how many parts of an image that is fetched ahead arrive at a time: the node's other downloads go first.
const aheadParts = 1

// queue says who wants an image now, and who fetches it ahead of need and has to give way. The zero value is ready.
type queue struct {
	mu    sync.Mutex
	want  map[string]int // pulls that somebody waits for
	ahead map[string]context.CancelCauseFunc
}

// urge ends the pull ahead of a key and keeps others from beginning until the returned function is called.
func (q *queue) urge(key string) (done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.want == nil {
		q.want = map[string]int{}
	}
	q.want[key]++
	if cancel := q.ahead[key]; cancel != nil {
		cancel(errGaveWay)
	}
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.want[key]--; q.want[key] == 0 {
			delete(q.want, key)
		}
	}
}

var errGaveWay = fault.New(fault.Conflict, "the same image is pulled for somebody who waits for it")

// gaveWay is the error of a pull, which of one that was ended for another says so.
func gaveWay(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errGaveWay) {
		return cause
	}
	return err
}

// begin starts a pull ahead; the caller has the key's lock. The context ends when somebody wants the image now.
func (q *queue) begin(ctx context.Context, key string) (context.Context, func(), error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.want[key] > 0 {
		return nil, nil, errGaveWay
	}
	if q.ahead == nil {
		q.ahead = map[string]context.CancelCauseFunc{}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	q.ahead[key] = cancel
	return ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.ahead, key)
		cancel(nil)
	}, nil
}

// turn waits until a pull may begin. The context is for what it does, done ends it.
func (s *Service) turn(ctx context.Context, key string, ahead bool) (_ context.Context, done func(), err error) {
	urged := func() {}
	if !ahead {
		urged = s.queue.urge(key)
	}
	unlock, err := s.locks.lock(ctx, key)
	if err != nil {
		urged()
		return nil, nil, err
	}
	if !ahead {
		return ctx, func() { urged(); unlock() }, nil
	}
	ctx, end, err := s.queue.begin(ctx, key)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return ctx, func() { end(); unlock() }, nil
}

// keep stores what a pull is for. One ahead of need stores a part at a time and unpacks nothing.
func (p *puller) keep(ctx context.Context, h images.Handler, target ocispec.Descriptor) error {
	if p.req.Ahead {
		return images.Dispatch(ctx, h, semaphore.NewWeighted(aheadParts), target)
	}
	return p.s.dispatch(ctx, h, target, p.rep)
}

// labels are those of the record that a pull makes. Nobody gave a name to what is fetched ahead of need.
func (p *puller) labels() map[string]string {
	if p.req.Ahead {
		return map[string]string{labelDangling: "true"}
	}
	return nil
}
