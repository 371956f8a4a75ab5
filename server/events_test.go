package server

import (
	"strconv"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func TestTheLogOfEventsKeepsTheLast(t *testing.T) {
	l := newEventLog()
	const all = keptEvents + 3
	for n := range all {
		l.add(&gantryv1.Event{Key: strconv.Itoa(n)})
	}
	if cap(l.ring) > 2*keptEvents {
		t.Fatalf("room for %d events", cap(l.ring))
	}
	got, next, _ := l.from(0)
	if len(got) != keptEvents || got[0].Key != "3" || got[len(got)-1].Key != strconv.Itoa(all-1) || next != all {
		t.Fatalf("%d events from %v to number %d", len(got), got[0], next)
	}
	if got, _, _ = l.from(all - 2); len(got) != 2 || got[0].Key != strconv.Itoa(all-2) {
		t.Fatalf("%v", got)
	}
	if got, _, _ = l.from(all); len(got) != 0 {
		t.Fatalf("%v", got)
	}
}
