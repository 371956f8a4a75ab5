package image

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	labelPull   = "gantry.dev/pull"
	labelExpire = "containerd.io/gc.expire"
	// leaseLife bounds what a crash in the middle leaves behind. It must be longer than the slowest pull.
	leaseLife = 72 * time.Hour
	// uploadPrefix begins the names of leases by which the registry keeps uploads, until they expire: a client may go on with one.
	uploadPrefix = "registry-upload-"
)

// hold protects what is made under the returned context from the garbage collector until done is called. A key makes the work
// resumable: what an earlier failed try under the same key finished is taken over, and kept again if this one fails too.
func (s *Service) hold(ctx context.Context, key string) (_ context.Context, done func(error), err error) {
	l, err := s.newLease(ctx, key, leaseLife)
	if err != nil {
		return nil, nil, explain(err, "image: make a lease")
	}
	if key != "" {
		if err := s.adopt(ctx, key, l); err != nil {
			return nil, nil, errors.Join(explain(err, "image: take over an earlier try"), s.Leases.Delete(ctx, l))
		}
	}
	return leases.WithLease(ctx, l.ID), func(failed error) { s.release(ctx, key, l, failed) }, nil
}

func (s *Service) newLease(ctx context.Context, key string, life time.Duration) (leases.Lease, error) {
	labels := map[string]string{labelExpire: time.Now().Add(life).UTC().Format(time.RFC3339Nano)}
	if key != "" {
		labels[labelPull] = key
	}
	return s.Leases.Create(ctx, leases.WithRandomID(), leases.WithLabels(labels))
}

// adopt moves everything that other leases of the key hold to l.
func (s *Service) adopt(ctx context.Context, key string, l leases.Lease) error {
	old, err := s.Leases.List(ctx, `labels."`+labelPull+`"==`+key)
	if err != nil {
		return err
	}
	for _, o := range old {
		if o.ID == l.ID {
			continue
		}
		if err := s.move(ctx, o, l); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func (s *Service) move(ctx context.Context, from, to leases.Lease) error {
	rs, err := s.Leases.ListResources(ctx, from)
	if err != nil {
		return err
	}
	for _, r := range rs {
		if err := s.Leases.AddResource(ctx, to, r); err != nil {
			return err
		}
	}
	return s.Leases.Delete(ctx, from)
}

// release ends a lease. It must work although ctx may be cancelled: that is how a pull is stopped.
func (s *Service) release(ctx context.Context, key string, l leases.Lease, failed error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var err error
	switch {
	case failed == nil:
		err = s.Leases.Delete(ctx, l)
	case key != "" && s.ResumeWindow > 0:
		err = s.park(ctx, key, l)
	default:
		err = s.Leases.Delete(ctx, l, leases.SynchronousDelete)
	}
	if err != nil {
		s.Logger.Warn("image: release lease", "lease", l.ID, "error", err)
	}
}

// park keeps the parts of a failed pull for a while. A lease's end cannot be changed, so a shorter one takes its place.
func (s *Service) park(ctx context.Context, key string, l leases.Lease) error {
	p, err := s.newLease(ctx, key, s.ResumeWindow)
	if err != nil {
		return err
	}
	return s.move(ctx, l, p)
}

// Recover ends what an earlier daemon was killed in, and all leases for the time of one action with it, whoever took them. What a
// pull has is kept for a while, as of one that failed. Call it before anything else, while nobody uses the stores.
func (s *Service) Recover(ctx context.Context) error {
	ctx = s.in(ctx)
	if err := s.dropExtracts(ctx); err != nil {
		return explain(err, "image: what was half unpacked")
	}
	all, err := s.Leases.List(ctx, `labels."`+labelExpire+`"`)
	if err != nil {
		return explain(err, "image: what was going on")
	}
	for _, l := range all {
		switch key := l.Labels[labelPull]; {
		case strings.HasPrefix(l.ID, uploadPrefix):
		case key != "" && s.ResumeWindow > 0:
			err = s.park(ctx, key, l)
		default:
			err = s.Leases.Delete(ctx, l)
		}
		if err != nil {
			return explain(err, "image: end what was going on")
		}
	}
	return nil
}

// dropExtracts removes layers that are half unpacked: their names are random, nobody finds them again.
func (s *Service) dropExtracts(ctx context.Context) error {
	if s.Snapshotter == nil {
		return nil
	}
	var keys []string
	err := s.Snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && strings.HasPrefix(info.Name, snapshots.UnpackKeyPrefix+"-") {
			keys = append(keys, info.Name)
		}
		return nil
	})
	for _, key := range keys {
		err = errors.Join(err, s.Snapshotter.Remove(ctx, key))
	}
	return err
}

// collect has containerd collect garbage now and waits for it.
func (s *Service) collect(ctx context.Context) error {
	l, err := s.newLease(ctx, "", time.Minute)
	if err != nil {
		return err
	}
	return s.Leases.Delete(ctx, l, leases.SynchronousDelete)
}

// leaseTarget adds a stored image, with all that its labels refer to, to the context's lease.
func (s *Service) leaseTarget(ctx context.Context, target ocispec.Descriptor) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return s.Leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: target.Digest.String(), Type: "content"})
}
