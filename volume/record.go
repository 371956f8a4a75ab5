package volume

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// record is what is kept on disk of a volume, one file each.
type record struct {
	Key      string            `json:"key"`
	Driver   string            `json:"driver"`
	Options  map[string]string `json:"options,omitempty"`
	Created  time.Time         `json:"created"`
	ReadOnly bool              `json:"readOnly,omitempty"`
	// Removing is written before the data goes, so that a crash cannot leave half of it looking whole.
	Removing bool `json:"removing,omitempty"`
}

func (r record) name() string { return fileName(r.Key) }

const recordSuffix = ".json"

func (s *Store) recordPath(r record) string { return filepath.Join(s.meta, r.name()+recordSuffix) }

func (s *Store) record(key string) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[key]
	return r, ok
}

func (s *Store) save(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot write the record of the volume %q", r.Key)
	}
	if err := atomicfile.Write(s.recordPath(r), b, 0o600); err != nil {
		return storageFault(err, "cannot write the record of the volume %q", r.Key)
	}
	s.mu.Lock()
	s.records[r.Key] = r
	s.mu.Unlock()
	return nil
}

// load reads every record. One that cannot be read is named in the log and left alone: its data is still there.
func (s *Store) load() (map[string]record, error) {
	if err := os.MkdirAll(s.meta, 0o700); err != nil {
		return nil, storageFault(err, "cannot make the folder for volume records %s", s.meta)
	}
	entries, err := os.ReadDir(s.meta)
	if err != nil {
		return nil, storageFault(err, "cannot read the folder for volume records %s", s.meta)
	}
	out := make(map[string]record, len(entries))
	for _, e := range entries {
		path := filepath.Join(s.meta, e.Name())
		if strings.HasPrefix(e.Name(), atomicfile.TempPrefix) {
			_ = os.Remove(path)
			continue
		}
		r, err := readRecord(path)
		if err != nil {
			s.log.Warn("a volume record is damaged; its data is kept", "file", path, "error", err)
			continue
		}
		out[r.Key] = r
	}
	return out, nil
}

func readRecord(path string) (record, error) {
	var r record
	b, err := atomicfile.Read(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fault.Wrap(fault.Corrupt, err, "the volume record %s is damaged", path)
	}
	if r.name()+recordSuffix != filepath.Base(path) {
		return r, fault.New(fault.Corrupt, "the volume record %s is of another volume, %q", path, r.Key)
	}
	return r, nil
}

func notFound(key string) error {
	return fault.New(fault.NotFound, "there is no volume %q on this node", key).WithHint("gantry volume ls")
}

// storageFault gives what the disk said a kind. A fault keeps its own; nil stays nil.
func storageFault(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	kind, hint := fault.Internal, ""
	switch {
	case fault.KindOf(err) != fault.Unknown:
		kind = fault.KindOf(err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind, hint = fault.Exhausted, "free some space: gantry system prune, gantry volume prune -a"
	case errors.Is(err, syscall.EROFS):
		kind, hint = fault.Unavailable, "the file system is read-only; mount it read-write or choose another --root"
	case errors.Is(err, os.ErrPermission):
		kind = fault.Denied
	}
	e := fault.Wrap(kind, err, format, args...)
	if hint != "" {
		return e.WithHint("%s", hint)
	}
	return e
}
