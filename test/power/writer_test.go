package power_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/gantryd/gantry/client"
)

const (
	pool     = 20 // things of each kind that a writer changes
	patience = 20 * time.Second
	pause    = 20 * time.Millisecond // after a failure: a daemon that is gone refuses at once
)

// writer makes changes one after another, through one machine, until it is told to stop. What fails is not tried again.
type writer struct {
	id     int
	book   *book
	client *client.Client
	random *rand.Rand
	count  int
	tokens []string // not revoked yet
	fresh  []string // not removed yet
}

func (w *writer) work(ctx context.Context) {
	all := kinds()
	for ctx.Err() == nil {
		k := all[w.random.IntN(len(all))]
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		err := w.change(within, k)
		cancel()
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// change makes one change of a kind, or none where nobody can tell what is there.
func (w *writer) change(ctx context.Context, k kind) error {
	w.count++
	if k.put == nil {
		return w.token(ctx, k)
	}
	name, state := fmt.Sprintf("w%d-%d", w.id, w.random.IntN(pool)), fmt.Sprintf("%d-%d", w.id, w.count)
	if k.fresh {
		return w.freshly(ctx, k, "w"+state, state)
	}
	if k.remove == nil {
		name, state = fmt.Sprintf("%s%d", scaled, w.id), strconv.Itoa(1+w.random.IntN(9))
	}
	if k.once {
		state = there
	}
	now, sure := w.book.known(k.name + " " + name)
	if !sure {
		return nil
	}
	if now != absent && k.remove != nil && (k.once || w.random.IntN(4) == 0) {
		return w.book.change(ctx, k.name+" "+name, absent, func(ctx context.Context) error { return k.remove(ctx, w.client, name) })
	}
	return w.book.change(ctx, k.name+" "+name, state, func(ctx context.Context) error { return k.put(ctx, w.client, name, state) })
}

// freshly makes a thing of a new name, or removes the oldest one.
func (w *writer) freshly(ctx context.Context, k kind, name, state string) error {
	if len(w.fresh) > pool {
		name, state = w.fresh[0], absent
		w.fresh = w.fresh[1:]
		return w.book.change(ctx, k.name+" "+name, state, func(ctx context.Context) error { return k.remove(ctx, w.client, name) })
	}
	err := w.book.change(ctx, k.name+" "+name, state, func(ctx context.Context) error { return k.put(ctx, w.client, name, state) })
	if err == nil {
		w.fresh = append(w.fresh, name)
	}
	return err
}

// token makes a token, or revokes one.
func (w *writer) token(ctx context.Context, k kind) error {
	if len(w.tokens) > pool {
		id := w.tokens[0]
		w.tokens = w.tokens[1:]
		return w.book.change(ctx, k.name+" "+id, absent, func(ctx context.Context) error { return k.remove(ctx, w.client, id) })
	}
	id, err := createToken(ctx, w.client)
	if err != nil {
		return err
	}
	w.tokens = append(w.tokens, id)
	return w.book.change(ctx, k.name+" "+id, there, func(context.Context) error { return nil })
}
