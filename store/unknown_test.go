package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// slow is a client whose watches say nothing while they are held, and whose next transaction loses its answer.
type slow struct {
	clientv3.KV
	clientv3.Watcher
	mu   sync.Mutex
	held chan struct{}
	lose bool
}

var errLost = errors.New("no answer in time")

func (s *slow) Txn(ctx context.Context) clientv3.Txn { return &lossy{s.KV.Txn(ctx), s} }

type lossy struct {
	clientv3.Txn
	of *slow
}

func (l *lossy) If(c ...clientv3.Cmp) clientv3.Txn  { l.Txn = l.Txn.If(c...); return l }
func (l *lossy) Then(o ...clientv3.Op) clientv3.Txn { l.Txn = l.Txn.Then(o...); return l }
func (l *lossy) Else(o ...clientv3.Op) clientv3.Txn { l.Txn = l.Txn.Else(o...); return l }

func (l *lossy) Commit() (*clientv3.TxnResponse, error) {
	resp, err := l.Txn.Commit()
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	if l.of.lose {
		l.of.lose = false
		return nil, errLost
	}
	return resp, err
}

func (s *slow) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	in, out := s.Watcher.Watch(ctx, key, opts...), make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for r := range in {
			s.mu.Lock()
			held := s.held
			s.mu.Unlock()
			<-held
			select {
			case out <- r:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

// TestWhatMayBeStoredIsSeenByTheNextChange has a transaction whose answer is lost and whose writes are seen late: the next
// change, which reads a list, sees them all the same.
func TestWhatMayBeStoredIsSeenByTheNextChange(t *testing.T) {
	m, err := cluster.Start(t.Context(), cluster.Options{Root: t.TempDir() + "/etcd", Run: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	client, open := m.Client(), make(chan struct{})
	close(open)
	between := &slow{KV: client.KV, Watcher: client.Watcher, held: open}
	client.KV, client.Watcher = between, between
	ctx, cancel := context.WithCancel(t.Context())
	s, err := store.New(ctx, client, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()

	var made atomic.Int32
	add := func() error { // services that are told apart by how many there are, as addresses are by those that are taken
		key := fmt.Sprintf("p/a/s%d", made.Add(1))
		return s.Update(t.Context(), func(tx *store.Tx) error {
			store.Put(tx, service(key, int32(len(store.List[*gantryv1.Service](tx, "p/a/")))))
			return nil
		})
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	between.mu.Lock()
	between.held, between.lose = held, true
	between.mu.Unlock()
	if err := add(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "not known whether") {
		t.Fatalf("an answer that is lost: %v", err)
	}
	second := make(chan error, 1)
	go func() { second <- add() }()
	close(held)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	for n, o := range store.List[*gantryv1.Service](s.Snapshot(), "p/a/") {
		if o.Replicas != int32(n) {
			t.Errorf("%s was made when there were %d others, and the change saw %d", o.Meta.Key, n, o.Replicas)
		}
	}
}
