package build

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/buildkit/util/leaseutil"
)

// ledger counts what reaches containerd.
type ledger struct {
	leases.Manager
	made, deleted []string
	resources     []string
	refuse        error
}

func (l *ledger) AddResource(_ context.Context, lease leases.Lease, r leases.Resource) error {
	if l.refuse == nil {
		l.resources = append(l.resources, "+"+r.ID)
	}
	return l.refuse
}

func (l *ledger) DeleteResource(_ context.Context, lease leases.Lease, r leases.Resource) error {
	l.resources = append(l.resources, "-"+r.ID)
	return nil
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

func TestWhatASharedLeaseHoldsIsNotAddedAgain(t *testing.T) {
	l := &ledger{refuse: errors.New("full")}
	s := shareLeases(l)
	one, err := s.Create(t.Context(), leaseutil.MakeTemporary)
	if err != nil {
		t.Fatal(err)
	}
	lasting := leases.Lease{ID: "lasting"}
	add := func(lease leases.Lease, id string) error {
		return s.AddResource(t.Context(), lease, leases.Resource{ID: id, Type: "content"})
	}
	if add(one, "a") == nil {
		t.Fatal("a failure is hidden")
	}
	l.refuse = nil
	for range 2 {
		for _, err := range []error{add(one, "a"), add(leases.Lease{ID: one.ID}, "b"), add(lasting, "a")} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	equal(t, "added", strings.Join(l.resources, " "), "+a +b +a +a")
	if err := s.DeleteResource(t.Context(), one, leases.Resource{ID: "a", Type: "content"}); err != nil {
		t.Fatal(err)
	}
	if err := add(one, "a"); err != nil {
		t.Fatal(err)
	}
	equal(t, "after a removal", strings.Join(l.resources[4:], " "), "-a +a")
	if err := s.Delete(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if err := add(one, "a"); err != nil {
		t.Fatal(err)
	}
	equal(t, "after the lease", len(l.resources), 7)
	equal(t, "remembered", len(s.held), 0)
}
