package store

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/fault"
)

const (
	maxAttempts = 50
	// A change joins others in a transaction up to these numbers of writes and of bytes; alone it may be larger.
	maxBatchWrites = 4096
	maxBatchBytes  = 4 << 20
)

// change is one call of Update on its way.
type change struct {
	fn     func(*Tx) error
	origin Origin
	done   chan struct{} // closed when err is final
	err    error

	mu        sync.Mutex  // held while fn runs
	abandoned atomic.Bool // the caller has gone: fn must not run again
}

// queue holds the changes that wait for the next transaction.
type queue struct {
	mu      sync.Mutex
	waiting []*change
	busy    bool // a goroutine commits; it goes on until nothing waits
}

// Update runs fn and commits its writes in one etcd transaction, on condition that nothing fn read by key has changed
// since; otherwise fn runs again on newer state. It returns when reads see the result. Changes that wait while another is
// committed share the next transaction: each sees the writes of those before it, and it is as if they had run one after
// the other. fn may run in another goroutine than its caller's, but never after Update has returned.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	defer s.figures.update()()
	if err := s.admit(OriginOf(ctx)); err != nil {
		return err
	}
	c := &change{fn: fn, origin: OriginOf(ctx), done: make(chan struct{})}
	s.enqueue(c)
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	c.abandoned.Store(true)
	c.mu.Unlock()
	s.abandon()
	select {
	case <-c.done: // it was just about to end
		return c.err
	default:
		return fault.Wrap(fault.Unavailable, ctx.Err(), "the change could not be stored in time").
			WithHint("it may still be stored; look before you try again")
	}
}

func (s *Store) enqueue(c *change) {
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, c)
	if !q.busy {
		q.busy = true
		go s.drain()
	}
}

// next takes the changes that wait; none ends the goroutine that asks.
func (q *queue) next() []*change {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.waiting
	q.waiting = nil
	q.busy = len(out) > 0
	return out
}

func (q *queue) putBack(rest []*change) {
	if len(rest) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(rest, q.waiting...)
}

// drain commits until nothing waits.
func (s *Store) drain() {
	for {
		changes := s.queue.next()
		if len(changes) == 0 {
			return
		}
		s.queue.putBack(s.commit(changes))
	}
}

// flight is the transaction under way: it is given up once all its callers have gone.
type flight struct {
	mu      sync.Mutex
	changes []*change
	cancel  context.CancelFunc

	open bool // the outcome of one before is not known, and reads may not see it yet; of the goroutine that commits alone
}

func (s *Store) abandon() {
	f := &s.flight
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.changes {
		if !c.abandoned.Load() {
			return
		}
	}
	if f.cancel != nil {
		f.cancel()
	}
}

func (f *flight) begin(changes []*change) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes, f.cancel = changes, cancel
	return ctx
}

func (f *flight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel()
	f.changes, f.cancel = nil, nil
}

// commit runs as many of the changes as fit into one transaction and returns the others.
func (s *Store) commit(changes []*change) (rest []*change) {
	ctx := s.flight.begin(changes)
	defer s.flight.end()
	s.abandon() // all of them may have gone while they waited
	if err := s.caughtUp(ctx); err != nil {
		finish(changes, nil, err)
		return nil
	}
	for range maxAttempts {
		b := &batch{tx: newTx(s.snapshot()), errs: map[*change]error{}, removals: map[string]Origin{}}
		n := b.run(s, changes)
		done, err := true, error(nil)
		if len(b.tx.writes) > 0 {
			begun := time.Now()
			done, err = s.tryAs(ctx, b)
			s.figures.attempt(begun, len(b.tx.writes), done, err)
		}
		if err != nil || done {
			finish(changes[:n], b.errs, err)
			return changes[n:]
		}
	}
	finish(changes, nil, fault.New(fault.Conflict, "the objects changed %d times while this change was made", maxAttempts).
		WithHint("try again"))
	return nil
}

// finish tells the callers: a change that failed by itself has its own error, the others that of the transaction.
func finish(changes []*change, own map[*change]error, err error) {
	for _, c := range changes {
		if c.err = own[c]; c.err == nil {
			c.err = err
		}
		close(c.done)
	}
}

// batch is several changes in one transaction.
type batch struct {
	tx       *Tx
	size     int // bytes written
	errs     map[*change]error
	removals map[string]Origin // by path
}

// run lets the changes write, one after the other, and returns how many had their turn.
func (b *batch) run(s *Store, changes []*change) int {
	for n, c := range changes {
		tx := b.tx.fork()
		err := c.run(tx)
		if err == nil {
			err = s.check(tx)
		}
		if err != nil {
			b.errs[c] = err
			continue
		}
		size := tx.size()
		if n > 0 && (len(b.tx.writes)+len(tx.writes) > maxBatchWrites || b.size+size > maxBatchBytes) {
			return n
		}
		b.size += size
		b.note(tx, c.origin)
		b.tx.absorb(tx)
	}
	return len(changes)
}

// note has the objects say who changed them.
func (b *batch) note(tx *Tx, by Origin) {
	for path, o := range tx.writes {
		if o != nil {
			by.stamp(o.GetMeta())
		} else {
			b.removals[path] = by
		}
	}
}

// check refuses what must not be stored.
func (s *Store) check(tx *Tx) error {
	for _, o := range tx.writes {
		if o != nil && s.kinds[kindOf(o)] == nil {
			return fault.New(fault.Internal, "objects of the kind %s are observed, not stored", kindOf(o))
		}
	}
	return nil
}

