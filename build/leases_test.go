package build

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/buildkit/util/leaseutil"
)

// ledger counts what reaches containerd.
type ledger struct {
	leases.Manager
	made, deleted []string
}

func (l *ledger) Create(_ context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var lease leases.Lease
	for _, opt := range opts {
		if err := opt(&lease); err != nil {
			return lease, err
		}
	}
	l.made = append(l.made, lease.ID)
	return lease, nil
}

func (l *ledger) Delete(_ context.Context, lease leases.Lease, _ ...leases.DeleteOpt) error {
	l.deleted = append(l.deleted, lease.ID)
	return nil
}

func TestTemporaryLeasesAreShared(t *testing.T) {
	now := time.Unix(0, 0)
	l := &ledger{}
	s := shareLeases(l)
	s.now = func() time.Time { return now }
	take := func(opts ...leases.Opt) leases.Lease {
		lease, err := s.Create(t.Context(), append(opts, leases.WithRandomID())...)
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	give := func(lease leases.Lease) {
		if err := s.Delete(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
	}
	a, b := take(leaseutil.MakeTemporary), take(leaseutil.MakeTemporary)
	lasting := take()
	equal(t, "shared", a.ID, b.ID)
	equal(t, "made", len(l.made), 2)
	give(a)
	give(a)
	equal(t, "deleted with a user left", len(l.deleted), 0)
	now = now.Add(leaseAge + 1)
	c := take(leaseutil.MakeTemporary)
	if c.ID == b.ID {
		t.Error("an old lease is handed out")
	}
	give(b)
	give(lasting)
	give(c)
	equal(t, "deleted", len(l.deleted), 3)
	if d := take(leaseutil.MakeTemporary); d.ID == c.ID {
		t.Error("a deleted lease is handed out")
	}
}
