// Package store keeps Gantry's objects: protobuf messages in etcd, mirrored in memory.
//
// Call New with an etcd client, then View to read a consistent snapshot, Update to change objects in one transaction, and
// ViewAndWatch to read a snapshot and hear of every change after it. Everything is safe in parallel. Messages handed out
// are shared: clone before changing one (Modify does). Observations, which a node can tell again, live only in memory:
// Observe puts them beside the stored objects, under the same reads and watches. The package is not an API: it checks
// neither rights nor contents.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Object is what the store keeps: a message with Meta.
type Object interface {
	proto.Message
	GetMeta() *gantryv1.Meta
}

const prefix = "/gantry/"

// stored lists the kinds kept in etcd, by message name.
func stored() map[string]func() Object {
	return map[string]func() Object{
		"Environment": func() Object { return &gantryv1.Environment{} },
		"App":         func() Object { return &gantryv1.App{} },
		"Service":     func() Object { return &gantryv1.Service{} },
		"Release":     func() Object { return &gantryv1.Release{} },
		"Instance":    func() Object { return &gantryv1.Instance{} },
		"Volume":      func() Object { return &gantryv1.Volume{} },
		"Network":     func() Object { return &gantryv1.Network{} },
		"Secret":      func() Object { return &gantryv1.Secret{} },
		"Config":      func() Object { return &gantryv1.Config{} },
		"Node":        func() Object { return &gantryv1.Node{} },
		"Operation":   func() Object { return &gantryv1.Operation{} },
		"Cluster":     func() Object { return &gantryv1.Cluster{} },
		"Leadership":  func() Object { return &gantryv1.Leadership{} },
		"JoinToken":   func() Object { return &gantryv1.JoinToken{} },
		"Job":         func() Object { return &gantryv1.Job{} },
	}
}

// Store is the typed view of one etcd cluster.
type Store struct {
	client *clientv3.Client
	kinds  map[string]func() Object
	log    *slog.Logger

	mu      sync.Mutex
	data    *btree.BTreeG[entry]
	rev     int64         // etcd revision the cache has reached
	moved   chan struct{} // closed and replaced whenever rev grows
	subs    map[*Subscription]struct{}
	lastErr error // set when the watch has ended for good

	removals removals
	figures  Figures

	queue   queue
	flight  flight // one transaction at a time, so that list reads see no phantoms of this server
	guard   atomic.Pointer[guard]
	gate    atomic.Pointer[func(Origin) error]
	strange sync.Map // kinds that this version does not know and has warned of
}

type entry struct {
	path string // "Kind/key"
	rev  int64  // etcd mod revision; 0 for observations
	obj  Object
}

func less(a, b entry) bool { return a.path < b.path }

