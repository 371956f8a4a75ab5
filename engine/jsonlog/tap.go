package jsonlog

import (
	"sync"

	"github.com/gantryd/gantry/fault"
)

// tapLimit is how much a tap holds for a slow reader before it is cut off.
const tapLimit = 8 << 20

// Chunk is raw output of a container.
type Chunk struct {
	Stream string // "stdout" or "stderr"
	Data   []byte
}

// Tap sees raw output as it comes, without waiting for whole lines. It never holds the log up: a reader that is more
// than 8 MiB behind is cut off.
type Tap struct {
	log *Log

	mu     sync.Mutex
	queue  []Chunk
	size   int
	ready  chan struct{}
	closed bool
	slow   bool
}

// Tap starts to watch the raw output from now on. The caller closes it.
func (l *Log) Tap() *Tap {
	t := &Tap{log: l, ready: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		t.close(false)
		return t
	}
	l.taps[t] = struct{}{}
	return t
}

// TapFromStart gives all that the log has to fn and taps what comes after, with neither gap nor overlap.
func (l *Log) TapFromStart(fn func(Chunk) error) (*Tap, error) {
	r := reader{log: l, o: ReadOptions{Tail: -1}, fn: func(e Entry) error { return fn(Chunk{e.Stream, e.Line}) }}
	defer r.close()
	t := &Tap{log: l, ready: make(chan struct{}, 1)}
	if err := l.tapWith(t, &r); err != nil {
		return nil, err
	}
	if err := r.readOnce(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// tapWith opens the files and the tap at one moment. Unfinished lines, which the files do not have, go to the tap.
func (l *Log) tapWith(t *Tap, r *reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fault.New(fault.Conflict, "log in %s is closed", l.dir)
	}
	if err := r.openFrom(l.o.MaxFiles - 1); err != nil {
		return fault.Wrap(fault.Unavailable, err, "log in %s", l.dir)
	}
	r.limit = l.size
	l.taps[t] = struct{}{}
	for _, s := range l.spools {
		if len(s.pending) > 0 {
			t.push(Chunk{Stream: s.stream, Data: s.pending})
		}
	}
	return nil
}

// tap hands out fresh bytes of a spool that began at offset from. The caller holds mu.
func (l *Log) tap(s *spool, from int64, fresh []byte) {
	if skip := s.tapped - from; skip > 0 {
		fresh = fresh[min(skip, int64(len(fresh))):]
	}
	if len(fresh) == 0 {
		return
	}
	s.tapped += int64(len(fresh))
	for t := range l.taps {
		if !t.push(Chunk{Stream: s.stream, Data: fresh}) {
			l.dropTap(t)
		}
	}
}

func (l *Log) dropTap(t *Tap) {
	delete(l.taps, t)
	t.close(false)
}

// Ready is signalled when Next has something or the tap has ended.
func (t *Tap) Ready() <-chan struct{} { return t.ready }

// Next returns what has come since the last call, and whether the tap goes on.
func (t *Tap) Next() (chunks []Chunk, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	chunks, t.queue, t.size = t.queue, nil, 0
	return chunks, !t.closed
}

// Slow says whether the tap was cut off because its reader was too far behind.
func (t *Tap) Slow() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.slow
}

// Close ends the tap.
func (t *Tap) Close() {
	t.log.mu.Lock()
	defer t.log.mu.Unlock()
	t.log.dropTap(t)
}

func (t *Tap) push(c Chunk) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.size+len(c.Data) > tapLimit {
		t.slow = true
		return false
	}
	t.queue = append(t.queue, c)
	t.size += len(c.Data)
	t.signal()
	return true
}

func (t *Tap) close(slow bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed, t.slow = true, t.slow || slow
	t.signal()
}

func (t *Tap) signal() {
	select {
	case t.ready <- struct{}{}:
	default:
	}
}
