package cluster

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// TestSilence goes by the looks alone: who has just begun to lead, or was held up, has heard nobody and gives everybody time.
func TestSilence(t *testing.T) {
	var a answers
	now := time.Unix(1_800_000_000, 0)
	active := func(second bool) raft.Status {
		return raft.Status{Progress: map[uint64]tracker.Progress{1: {RecentActive: true}, 2: {RecentActive: second}}}
	}
	look := func(d time.Duration, every time.Duration, second bool) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(every)
			a.note(active(second), true, now)
		}
	}
	wants := func(what string, want bool) {
		t.Helper()
		if !a.by(1) || a.by(2) != want {
			t.Errorf("%s: %v %v, want %v", what, a.by(1), a.by(2), want)
		}
	}
	look(2*time.Second, answersLook, false)
	wants("the leader is new", true)
	look(2*time.Second, answersLook, false)
	wants("it has been silent since then", false)
	look(answersLook, answersLook, true)
	wants("it has answered", true)
	look(2*time.Second, answersLook, false)
	wants("raft forgets it for a moment", true)
	look(2*time.Second, answersLook, false)
	wants("it is silent", false)
	look(answersLook, 10*time.Second, false)
	wants("this process was held up", true)
	look(4*time.Second, answersLook, false)
	wants("it is silent all the same", false)
	a.note(active(true), false, now)
	if !a.since.IsZero() {
		t.Error("one that leads no longer knows")
	}
}
