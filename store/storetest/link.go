package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/gantryd/gantry/store"
)

// Link is what is between a store and its etcd.
type Link struct {
	clientv3.KV
	clientv3.Watcher
	mu   sync.Mutex
	held chan struct{}
	lose bool
}

// NewLinked is New with a link that can be disturbed.
func NewLinked(t testing.TB) (*store.Store, *Link) {
	t.Helper()
	l := &Link{}
	s, stop := open(t, t.TempDir(), func(c *clientv3.Client) {
		l.KV, l.Watcher = c.KV, c.Watcher
		c.KV, c.Watcher = l, l
	})
	t.Cleanup(stop)
	t.Cleanup(l.Show) // first: the store ends when its watch does
	return s, l
}

// Lose has the next transaction be carried out without an answer. Reads do not see it, nor what comes after it, until Show.
func (l *Link) Lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, l.lose = make(chan struct{}), true
}

// Show lets reads see everything again.
func (l *Link) Show() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		close(l.held)
		l.held = nil
	}
}

// wait returns when reads may see what has happened.
func (l *Link) wait() {
	l.mu.Lock()
	held := l.held
	l.mu.Unlock()
	if held != nil {
		<-held
	}
}

var errLost = errors.New("no answer in time")

// Txn is a transaction whose answer may be lost.
func (l *Link) Txn(ctx context.Context) clientv3.Txn { return &lossy{l.KV.Txn(ctx), l} }

type lossy struct {
	clientv3.Txn
	of *Link
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

// Watch is a watch that says nothing while it is held.
func (l *Link) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	in, out := l.Watcher.Watch(ctx, key, opts...), make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for r := range in {
			l.wait()
			select {
			case out <- r:
			case <-ctx.Done():
			}
		}
	}()
	return out
}
