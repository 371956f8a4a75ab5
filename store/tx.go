package store

import (
	"bytes"
	"strings"

	"github.com/google/btree"
	"google.golang.org/protobuf/proto"

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
	var out []T
	Each(r, keyPrefix, func(o T) bool {
		out = append(out, o)
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

// Live reads the newest state, each object on its own. It costs less than a snapshot for those who want single objects;
// two reads may see different revisions.
func (s *Store) Live() Reader { return live{s} }

type live struct{ s *Store }

func (l live) get(path string) (entry, bool) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.data.Get(entry{path: path})
}

func (l live) ascend(from string, fn func(entry) bool) { l.s.snapshot().ascend(from, fn) }

// Tx is a transaction: it reads the snapshot under its own changes.
type Tx struct {
	base   *btree.BTreeG[entry]
	reads  map[string]int64  // path to mod revision seen, 0 for absent
	writes map[string]Object // nil for delete

	merged   *btree.BTreeG[entry] // base under the writes; nil until somebody lists
	unmerged []string             // paths written since merged was brought up to date
}

func newTx(base *ReadTx) *Tx {
	return &Tx{base: base.data, reads: map[string]int64{}, writes: map[string]Object{}}
}

// fork is a transaction on top of this one, which absorb takes in if it ends well.
func (t *Tx) fork() *Tx {
	base := t.base
	if len(t.writes) > 0 {
		base = t.all()
	}
	return &Tx{base: base, reads: map[string]int64{}, writes: map[string]Object{}}
}

// absorb adds what a fork has read and written. What it read of this transaction's own writes is not in etcd yet. From here
// on an object that was written has no revision, so that nobody takes it for the one before.
func (t *Tx) absorb(fork *Tx) {
	for path, rev := range fork.reads {
		_, written := t.writes[path]
		if _, read := t.reads[path]; !written && !read {
			t.reads[path] = rev
		}
	}
	for path, o := range fork.writes {
		if o != nil {
			o.GetMeta().Revision = 0
		}
		t.write(path, o)
	}
}

func (t *Tx) write(path string, o Object) {
	t.writes[path] = o
	if t.merged != nil {
		t.unmerged = append(t.unmerged, path)
	}
}

func (t *Tx) get(path string) (entry, bool) {
	if o, ok := t.writes[path]; ok {
		return entry{path: path, obj: o}, o != nil
	}
	e, ok := t.base.Get(entry{path: path})
	if !ok || e.rev != 0 {
		t.reads[path] = e.rev
	}
	return e, ok
}

func (t *Tx) ascend(from string, fn func(entry) bool) {
	t.all().AscendGreaterOrEqual(entry{path: from}, fn)
}

// all is the snapshot merged with the transaction's own writes.
func (t *Tx) all() *btree.BTreeG[entry] {
	if len(t.writes) == 0 {
		return t.base
	}
	if t.merged == nil {
		t.merged = t.base.Clone()
		for path := range t.writes {
			t.merge(path)
		}
	}
	for _, path := range t.unmerged {
		t.merge(path)
	}
	t.unmerged = t.unmerged[:0]
	return t.merged
}

func (t *Tx) merge(path string) {
	if o := t.writes[path]; o == nil {
		t.merged.Delete(entry{path: path})
	} else {
		t.merged.ReplaceOrInsert(entry{path: path, obj: o})
	}
}

// Put writes an object under its Meta's key, creating or replacing it. When it was created, and what a newer version has
// written into fields that this one does not know, stays.
func Put(t *Tx, o Object) {
	path := pathOf(o, o.GetMeta().GetKey())
	if old, ok := t.get(path); ok {
		meta := o.GetMeta()
		if meta.CreatedAt == nil {
			meta.CreatedAt = old.obj.GetMeta().GetCreatedAt()
		}
		keepUnknown(o, old.obj)
		keepUnknown(meta, old.obj.GetMeta())
	}
	t.write(path, o)
}

func keepUnknown(o, old proto.Message) {
	m, unknown := o.ProtoReflect(), old.ProtoReflect().GetUnknown()
	if len(m.GetUnknown()) == 0 && len(unknown) > 0 {
		m.SetUnknown(bytes.Clone(unknown))
	}
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
		t.write(path, nil)
	}
}

// NewMeta is a Meta with a key, for objects about to be put.
func NewMeta(key string) *gantryv1.Meta { return &gantryv1.Meta{Key: key} }
