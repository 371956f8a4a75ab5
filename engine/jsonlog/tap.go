package jsonlog

import "sync"

// tapLimit is how much a tap holds for a slow reader before it is cut off.
const tapLimit = 8 << 20

// Chunk is raw output of a container. An empty chunk means nothing.
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