func (t *Tx) size() int {
	n := 0
	for path, o := range t.writes {
		n += len(path)
		if o != nil {
			n += proto.Size(o)
		}
	}
	return n
}

// tryAs tries with the origins of removals noted, for those who see them.
func (s *Store) tryAs(ctx context.Context, b *batch) (bool, error) {
	for path, o := range b.removals {
		s.removals.expect(path, o)
	}
	done, err := s.try(ctx, b.tx)
	if err != nil || !done {
		s.removals.forget(b.tx)
	}
	return done, err
}

func (c *change) run(tx *Tx) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandoned.Load() {
		return fault.New(fault.Canceled, "the caller has gone")
	}
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "a change of the state failed: %v\n%s", p, debug.Stack())
		}
	}()
	return c.fn(tx)
}

// try commits; false means that something read has changed meanwhile.
func (s *Store) try(ctx context.Context, tx *Tx) (bool, error) {
	cmps := make([]clientv3.Cmp, 0, len(tx.reads)+1)
	for path, rev := range tx.reads {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(prefix+path), "=", rev))
	}
	guard := s.guard.Load()
	var look []clientv3.Op
	if guard != nil {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(guard.key), "=", guard.rev))
		look = append(look, clientv3.OpGet(guard.key, clientv3.WithKeysOnly()))
	}
	ops, err := ops(tx)
	if err != nil {
		return false, err
	}
	s.flight.open = true
	resp, err := s.client.Txn(ctx).If(cmps...).Then(ops...).Else(look...).Commit()
	if err != nil {
		return false, notStored(err)
	}
	if !resp.Succeeded && guard != nil {
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].ModRevision != guard.rev {
			s.flight.open = false
			return false, errDeposed()
		}
	}
	if resp.Succeeded {
		for _, o := range tx.writes {
			if o != nil {
				o.GetMeta().Revision = resp.Header.Revision
			}
		}
	}
	if err := s.Await(ctx, resp.Header.Revision); err != nil {
		return false, notStored(err)
	}
	s.flight.open = false
	return resp.Succeeded, nil
}

// notStored is why a change was not acknowledged. Unless the state refused it before anything was written, it may be stored.
func notStored(err error) error {
	for _, refused := range []error{rpctypes.ErrNoSpace, rpctypes.ErrRequestTooLarge, rpctypes.ErrTooManyRequests, rpctypes.ErrTooManyOps} {
		if errors.Is(err, refused) {
			return fault.Wrap(fault.Unavailable, err, "the change could not be stored").WithHint("gantry cluster status says which servers answer")
		}
	}
	return fault.Wrap(fault.Unavailable, err, "it is not known whether the change was stored").
		WithHint("look before you try again; gantry cluster status says which servers answer")
}

func errDeposed() error {
	return fault.New(fault.Unavailable, "this server does not lead any more").WithHint("try again: another server leads")
}

func ops(tx *Tx) ([]clientv3.Op, error) {
	ops := make([]clientv3.Op, 0, len(tx.writes))
	for path, o := range tx.writes {
		op, err := op(tx, path, o)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	return ops, nil
}

func op(tx *Tx, path string, o Object) (clientv3.Op, error) {
	if o == nil {
		return clientv3.OpDelete(prefix + path), nil
	}
	meta := o.GetMeta()
	now := timestamppb.New(time.Now())
	meta.UpdatedAt = now
	if tx.reads[path] == 0 && meta.CreatedAt == nil {
		meta.CreatedAt = now
	}
	meta.Revision = 0
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
	if err != nil {
		return clientv3.Op{}, fault.Wrap(fault.Internal, err, "cannot encode %s", path)
	}
	return clientv3.OpPut(prefix+path, string(value)), nil
}

// guard is a key that only a new leader writes.
type guard struct {
	key string
	rev int64
}

// SetGuard makes every change conditional on the etcd key still having the revision, until ClearGuard. The key is one of the
// store's own, below /gantry/, so that reads can be seen to have reached its revision. Whoever begins to
// lead writes the key; a server that has been deposed without knowing it can then change nothing: Update ends with a fault
// of kind Unavailable. Changes wait until reads have reached the revision.
func (s *Store) SetGuard(key string, modRevision int64) { s.guard.Store(&guard{key, modRevision}) }

// SetGate has every Update ask gate first, which may refuse changes of that origin.
func (s *Store) SetGate(gate func(Origin) error) { s.gate.Store(&gate) }

func (s *Store) admit(o Origin) error {
	if gate := s.gate.Load(); gate != nil {
		return (*gate)(o)
	}
	return nil
}

// ClearGuard ends what SetGuard began.
func (s *Store) ClearGuard() { s.guard.Store(nil) }

// caughtUp waits until reads see all that was written before this server began to lead, and what became of a transaction
// whose outcome is not known. Lists that are read are not compared when a change is stored, so none may be made on older ones.
func (s *Store) caughtUp(ctx context.Context) error {
	if g := s.guard.Load(); g != nil {
		if err := s.Await(ctx, g.rev); err != nil {
			return err
		}
	}
	if !s.flight.open {
		return nil
	}
	// What comes after it in raft's log is carried out after it, or it never will be.
	resp, err := s.client.Delete(ctx, barrier)
	if err == nil {
		err = s.Await(ctx, resp.Header.Revision)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the change was not made: it is not known what became of the one before it").
			WithHint("try again; gantry cluster status says which servers answer")
	}
	s.flight.open = false
	return nil
}

// barrier is a key that there never is.
const barrier = prefix + "barrier"
