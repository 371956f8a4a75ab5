package image

import (
	"context"
	"sync"
)

// keyLock is a mutex per key whose wait can be cancelled. The zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]*keyEntry
}

type keyEntry struct {
	free  chan struct{} // holds one token while nobody has the key
	users int
}

// lock waits for the key and returns the function that frees it.
func (k *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	e := k.enter(key)
	select {
	case <-e.free:
		return func() { e.free <- struct{}{}; k.leave(key, e) }, nil
	case <-ctx.Done():
		k.leave(key, e)
		return nil, ctx.Err()
	}
}

func (k *keyLock) enter(key string) *keyEntry {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.held[key]
	if e == nil {
		if k.held == nil {
			k.held = map[string]*keyEntry{}
		}
		e = &keyEntry{free: make(chan struct{}, 1)}
		e.free <- struct{}{}
		k.held[key] = e
	}
	e.users++
	return e
}

func (k *keyLock) leave(key string, e *keyEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(k.held, key)
	}
}
