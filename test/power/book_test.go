package power_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// book is what those outside know of the state: for each thing the last state that was acknowledged, and those that were asked
// for since without an answer, which may or may not have come about.
type book struct {
	mu     sync.Mutex
	things map[string]*thing
	acks   int
}

// thing is one config, volume or image. Its states are named by their content; absent is "".
type thing struct {
	acked string
	maybe []string
}

const absent = ""

func newBook() *book { return &book{things: map[string]*thing{}} }

// known is the state of a thing, and false if nobody can tell.
func (b *book) known(name string) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.things[name]
	if t == nil {
		return absent, true
	}
	return t.acked, len(t.maybe) == 0
}

// change notes that a thing is asked to take a state before it is asked, and how that ended.
func (b *book) change(ctx context.Context, name, state string, do func(context.Context) error) error {
	b.mu.Lock()
	t := b.things[name]
	if t == nil {
		t = &thing{}
		b.things[name] = t
	}
	t.maybe = append(t.maybe, state)
	b.mu.Unlock()
	err := do(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		t.acked, t.maybe = state, nil
		b.acks++
	}
	return err
}

// compare reports every thing whose state is neither what was acknowledged nor what was asked for since. If nothing can be under way any more, what was read is from now on what is known.
func (b *book) compare(t *testing.T, from string, read map[string]string, decided bool) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	lost := 0
	for _, name := range slices.Sorted(maps.Keys(b.things)) {
		entry, got := b.things[name], read[name]
		if got != entry.acked && !slices.Contains(entry.maybe, got) {
			if lost++; lost <= 10 {
				t.Errorf("%s: %s is %q, acknowledged was %q, asked for since %q", from, name, got, entry.acked, entry.maybe)
			}
		}
		if decided {
			entry.acked, entry.maybe = got, nil
		}
	}
	if lost > 0 {
		t.Errorf("%s: %d acknowledged changes are lost", from, lost)
	}
	for name := range read {
		// The name of a token is known only to those who were answered.
		if b.things[name] == nil && !strings.HasPrefix(name, token+" ") {
			t.Errorf("%s: %s was never asked for", from, name)
		}
	}
}

func (b *book) acknowledged() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acks
}

// TestBookFindsLosses shows that what is lost, comes back or was never asked for is found.
func TestBookFindsLosses(t *testing.T) {
	refused := func(context.Context) error { return fmt.Errorf("no answer") }
	taken := func(context.Context) error { return nil }
	for _, c := range []struct {
		name    string
		steps   func(b *book)
		read    string
		correct bool
	}{
		{"an acknowledged one is there", func(b *book) { _ = b.change(t.Context(), "x", "1", taken) }, "1", true},
		{"an acknowledged one is lost", func(b *book) { _ = b.change(t.Context(), "x", "1", taken) }, absent, false},
		{"an unanswered one came about", func(b *book) { _ = b.change(t.Context(), "x", "1", refused) }, "1", true},
		{"an unanswered one did not", func(b *book) { _ = b.change(t.Context(), "x", "1", refused) }, absent, true},
		{"a removed one is back", func(b *book) {
			_ = b.change(t.Context(), "x", "1", taken)
			_ = b.change(t.Context(), "x", absent, taken)
		}, "1", false},
		{"nobody asked for it", func(*book) {}, "1", false},
	} {
		b, probe := newBook(), &testing.T{}
		c.steps(b)
		read := map[string]string{}
		if c.read != absent {
			read["x"] = c.read
		}
		b.compare(probe, c.name, read, true)
		if probe.Failed() == c.correct {
			t.Errorf("%s: found a loss: %v", c.name, probe.Failed())
		}
	}
}