// New loads all objects and follows etcd until Run's context ends. Run must be called for changes to be seen.
func New(ctx context.Context, client *clientv3.Client, log *slog.Logger) (*Store, error) {
	s := &Store{
		client: client, kinds: stored(), log: log,
		data: btree.NewG(32, less), moved: make(chan struct{}), subs: map[*Subscription]struct{}{},
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// load reads everything and tells subscribers of the differences.
func (s *Store) load(ctx context.Context) error {
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read the cluster's state")
	}
	entries, err := s.decodeAll(resp.Kvs)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	var events []Event
	for _, e := range entries {
		seen[e.path] = true
		if old, ok := s.data.Get(entry{path: e.path}); !ok || old.rev != e.rev {
			events = append(events, s.set(e))
		}
	}
	var gone []entry
	s.data.Ascend(func(e entry) bool {
		if e.rev != 0 && !seen[e.path] {
			gone = append(gone, e)
		}
		return true
	})
	for _, e := range gone {
		events = append(events, s.unset(e.path))
	}
	s.advance(resp.Header.Revision, events)
	return nil
}

// decodeAll leaves out objects of kinds that this version does not know: a newer one has written them, and will read them.
func (s *Store) decodeAll(kvs []*mvccpb.KeyValue) ([]entry, error) {
	out := make([]entry, 0, len(kvs))
	for _, kv := range kvs {
		e, err := s.decode(string(kv.Key), kv.Value, kv.ModRevision)
		if err != nil {
			return nil, err
		}
		if e.obj != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// decode gives an entry without object for a kind that is not known.
func (s *Store) decode(key string, value []byte, rev int64) (entry, error) {
	path := strings.TrimPrefix(key, prefix)
	kind, _, _ := strings.Cut(path, "/")
	make, ok := s.kinds[kind]
	if !ok {
		if _, warned := s.strange.LoadOrStore(kind, true); !warned {
			s.log.Warn("the state holds objects of a kind that this version does not know; they are left alone", "kind", kind)
		}
		return entry{}, nil
	}
	obj := make()
	if err := proto.Unmarshal(value, obj); err != nil {
		return entry{}, fault.Wrap(fault.Corrupt, err, "the stored %s is damaged", path).
			WithHint("stop gantryd and put its directory etcd back from your backup")
	}
	if obj.GetMeta() == nil {
		return entry{}, fault.New(fault.Corrupt, "the stored %s has no meta data", path)
	}
	obj.GetMeta().Revision = rev
	return entry{path: path, rev: rev, obj: obj}, nil
}

// Run follows etcd until ctx ends. It returns nil then, and an error if the state can no longer be followed.
func (s *Store) Run(ctx context.Context) error {
	for {
		err := s.follow(ctx)
		for err != nil && ctx.Err() == nil {
			if fault.Is(err, fault.Corrupt) {
				s.fail(err)
				return err
			}
			// Without a leader there is nothing to follow: reads stay as they are until there is one again.
			s.log.Warn("lost the state's watch, reading again", "err", err)
			err = s.reload(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// reload reads everything again, after a pause.
func (s *Store) reload(ctx context.Context) error {
	select {
	case <-time.After(reloadPause):
		return s.load(ctx)
	case <-ctx.Done():
		return nil
	}
}

const reloadPause = 200 * time.Millisecond

func (s *Store) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := s.Revision() + 1
	watch := s.client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
	for resp := range watch {
		if err := resp.Err(); err != nil {
			return err
		}
		if err := s.apply(resp); err != nil {
			return err
		}
	}
	return errors.New("watch closed")
}

// apply decodes before it locks, so that readers wait for no more than the change of the tree.
func (s *Store) apply(resp clientv3.WatchResponse) error {
	changed := make([]entry, 0, len(resp.Events))
	for _, ev := range resp.Events {
		if ev.Type == clientv3.EventTypeDelete {
			changed = append(changed, entry{path: strings.TrimPrefix(string(ev.Kv.Key), prefix)})
			continue
		}
		e, err := s.decode(string(ev.Kv.Key), ev.Kv.Value, ev.Kv.ModRevision)
		if err != nil {
			return err
		}
		if e.obj != nil {
			changed = append(changed, e)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	events := make([]Event, 0, len(changed))
	for _, e := range changed {
		if e.obj != nil {
			events = append(events, s.set(e))
		} else if ev := s.unset(e.path); ev.Old != nil {
			events = append(events, ev)
		}
	}
	s.advance(reached(resp), events)
	return nil
}

// reached is how far a response of the watch leads: one that catches up has the newest revision in its header, and may bring
// only the first thousand of those that were missed.
func reached(resp clientv3.WatchResponse) int64 {
	if n := len(resp.Events); n > 0 {
		return resp.Events[n-1].Kv.ModRevision
	}
	return resp.Header.Revision
}

// set and unset change the cache; mu is held.
func (s *Store) set(e entry) Event {
	old, _ := s.data.ReplaceOrInsert(e)
	return Event{Old: old.obj, New: e.obj}
}

func (s *Store) unset(path string) Event {
	old, _ := s.data.Delete(entry{path: path})
	return Event{Old: old.obj, Origin: s.removals.take(path)}
}

// advance publishes events and wakes those who wait for a revision; mu is held.
func (s *Store) advance(rev int64, events []Event) {
	if rev > s.rev {
		s.rev = rev
		close(s.moved)
		s.moved = make(chan struct{})
	}
	if len(events) == 0 {
		return
	}
	for sub := range s.subs {
		sub.push(events)
	}
}

func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	close(s.moved)
	s.moved = make(chan struct{})
	for sub := range s.subs {
		sub.close(err)
	}
}

// Revision is the etcd revision that reads reflect.
func (s *Store) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

// Await blocks until reads reflect an etcd revision.
func (s *Store) Await(ctx context.Context, rev int64) error {
	for {
		s.mu.Lock()
		reached, moved, err := s.rev >= rev, s.moved, s.lastErr
		s.mu.Unlock()
		if reached || err != nil {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("waiting for revision %d of the state: %w", rev, ctx.Err())
		}
	}
}

// Observe records observations (kinds that are not stored) and removes those whose path objects are in gone.
func (s *Store) Observe(put []Object, gone []Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := make([]Event, 0, len(put)+len(gone))
	for _, o := range put {
		events = append(events, s.set(entry{path: pathOf(o, o.GetMeta().GetKey()), obj: o}))
	}
	for _, o := range gone {
		if ev := s.unset(pathOf(o, o.GetMeta().GetKey())); ev.Old != nil {
			events = append(events, ev)
		}
	}
	s.advance(s.rev, events)
}

// Forget drops all observations: a server that no longer leads hears nothing of nodes, and what it knew grows old.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []string
	s.data.Ascend(func(e entry) bool {
		if e.rev == 0 {
			gone = append(gone, e.path)
		}
		return true
	})
	events := make([]Event, 0, len(gone))
	for _, path := range gone {
		events = append(events, s.unset(path))
	}
	s.advance(s.rev, events)
}

func kindOf(o proto.Message) string { return string(o.ProtoReflect().Descriptor().Name()) }

func pathOf(o proto.Message, key string) string { return kindOf(o) + "/" + key }
