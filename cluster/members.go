package cluster

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"github.com/gantryd/gantry/fault"
)

// Info is one member of the replicated state.
type Info struct {
	ID      string // as etcd writes it, in hex
	Name    string // empty until it has started once
	PeerURL string
	Learner bool // has no vote yet
}

// ID is this member's own ID.
func (m *Member) ID() string { return m.etcd.Server.MemberID().String() }

// Leader is the ID of the member that leads; empty while there is none.
func (m *Member) Leader() string {
	if id := m.etcd.Server.Leader(); id != 0 {
		return id.String()
	}
	return ""
}

// Members lists who belongs to the cluster as far as this member knows. It asks nobody.
func (m *Member) Members() []Info {
	var out []Info
	for _, x := range m.etcd.Server.Cluster().Members() {
		out = append(out, infoOf(x))
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func infoOf(x *membership.Member) Info {
	i := Info{ID: x.ID.String(), Name: x.Name, Learner: x.IsLearner}
	if len(x.PeerURLs) > 0 {
		i.PeerURL = x.PeerURLs[0]
	}
	return i
}

// announce tells the others where this member is now, if that is not what they know.
func (m *Member) announce(ctx context.Context, p *Peers) error {
	if p == nil {
		return nil
	}
	own := m.etcd.Server.Cluster().Member(m.etcd.Server.MemberID())
	if own == nil || slices.Equal(own.PeerURLs, []string{p.Advertise}) {
		return nil
	}
	_, err := m.client.MemberUpdate(ctx, uint64(m.etcd.Server.MemberID()), []string{p.Advertise})
	return memberFault(err, "this member's new address cannot be told to the others")
}

// AddLearner makes place for a member that will be at the URL. It has no vote until Promote. Asked again for the same URL,
// it answers as before, unless the one at the URL has to begin anew: a member that has begun once and has lost its state has
// acknowledged changes and given votes that it does not know of. initial is what the new member starts with.
func (m *Member) AddLearner(ctx context.Context, name, peerURL string, anew bool) (id string, initial []string, err error) {
	for _, x := range m.Members() {
		if x.PeerURL != peerURL {
			continue
		}
		if !anew || x.Name == "" {
			return x.ID, initialOf(m.Members(), x.ID, name), nil
		}
		if err := m.Remove(ctx, x.ID); err != nil {
			return "", nil, err
		}
	}
	resp, err := m.client.MemberAddAsLearner(ctx, []string{peerURL})
	if err != nil {
		return "", nil, memberFault(err, "the member at %s cannot be added", peerURL)
	}
	id = types.ID(resp.Member.ID).String()
	return id, initialOf(m.Members(), id, name), nil
}

// initialOf is the list of members that a new one starts with; one that has not started has no name of its own yet.
func initialOf(members []Info, id, name string) []string {
	var out []string
	for _, x := range members {
		n := x.Name
		if x.ID == id {
			n = name
		}
		if n != "" {
			out = append(out, n+"="+x.PeerURL)
		}
	}
	return out
}

// Promote gives a learner its vote. While the learner has not caught up the fault is Unavailable: ask again.
func (m *Member) Promote(ctx context.Context, id string) error {
	for _, x := range m.Members() {
		if x.ID == id && !x.Learner {
			return nil
		}
	}
	n, err := types.IDFromString(id)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "%q is not a member's ID", id)
	}
	_, err = m.client.MemberPromote(ctx, uint64(n))
	return memberFault(err, "member %s cannot be given its vote yet", id)
}

// Remove takes a member out. One that is not there is no error.
func (m *Member) Remove(ctx context.Context, id string) error {
	n, err := types.IDFromString(id)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "%q is not a member's ID", id)
	}
	_, err = m.client.MemberRemove(ctx, uint64(n))
	if errors.Is(err, rpctypes.ErrMemberNotFound) || errors.Is(err, membership.ErrIDNotFound) {
		return nil
	}
	return memberFault(err, "member %s cannot be removed", id)
}

// HandOver makes another voting member the leader, so that this one can go: one of those that are named, if any are. Without
// another it does nothing.
func (m *Member) HandOver(ctx context.Context, to ...string) error {
	s := m.etcd.Server
	others := 0
	for _, x := range s.Cluster().Members() {
		if x.ID == s.MemberID() || x.IsLearner || len(to) > 0 && !slices.Contains(to, x.ID.String()) {
			continue
		}
		others++
		if !m.leads() || m.handTo(ctx, x.ID) == nil {
			return nil
		}
	}
	if others == 0 {
		return nil
	}
	return fault.New(fault.Unavailable, "no other server can take over the lead").WithHint("gantry cluster status")
}

// handOverPatience is how long another member may take to lead. Raft gives a hand-over up after one to two seconds, and etcd does
// not notice.
const handOverPatience = 3 * time.Second

func (m *Member) handTo(ctx context.Context, to types.ID) error {
	ctx, cancel := context.WithTimeout(ctx, handOverPatience)
	defer cancel()
	return m.etcd.Server.MoveLeader(ctx, uint64(m.etcd.Server.MemberID()), uint64(to))
}

func memberFault(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	f := fault.Wrap(fault.Unavailable, err, format, args...)
	if errors.Is(err, membership.ErrTooManyLearners) || errors.Is(err, rpctypes.ErrTooManyLearners) {
		return f.WithHint("another server has no vote yet, and one is added at a time: gantry cluster status names it")
	}
	if errors.Is(err, etcderrors.ErrUnhealthy) || errors.Is(err, rpctypes.ErrUnhealthy) {
		return f.WithHint("too few servers answer for this change: gantry cluster status")
	}
	return f
}

// Snapshot reads the whole state as of now, with its SHA-256 at the end.
func (m *Member) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	r, err := m.client.Snapshot(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the state cannot be read")
	}
	return r, nil
}
