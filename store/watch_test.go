package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestASlowSubscriberHoldsNoMoreThanTheObjects makes a storm over a few objects that nobody takes in, then goes on from what is
// taken at last: what is known must be what there is, each event must begin where the one before ended, and what a later
// event is about must come later.
func TestASlowSubscriberHoldsNoMoreThanTheObjects(t *testing.T) {
	const objects = 200
	rng := rand.New(rand.NewPCG(7, 8))
	for _, storm := range []int{100, mergeAfter + 1, 20 * mergeAfter} {
		u := &Subscription{wake: make(chan struct{}, 1)}
		now, known, serial := map[string]Object{}, map[string]Object{}, int64(0)
		for range 3 {
			last := map[string]int64{}
			for range storm {
				key := fmt.Sprint(rng.IntN(objects))
				ev := Event{Old: now[key]}
				if serial++; ev.Old == nil || rng.IntN(3) > 0 {
					ev.New = &gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: key, Revision: serial}}
				}
				now[key], last[key] = ev.New, serial
				u.push([]Event{ev})
				if most := mergeAfter + 1 + 2*max(objects, mergeAfter); len(u.queue) > most {
					t.Fatalf("%d events wait, of %d objects", len(u.queue), objects)
				}
			}
			events, err := u.Take()
			if err != nil {
				t.Fatal(err)
			}
			if storm > mergeAfter && len(events) > objects {
				t.Errorf("%d events of %d objects", len(events), objects)
			}
			at := int64(0)
			for _, ev := range events {
				key := nameOf(ev).key
				if known[key] != ev.Old && !(known[key] == nil && ev.New == nil) {
					t.Fatalf("%s changed from %v, but it was %v", key, ev.Old, known[key])
				}
				if known[key] = ev.New; storm > mergeAfter && last[key] < at {
					t.Fatalf("a change of %s came after a newer one", key)
				}
				at = last[key]
			}
			for key, o := range now {
				if known[key] != o {
					t.Fatalf("%s is known as %v and is %v", key, known[key], o)
				}
			}
		}
	}
}

// TestWhatCameAndWentIsTold has an object that a subscriber never saw removed again during a storm.
func TestWhatCameAndWentIsTold(t *testing.T) {
	u := &Subscription{wake: make(chan struct{}, 1)}
	o := &gantryv1.Instance{Meta: NewMeta("brief")}
	u.push([]Event{{New: o}})
	noise := &gantryv1.InstanceStatus{Meta: NewMeta("noise")}
	u.push(slices.Repeat([]Event{{Old: noise, New: noise}}, mergeAfter))
	u.push([]Event{{Old: o, Origin: Origin{By: "alice"}}})
	events, err := u.Take()
	if err != nil || len(events) != 2 {
		t.Fatalf("%v, %v", events, err)
	}
	if ev := events[1]; ev.Old != Object(o) || ev.New != nil || ev.Origin.By != "alice" {
		t.Errorf("%+v", ev)
	}
}

// TestBacklogIsOfWhoIsFurthestBehind has two subscribers, one of which takes nothing.
func TestBacklogIsOfWhoIsFurthestBehind(t *testing.T) {
	idle, busy := &Subscription{wake: make(chan struct{}, 1)}, &Subscription{wake: make(chan struct{}, 1)}
	s := &Store{subs: map[*Subscription]struct{}{idle: {}, busy: {}}}
	one := []Event{{New: &gantryv1.Instance{Meta: NewMeta("one")}}}
	for range 3 {
		idle.push(one)
	}
	busy.push(one)
	if n := s.Backlog(); n != 3 {
		t.Errorf("%d events wait, want 3", n)
	}
	idle.push(slices.Repeat(one, mergeAfter)) // which become one
	if n := s.Backlog(); n != 1 {
		t.Errorf("%d events wait of one object, want 1", n)
	}
	for _, u := range []*Subscription{idle, busy} {
		if _, err := u.Take(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Backlog(); n != 0 {
		t.Errorf("%d events wait, and all were taken", n)
	}
}
