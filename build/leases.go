package build

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
)

// useLabel tells the uses of a shared lease apart: BuildKit ends some of its leases twice.
const useLabel = "gantry/lease.use"

// temporaryLabel marks the leases that BuildKit takes for the time of one action.
const temporaryLabel = "buildkit/lease.temporary"

// leaseAge is how long one lease serves new actions; what it holds can be collected only when its last user is gone.
const leaseAge = 10 * time.Minute

// sharedLeases lets all temporary leases of one time be one: BuildKit takes a dozen per build, and each costs
// containerd two transactions that wait for the disk. The users are counted, and the last one's end deletes the lease.
type sharedLeases struct {
	leases.Manager
	now func() time.Time

	mu      sync.Mutex
	current string
	since   time.Time
	uses    uint64
	users   map[string]map[string]bool          // uses not yet ended, by lease ID
	held    map[string]map[leases.Resource]bool // what shared leases hold for certain, by lease ID
	removed uint64                              // grows with every removal, at its begin and at its end
}

func shareLeases(m leases.Manager) *sharedLeases {
	return &sharedLeases{Manager: m, now: time.Now, users: map[string]map[string]bool{}, held: map[string]map[leases.Resource]bool{}}
}

// Create returns the current shared lease for a temporary one, and makes any other.
func (s *sharedLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var wanted leases.Lease
	for _, opt := range opts {
		if err := opt(&wanted); err != nil {
			return leases.Lease{}, err
		}
	}
	_, temporary := wanted.Labels[temporaryLabel]
	if _, flat := wanted.Labels[flatLabel]; flat || !temporary {
		return s.Manager.Create(ctx, opts...) // a lease of the cache's, asked for by its name later
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == "" || s.now().Sub(s.since) > leaseAge {
		l, err := s.Manager.Create(ctx, leases.WithRandomID(), leases.WithLabels(map[string]string{temporaryLabel: s.now().UTC().Format(time.RFC3339Nano)}))
		if err != nil {
			return leases.Lease{}, err
		}
		s.current, s.since = l.ID, s.now()
		s.users[l.ID], s.held[l.ID] = map[string]bool{}, map[leases.Resource]bool{}
	}
	s.uses++
	use := strconv.FormatUint(s.uses, 10)
	s.users[s.current][use] = true
	return leases.Lease{ID: s.current, CreatedAt: s.since, Labels: map[string]string{useLabel: use}}, nil
}

// Delete ends one use of a shared lease, and deletes any other lease.
func (s *sharedLeases) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	if use, ok := l.Labels[useLabel]; ok && !s.last(l.ID, use) {
		return nil
	}
	return s.Manager.Delete(ctx, l, opts...)
}

// last ends a use and reports whether it was the lease's last.
func (s *sharedLeases) last(id, use string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	users := s.users[id]
	if !users[use] {
		return false
	}
	delete(users, use)
	if len(users) > 0 {
		return false
	}
	delete(s.users, id)
	delete(s.held, id)
	if s.current == id {
		s.current = ""
	}
	return true
}

// AddResource puts a resource into a lease. When BuildKit has one lease take over what another holds, and both are the same
// shared one, all is there already: 75 transactions of a build with six steps.
func (s *sharedLeases) AddResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	s.mu.Lock()
	there, removed := s.held[l.ID][r], s.removed
	s.mu.Unlock()
	if there {
		return nil
	}
	if err := s.Manager.AddResource(ctx, l, r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.held[l.ID]; held != nil && removed == s.removed {
		held[r] = true
	}
	return nil
}

// DeleteResource takes a resource out of a lease.
func (s *sharedLeases) DeleteResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	s.forget(l, r)
	defer s.forget(l, r) // what was put in meanwhile may have come before or after
	return s.Manager.DeleteResource(ctx, l, r)
}

func (s *sharedLeases) forget(l leases.Lease, r leases.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed++
	delete(s.held[l.ID], r)
}
