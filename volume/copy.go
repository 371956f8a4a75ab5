package volume

import (
	"context"
	"maps"
	"time"

	"github.com/gantryd/gantry/fault"
)

// Snapshot makes the new volume to, a read-only copy of from as it is now, in constant time.
func (s *Store) Snapshot(ctx context.Context, from, to string) error {
	return s.copy(ctx, from, to, true, func(d Driver) func(context.Context, string, string) error {
		if c, ok := d.(Snapshotter); ok {
			return c.Snapshot
		}
		return nil
	})
}

// Clone makes the new volume to, a writable copy of from as it is now, in constant time.
func (s *Store) Clone(ctx context.Context, from, to string) error {
	return s.copy(ctx, from, to, false, func(d Driver) func(context.Context, string, string) error {
		if c, ok := d.(Cloner); ok {
			return c.Clone
		}
		return nil
	})
}

func (s *Store) copy(ctx context.Context, from, to string, readOnly bool,
	ability func(Driver) func(context.Context, string, string) error,
) error {
	if err := checkKey(to); err != nil {
		return err
	}
	_, src, err := s.existing(ctx, from)
	if err != nil {
		return err
	}
	do := ability(s.drivers[src.Driver])
	if do == nil {
		return fault.New(fault.Unsupported, "the volume %q is on the driver %q, which cannot copy in constant time", from, src.Driver).
			WithHint("keep the data on a volume with driver: pool")
	}
	defer s.keys.lock(to)()
	if _, ok := s.record(to); ok {
		return fault.New(fault.Exists, "the volume %q exists already", to)
	}
	dst := record{
		Key: to, Driver: src.Driver, Options: maps.Clone(src.Options), Created: time.Now().UTC(), ReadOnly: readOnly,
	}
	// A copy without a record is what a crash leaves; the next attempt replaces it.
	if err := s.drivers[src.Driver].Remove(ctx, dst.name()); err != nil {
		return storageFault(err, "cannot clear the way for the volume %q", to)
	}
	if err := do(ctx, src.name(), dst.name()); err != nil {
		return storageFault(err, "cannot copy the volume %q to %q", from, to)
	}
	return s.save(dst)
}
