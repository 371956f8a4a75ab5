package cluster

import (
	"context"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// EpochKey is the etcd key that every leader writes when it begins. Whoever writes on condition that its revision has not
// moved is safe from leaders that have been deposed and do not know it.
const EpochKey = "/gantry/Leadership/epoch"

// Lead calls run whenever this member begins to lead, with the revision of EpochKey that its writes have to be conditional
// on. The context that run gets ends when the member leads no longer. Lead returns when ctx ends, or with run's error.
func (m *Member) Lead(ctx context.Context, name string, run func(ctx context.Context, epoch int64) error) error {
	for {
		changed := m.etcd.Server.LeaderChangedNotify()
		var again <-chan time.Time
		if m.leads() {
			if err := m.reign(ctx, name, run); err != nil {
				return err
			}
			again = time.After(retryEpoch) // its epoch may have been overtaken, without another leader
		}
		select {
		case <-changed:
		case <-again:
		case <-m.etcd.Server.StopNotify():
			<-ctx.Done() // its end is reported by Err
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Member) leads() bool { return m.etcd.Server.Leader() == m.etcd.Server.MemberID() }

// reign is one time of leading.
func (m *Member) reign(ctx context.Context, name string, run func(context.Context, int64) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var begun atomic.Int64
	go func() {
		defer cancel()
		m.awaitDeposed(ctx, &begun)
	}()
	epoch, err := m.begin(ctx, name)
	if err != nil {
		return nil // it lost the lead before it began
	}
	begun.Store(epoch)
	err = run(ctx, epoch)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Confirm returns nil if this member has led at some moment since the call, as a majority says: what it has stored is all that
// was acknowledged until then. A leader that is cut off does not know for a while that another one has taken over.
func (m *Member) Confirm(ctx context.Context) error {
	if len(m.etcd.Server.Cluster().Members()) > 1 {
		ctx, cancel := context.WithTimeout(ctx, confirmPatience)
		defer cancel()
		if err := m.etcd.Server.LinearizableReadNotify(ctx); err != nil {
			return fault.Wrap(fault.Unavailable, err, "a majority of servers does not answer the leader")
		}
	}
	if !m.leads() {
		return fault.New(fault.Unavailable, "this server leads no longer")
	}
	return nil
}

// confirmPatience is longer than a leader without a majority takes to step down.
const confirmPatience = 3 * time.Second

// awaitDeposed returns when this member leads no longer, its epoch is not the newest, or ctx ends. Nothing is notified of a
// leader that is lost before there is another one, so it looks, too. The epoch is overtaken where this member has led twice
// without being seen to lose the lead, and where what it wrote for a lead that it had lost is stored in the next one.
func (m *Member) awaitDeposed(ctx context.Context, epoch *atomic.Int64) {
	look := time.NewTicker(deposedPoll)
	defer look.Stop()
	for {
		changed := m.etcd.Server.LeaderChangedNotify()
		if !m.leads() || m.overtaken(ctx, epoch.Load()) {
			return
		}
		select {
		case <-look.C:
		case <-changed:
		case <-m.etcd.Server.StopNotify():
			return
		case <-ctx.Done():
			return
		}
	}
}

// overtaken looks at what this member itself has stored.
func (m *Member) overtaken(ctx context.Context, epoch int64) bool {
	if epoch == 0 {
		return false // it has not begun
	}
	resp, err := m.client.Get(ctx, EpochKey, clientv3.WithSerializable(), clientv3.WithKeysOnly())
	return err == nil && len(resp.Kvs) == 1 && resp.Kvs[0].ModRevision > epoch
}

// begin writes the new epoch; it fails only when ctx ends.
func (m *Member) begin(ctx context.Context, node string) (int64, error) {
	value, err := proto.Marshal(&gantryv1.Leadership{Meta: &gantryv1.Meta{Key: "epoch", CreatedAt: timestamppb.Now()}, Node: node})
	if err != nil {
		return 0, fault.Wrap(fault.Internal, err, "cannot encode the leadership")
	}
	for {
		resp, err := m.client.Put(ctx, EpochKey, string(value))
		if err == nil {
			return resp.Header.Revision, nil
		}
		select {
		case <-time.After(retryEpoch):
		case <-ctx.Done():
			return 0, fault.Wrap(fault.Unavailable, ctx.Err(), "this server leads no longer")
		}
	}
}

const (
	retryEpoch  = 100 * time.Millisecond
	deposedPoll = 100 * time.Millisecond
)
