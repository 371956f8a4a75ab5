// Package volume keeps named places for data on one machine.
//
// Call Open first, then Ensure to have a volume and its path. All methods of a Store are safe in parallel; work on one
// key is done one after the other. A Store does not know who uses a volume: the caller asks that before Remove. See
// DESIGN.md beside this file for what a crash can leave and how it is repaired.
package volume

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/volume/directory"
	"github.com/gantryd/gantry/volume/pool"
)

// Driver is what a kind of storage must be able to do. Names are file names made from keys. Create and Remove succeed
// when there is nothing left to do.
type Driver interface {
	Create(ctx context.Context, name string, options map[string]string) error
	Remove(ctx context.Context, name string) error
	Path(name string) string
	Usage(ctx context.Context, name string) (int64, error)
}

// Snapshotter is a driver that makes a read-only copy in constant time.
type Snapshotter interface {
	Snapshot(ctx context.Context, from, to string) error
}

// Cloner is a driver that makes a writable copy in constant time.
type Cloner interface {
	Clone(ctx context.Context, from, to string) error
}

// The names of the drivers.
const (
	Directory = "directory"
	Pool      = "pool"
)

// Options says where volumes live. Root is required.
type Options struct {
	Root   string
	Logger *slog.Logger
	// Pool configures the "pool" driver; nothing is made before its first volume.
	Pool pool.Options
}

// Info describes one volume.
type Info struct {
	Key      string
	Driver   string
	Path     string
	Created  time.Time
	Options  map[string]string
	ReadOnly bool
}

// Store is the set of volumes below one root.
type Store struct {
	log     *slog.Logger
	meta    string
	drivers map[string]Driver
	keys    keyLocks

	mu      sync.Mutex
	records map[string]record // by key
}

// Open reads the volumes below o.Root, which is made if missing, and finishes removals that a crash interrupted.
func Open(o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := filepath.Abs(o.Root)
	if err != nil || o.Root == "" {
		return nil, fault.New(fault.Invalid, "the folder for volumes is missing")
	}
	dir, err := directory.Open(filepath.Join(root, "data"))
	if err != nil {
		return nil, storageFault(err, "cannot make the folder for volumes below %s", root)
	}
	s := &Store{
		log: o.Logger, meta: filepath.Join(root, "meta"),
		drivers: map[string]Driver{Directory: dir, Pool: pool.New(filepath.Join(root, "pool"), o.Pool)},
	}
	if s.records, err = s.load(); err != nil {
		return nil, err
	}
	s.finishRemovals()
	return s, nil
}

// Close lets go of what drivers hold, such as a mounted pool. Volumes in use stay usable.
func (s *Store) Close() error { return s.drivers[Pool].(*pool.Driver).Close() }

// Ensure makes the volume unless it exists and returns its path. An empty driver takes the existing volume's, or
// "directory"; nil options take the existing ones.
func (s *Store) Ensure(ctx context.Context, key, driver string, options map[string]string) (path string, created bool, err error) {
	if err := checkKey(key); err != nil {
		return "", false, err
	}
	defer s.keys.lock(key)()
	if r, ok := s.record(key); ok && r.Removing {
		if err := s.finishRemoval(ctx, r); err != nil {
			return "", false, err
		}
	} else if ok {
		return s.ensureExisting(ctx, r, driver, options)
	}
	if driver == "" {
		driver = Directory
	}
	d, err := s.driver(driver)
	if err != nil {
		return "", false, err
	}
	r := record{Key: key, Driver: driver, Options: options, Created: time.Now().UTC()}
	if err := d.Create(ctx, r.name(), options); err != nil {
		return "", false, storageFault(err, "cannot make the volume %q", key)
	}
	if err := s.save(r); err != nil {
		_ = d.Remove(ctx, r.name()) // it is empty; without a record nobody would find it
		return "", false, err
	}
	return d.Path(r.name()), true, nil
}

