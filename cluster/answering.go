package cluster

import (
	"expvar"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3"
)

// answers notes, while this member leads, when each of the others last answered it. A machine may be well and its member not:
// the port between members is closed, the files are damaged, the disk hangs.
type answers struct {
	mu     sync.Mutex
	since  time.Time // from when on silence counts: when this member was first seen to lead; zero while it does not
	looked time.Time
	last   map[uint64]time.Time
}

const (
	answersLook = 200 * time.Millisecond
	// answersSilence is several times what raft goes by: it forgets once in an election's time, a second, who has answered.
	answersSilence = 3 * time.Second
	// answersStall is the time between two looks from which on this process was held up itself, and heard nobody.
	answersStall = time.Second
)

// Answering are the IDs of the members that take part in what this one decides, itself among them; nil while this one does not
// lead, since only the leader knows.
func (m *Member) Answering() map[string]bool {
	m.answers.mu.Lock()
	defer m.answers.mu.Unlock()
	if m.answers.since.IsZero() || !m.leads() {
		return nil
	}
	out := map[string]bool{m.ID(): true}
	for _, x := range m.etcd.Server.Cluster().Members() {
		if m.answers.by(uint64(x.ID)) {
			out[x.ID.String()] = true
		}
	}
	return out
}

// by reports that a member has answered lately, as of the last look. A new leader gives each of them time.
func (a *answers) by(id uint64) bool {
	last := a.last[id]
	if last.Before(a.since) {
		last = a.since
	}
	return a.looked.Sub(last) < answersSilence
}

// follow looks at what raft knows until stop.
func (a *answers) follow(own types.ID, stop, failed <-chan struct{}) {
	look := time.NewTicker(answersLook)
	defer look.Stop()
	for {
		st, ok := raftStatus()
		a.note(st, ok && st.ID == uint64(own) && st.RaftState == raft.StateLeader, time.Now())
		select {
		case <-look.C:
		case <-stop:
			return
		case <-failed:
			return
		}
	}
}

func (a *answers) note(st raft.Status, leads bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !leads {
		a.since, a.last = time.Time{}, nil
		return
	}
	if a.since.IsZero() || now.Sub(a.looked) > answersStall {
		a.since, a.last = now, map[uint64]time.Time{}
	}
	a.looked = now
	for id, p := range st.Progress {
		if p.RecentActive {
			a.last[id] = now
		}
	}
}

// raftStatus is what etcd publishes of the member of this process that was opened last; a daemon has one at a time.
func raftStatus() (raft.Status, bool) {
	f, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return raft.Status{}, false
	}
	st, ok := f.Value().(raft.Status)
	return st, ok
}
