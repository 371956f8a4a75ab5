package cluster

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gantryd/gantry/fault"
)

// Raft waits one to two seconds in silence before it elects another leader, since silence may end. A leader whose process is
// gone is not silent: its machine refuses connections. Then its followers need not wait.
const (
	refusalTries = 3                      // the last of so many connections has to be refused: a process does not end in one moment
	refusalPause = 20 * time.Millisecond  // between two of them
	dialPatience = 200 * time.Millisecond // a machine that does not answer in this time is silent, which is raft's to judge
	turnPause    = 200 * time.Millisecond // from one follower's turn to be elected to the next one's
)

// Succeed is for one who has lost a connection to the leader. If the leader's process is gone, this member asks to be elected
// when its turn comes, and reports that it did so. In all other cases it does nothing, and raft elects when it sees fit. The
// election is raft's own, as when a leader hands its lead over: who lacks an acknowledged change is not elected.
func (m *Member) Succeed(ctx context.Context) (bool, error) {
	s := m.etcd.Server
	gone := s.Leader()
	if gone == 0 || gone == s.MemberID() || !refuses(ctx, m.peerAddress(gone)) {
		return false, nil
	}
	turn := m.turn(gone)
	if turn < 0 {
		return false, nil
	}
	select {
	case <-time.After(time.Duration(turn) * turnPause):
	case <-ctx.Done():
		return false, nil
	}
	if now := s.Leader(); now != gone && now != 0 {
		return false, nil
	}
	return true, m.campaign(ctx, gone)
}

// campaign has raft elect this member at once: it gets the message with which that leader would have handed over. Without a
// term it is one of this member's own: after another's attempt its term is not known here.
func (m *Member) campaign(ctx context.Context, gone types.ID) error {
	s := m.etcd.Server
	from, to, kind := uint64(gone), uint64(s.MemberID()), raftpb.MsgTimeoutNow
	if err := s.Process(ctx, &raftpb.Message{Type: &kind, From: &from, To: &to}); err != nil {
		return fault.Wrap(fault.Unavailable, err, "this member cannot ask to be elected")
	}
	return nil
}

// turn is this member's place among those that can follow a leader; -1 if it cannot.
func (m *Member) turn(gone types.ID) int {
	var others []string
	for _, x := range m.Members() { // sorted, and so by all alike
		if !x.Learner && x.ID != gone.String() {
			others = append(others, x.ID)
		}
	}
	return slices.Index(others, m.ID())
}

// peerAddress is where a member listens for the others; empty if that is not known.
func (m *Member) peerAddress(id types.ID) string {
	for _, x := range m.Members() {
		if u, err := url.Parse(x.PeerURL); err == nil && x.ID == id.String() {
			return u.Host
		}
	}
	return ""
}

// refuses reports whether a machine is there and nothing listens at the address, or no more after a moment.
func refuses(ctx context.Context, address string) bool {
	dialer := net.Dialer{Timeout: dialPatience}
	for n := range refusalTries {
		if n > 0 {
			select {
			case <-time.After(refusalPause):
			case <-ctx.Done():
				return false
			}
		}
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
		if err != nil && n == refusalTries-1 {
			return true
		}
	}
	return false
}