// ensureExisting repeats the creation, which does nothing normally and brings a pool back after a reboot.
func (s *Store) ensureExisting(ctx context.Context, r record, driver string, options map[string]string) (string, bool, error) {
	if driver != "" && driver != r.Driver {
		return "", false, fault.New(fault.Conflict, "the volume %q is on the driver %q, not %q", r.Key, r.Driver, driver).
			WithHint("keep driver %q, or remove the volume first: gantry volume rm", r.Driver)
	}
	if options != nil && !maps.Equal(options, r.Options) {
		return "", false, fault.New(fault.Conflict, "the volume %q exists with other driver options", r.Key).
			WithHint("keep its options (gantry volume inspect), or remove the volume first: gantry volume rm")
	}
	d, err := s.driver(r.Driver)
	if err != nil {
		return "", false, err
	}
	if err := d.Create(ctx, r.name(), r.Options); err != nil {
		return "", false, storageFault(err, "cannot reach the volume %q", r.Key)
	}
	return d.Path(r.name()), false, nil
}

// Path returns where the data of an existing volume is.
func (s *Store) Path(ctx context.Context, key string) (string, error) {
	path, _, err := s.existing(ctx, key)
	return path, err
}

func (s *Store) existing(ctx context.Context, key string) (string, record, error) {
	defer s.keys.lock(key)()
	r, ok := s.record(key)
	if !ok || r.Removing {
		return "", r, notFound(key)
	}
	path, _, err := s.ensureExisting(ctx, r, "", nil)
	return path, r, err
}

// Remove deletes the volume and its data. A volume that is gone already is no error.
func (s *Store) Remove(ctx context.Context, key string) error {
	return s.RemoveUnless(ctx, key, func() error { return nil })
}

// RemoveUnless is Remove for a volume that somebody may be using: inUse says who is, and while it is asked and the data goes,
// Ensure of the same volume waits.
func (s *Store) RemoveUnless(ctx context.Context, key string, inUse func() error) error {
	defer s.keys.lock(key)()
	r, ok := s.record(key)
	if !ok {
		return nil
	}
	if err := inUse(); err != nil {
		return err
	}
	r.Removing = true
	if err := s.save(r); err != nil {
		return err
	}
	return s.finishRemoval(ctx, r)
}

// List returns all volumes by key.
func (s *Store) List(context.Context) ([]Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Info
	for _, r := range s.records {
		if !r.Removing {
			out = append(out, s.info(r))
		}
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

// Get returns one volume.
func (s *Store) Get(_ context.Context, key string) (Info, error) {
	r, ok := s.record(key)
	if !ok || r.Removing {
		return Info{}, notFound(key)
	}
	return s.info(r), nil
}

func (s *Store) info(r record) Info {
	i := Info{Key: r.Key, Driver: r.Driver, Created: r.Created, Options: maps.Clone(r.Options), ReadOnly: r.ReadOnly}
	if d := s.drivers[r.Driver]; d != nil {
		i.Path = d.Path(r.name())
	}
	return i
}

// Usage returns the bytes that the volume takes on disk.
func (s *Store) Usage(ctx context.Context, key string) (int64, error) {
	_, r, err := s.existing(ctx, key)
	if err != nil {
		return 0, err
	}
	n, err := s.drivers[r.Driver].Usage(ctx, r.name())
	return n, storageFault(err, "cannot measure the volume %q", key)
}

func (s *Store) driver(name string) (Driver, error) {
	if d := s.drivers[name]; d != nil {
		return d, nil
	}
	return nil, fault.New(fault.Unsupported, "there is no volume driver %q", name).
		WithHint(`drivers are "directory" and "pool"`)
}

func (s *Store) finishRemovals() {
	for _, r := range s.records {
		if !r.Removing {
			continue
		}
		if err := s.finishRemoval(context.Background(), r); err != nil {
			s.log.Warn("an interrupted removal of a volume cannot be finished", "volume", r.Key, "error", err)
		}
	}
}

func (s *Store) finishRemoval(ctx context.Context, r record) error {
	d, err := s.driver(r.Driver)
	if err != nil {
		return err
	}
	if err := d.Remove(ctx, r.name()); err != nil {
		return storageFault(err, "cannot remove the data of the volume %q", r.Key)
	}
	if err := atomicfile.Remove(s.recordPath(r)); err != nil {
		return storageFault(err, "cannot remove the record of the volume %q", r.Key)
	}
	s.mu.Lock()
	delete(s.records, r.Key)
	s.mu.Unlock()
	return nil
}
