package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/btree"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Reader is a consistent snapshot: what View passes, and what a transaction reads from.
type Reader interface {
	get(path string) (entry, bool)
	ascend(from string, fn func(entry) bool)
}

// ReadTx is a snapshot at one revision.
type ReadTx struct {
	data *btree.BTreeG[entry]
	rev  int64
}

// Revision is the etcd revision the snapshot was taken at.
func (r *ReadTx) Revision() int64 { return r.rev }

func (r *ReadTx) get(path string) (entry, bool) { return r.data.Get(entry{path: path}) }

func (r *ReadTx) ascend(from string, fn func(entry) bool) {
	r.data.AscendGreaterOrEqual(entry{path: from}, fn)
}

// Get returns the object of type T with the key.
func Get[T Object](r Reader, key string) (T, bool) {
	var zero T
	e, ok := r.get(pathOf(zero, key))
	if !ok || e.obj == nil {
		return zero, false
	}
	return e.obj.(T), true
}

// List returns the objects of type T whose keys begin with keyPrefix, in order of their keys.
func List[T Object](r Reader, keyPrefix string) []T {
	var zero T
	path := pathOf(zero, keyPrefix)
	var out []T
	r.ascend(path, func(e entry) bool {
		if !strings.HasPrefix(e.path, path) {
			return false
		}
		out = append(out, e.obj.(T))
		return true
	})
	return out
}

func (s *Store) snapshot() *ReadTx {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &ReadTx{data: s.data.Clone(), rev: s.rev}
}

// View calls fn with a snapshot.
func (s *Store) View(fn func(*ReadTx) error) error { return fn(s.snapshot()) }

// Snapshot is View for callers that keep the snapshot.
func (s *Store) Snapshot() *ReadTx { return s.snapshot() }

// Tx is a transaction: it reads the snapshot under its own changes.
type Tx struct {
	base   *ReadTx
	reads  map[string]int64  // path to mod revision seen, 0 for absent
	writes map[string]Object // nil for delete
}

func (t *Tx) get(path string) (entry, bool) {
	if o, ok := t.writes[path]; ok {
		return entry{path: path, obj: o}, o != nil
	}
	e, ok := t.base.get(path)
	if !ok || e.rev != 0 {
		t.reads[path] = e.rev
	}
	return e, ok
}

// ascend merges the snapshot with the transaction's own writes.
func (t *Tx) ascend(from string, fn func(entry) bool) {
	merged := t.base.data
	if len(t.writes) > 0 {
		merged = merged.Clone()
		for path, o := range t.writes {
			if o == nil {
				merged.Delete(entry{path: path})
			} else {
				merged.ReplaceOrInsert(entry{path: path, obj: o})
			}
		}
	}
	merged.AscendGreaterOrEqual(entry{path: from}, fn)
}

// Put writes an object under its Meta's key, creating or replacing it.
func Put(t *Tx, o Object) {
	path := pathOf(o, o.GetMeta().GetKey())
	if _, ok := t.writes[path]; !ok {
		t.get(path)
	}
	t.writes[path] = o
}

// Modify clones the object with the key, lets fn change the clone and puts it. A missing object is a NotFound fault.
func Modify[T Object](t *Tx, key string, fn func(T) error) error {
	o, ok := Get[T](t, key)
	if !ok {
		return fault.New(fault.NotFound, "there is no %s %q", strings.ToLower(kindOf(o)), key)
	}
	c := proto.Clone(o).(T)
	if err := fn(c); err != nil {
		return err
	}
	if !proto.Equal(o, c) {
		Put(t, c)
	}
	return nil
}

// Delete removes the object with o's kind and the key. Removing what is absent is no error.
func Delete[T Object](t *Tx, key string) {
	var zero T
	path := pathOf(zero, key)
	if _, ok := t.get(path); ok {
		t.writes[path] = nil
	}
}

const maxAttempts = 50

// Update runs fn and commits its writes in one etcd transaction, on condition that nothing fn read by key has changed
// since; otherwise fn runs again on newer state. It returns when reads see the result.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	for range maxAttempts {
		tx := &Tx{base: s.snapshot(), reads: map[string]int64{}, writes: map[string]Object{}}
		if err := fn(tx); err != nil {
			return err
		}
		if len(tx.writes) == 0 {
			return nil
		}
		done, err := s.try(ctx, tx)
		if err != nil || done {
			return err
		}
	}
	return fault.New(fault.Conflict, "the objects changed %d times while this change was made", maxAttempts).
		WithHint("try again")
}

func (s *Store) try(ctx context.Context, tx *Tx) (bool, error) {
	cmps := make([]clientv3.Cmp, 0, len(tx.reads))
	for path, rev := range tx.reads {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(prefix+path), "=", rev))
	}
	ops := make([]clientv3.Op, 0, len(tx.writes))
	for path, o := range tx.writes {
		op, err := s.op(tx, path, o)
		if err != nil {
			return false, err
		}
		ops = append(ops, op)
	}
	resp, err := s.client.Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil {
		return false, fault.Wrap(fault.Unavailable, err, "the change could not be stored")
	}
	return resp.Succeeded, s.await(ctx, resp.Header.Revision)
}

func (s *Store) op(tx *Tx, path string, o Object) (clientv3.Op, error) {
	if o == nil {
		return clientv3.OpDelete(prefix + path), nil
	}
	if s.kinds[kindOf(o)] == nil {
		return clientv3.Op{}, fmt.Errorf("objects of the kind %s are observed, not stored", kindOf(o))
	}
	meta := o.GetMeta()
	now := timestamppb.New(time.Now())
	meta.UpdatedAt = now
	if tx.reads[path] == 0 && meta.CreatedAt == nil {
		meta.CreatedAt = now
	}
	rev := meta.Revision
	meta.Revision = 0
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
	meta.Revision = rev
	if err != nil {
		return clientv3.Op{}, fault.Wrap(fault.Internal, err, "cannot encode %s", path)
	}
	return clientv3.OpPut(prefix+path, string(value)), nil
}

// NewMeta is a Meta with a key, for objects about to be put.
func NewMeta(key string) *gantryv1.Meta { return &gantryv1.Meta{Key: key} }
